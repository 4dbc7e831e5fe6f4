"""Making a run's values the ones to compare with. All or nothing, with a reason, and never a value that is none.

An accepted file keeps six significant digits, the declared limits, and values per cluster only for metrics with a limit
on change: those are what a paired comparison needs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from sae_bench.errors import UsageError
from sae_bench.judge.messages import number
from sae_bench.judge.paired_change import paired_change
from sae_bench.judge.verdicts import Verdict
from sae_bench.registry.spec import CONTROL
from sae_bench.report.baselines import accepted_path, accepted_text, load_accepted
from sae_bench.report.convert import estimate_from, rules_from
from sae_bench.report.declared_limits import declared_limits, for_same_weights
from sae_bench.report.json import rounded
from sae_bench.report.records import Acceptance, MetricResult, PropertyResult, SAEResult
from sae_bench.report.report import Report, write_text


@dataclass(frozen=True)
class AcceptedChange:
    """One accepted number beside the one it replaces."""

    sae: str
    property: str
    metric: str
    old: float | None
    new: float | None

    def __str__(self) -> str:
        name = f"{self.property}.{self.metric} of {self.sae}"
        new = "undefined" if self.new is None else number(self.new, 6)
        if self.old is None:
            return f"{name}: {new} (new)"
        share = ""
        if self.new is not None and self.old != 0:
            share = f" ({100 * (self.new - self.old) / abs(self.old):+.2f}%)"
        return f"{name}: {number(self.old, 6)} -> {new}{share}"


def describe(changes: Sequence[AcceptedChange]) -> list[str]:
    """Lines for a person: every value that replaced another one, and how many are new or the same."""
    # An accepted file keeps six significant digits, so the same value seldom equals itself to the last bit.
    moved = [each for each in changes if each.old is not None and rounded(each.old) != rounded(each.new)]
    first = [each for each in changes if each.old is None]
    lines = [f"  {each}" for each in moved]
    if first:
        names = sorted({f"{each.property} of {each.sae}" for each in first})
        lines.append(f"  {len(first)} new values: {', '.join(names)}")
    if same := len(changes) - len(moved) - len(first):
        lines.append(f"  {same} values unchanged")
    return lines


def accept(
    report: Report,
    folder: Path,
    *,
    reason: str,
    who: str,
    when: str,
    only: Sequence[str] | None = None,
    new_only: bool = False,
    reanchor: bool = False,
    in_ci: bool = False,
) -> list[AcceptedChange]:
    """Write what ``report`` measured to the accepted files under ``folder``; list old and new values.

    Everything is checked before anything is written; a refusal is a `UsageError`. Entries that the report did not
    measure stay as they are.

    Args:
        report: of a whole run; refused when it holds an ERROR or a value that is not finite.
        folder: of accepted reports.
        reason: why the new values are right.
        who: accepts them.
        when: UTC, ISO 8601.
        only: globs of properties; None takes all.
        new_only: leave alone what has an accepted entry already.
        reanchor: measure drift from these values on.
        in_ci: accept although ``CI`` is set in the environment.
    """
    if not reason.strip():
        raise UsageError("accepting needs a reason: add --sae-accept-reason 'why the new values are right'")
    if not in_ci and os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise UsageError("accepting is refused where CI is set: changes would accept themselves; or --sae-accept-in-ci")
    _refuse_partial(report)
    saes = {sae: result for sae, result in report.saes.items() if CONTROL not in result.tags}
    chosen = {sae: _chosen(result, sae, folder, only, new_only) for sae, result in saes.items()}
    chosen = {sae: properties for sae, properties in chosen.items() if properties}
    if not chosen and not new_only:
        which = f" among {', '.join(only)}" if only else ""
        raise UsageError(f"there is nothing to accept: no property{which} was measured")
    for sae, properties in chosen.items():
        for name, result in properties.items():
            _refuse_broken(sae, name, result)
    accepted = Acceptance(who, when, reason.strip(), report.run.commit)
    files, listed = [], []
    for sae, properties in chosen.items():
        text, values = _merged(report, sae, properties, folder, accepted, reanchor)
        files.append((accepted_path(folder, sae), text))
        listed += values
    for path, text in files:
        write_text(path, text)
    return listed


def _refuse_partial(report: Report) -> None:
    """A run that was cut short or left out items would have the rest accepted unseen."""
    options = report.run.options
    if options.get("interrupted"):
        raise UsageError("a run that was interrupted cannot be accepted; run the same command again, it goes on there")
    if left_out := options.get("narrowed_by"):
        raise UsageError(f"a run narrowed by {', '.join(left_out)} cannot be accepted; narrow with --sae instead")


def _chosen(
    result: SAEResult, sae: str, folder: Path, only: Sequence[str] | None, new_only: bool
) -> Mapping[str, PropertyResult]:
    file = load_accepted(folder, sae) if new_only else None
    held = file.result.properties if file is not None else {}
    return {
        name: each
        for name, each in result.properties.items()
        if name not in held and (only is None or any(fnmatchcase(name, glob) for glob in only))
    }


def _refuse_broken(sae: str, name: str, result: PropertyResult) -> None:
    if result.verdict is Verdict.ERROR or not result.metrics:
        why = result.lines[0] if result.lines else f"{name} of {sae} was not measured"
        raise UsageError(f"an ERROR cannot be accepted: {why}")
    for metric, each in result.metrics.items():
        if each.value is None and each.kind != "undefined":
            raise UsageError(f"{name}.{metric} of {sae} {each.reason or 'has no value'} and cannot be accepted")
        if each.value is not None and not math.isfinite(each.value):
            raise UsageError(f"{name}.{metric} of {sae} is {each.value} and cannot be accepted")


def _merged(
    report: Report,
    sae: str,
    properties: Mapping[str, PropertyResult],
    folder: Path,
    acceptance: Acceptance,
    reanchor: bool,
) -> tuple[str, list[AcceptedChange]]:
    file = load_accepted(folder, sae)
    held = dict(file.result.properties) if file is not None else {}
    listed = []
    for name, result in properties.items():
        old = held.get(name)
        new = _kept(result, None if reanchor else old)
        before = {metric: each.value for metric, each in old.metrics.items()} if old is not None else {}
        listed += [
            AcceptedChange(sae, name, metric, before.get(metric), each.value) for metric, each in new.metrics.items()
        ]
        previous = {metric: value for metric, value in before.items() if _differs(value, new.metrics.get(metric))}
        held[name] = replace(new, acceptance=replace(acceptance, previous=previous))
    source = report.saes[sae]
    # How and where one run was started says nothing of what was accepted.
    options = {name: value for name, value in report.run.options.items() if name != "again"}
    run = replace(report.run, seconds=None, options=options)
    return accepted_text(Report(run, {sae: replace(source, properties=held)})), listed


def _differs(value: float | None, metric: MetricResult | None) -> bool:
    if metric is None or value is None or metric.value is None:
        return metric is None or value is not metric.value
    return bool(rounded(value) != rounded(metric.value))


def _kept(result: PropertyResult, old: PropertyResult | None) -> PropertyResult:
    """What an accepted file keeps of a result: no verdicts, declared limits, and only those series that say so."""
    declared, limited = declared_limits(result), _limited(result)
    metrics = {
        name: MetricResult(
            value=each.value,
            unit=each.unit,
            better=each.better,
            version=each.version,
            kind=each.kind,
            se=each.se,
            n=each.n,
            reason=each.reason,
            target=each.target,
            noise_free=each.noise_free,
            limit=declared[name].limit,
            limit_from=declared[name].limit_from,
            overruled=declared[name].overruled,
            per_cluster=each.per_cluster if name in limited else None,
            anchor=_anchor(result, old, name) if name in limited else None,
            noise=each.noise,
        )
        for name, each in result.metrics.items()
        if each.reason != "was not measured"
    }
    paired = any(each.per_cluster is not None for each in metrics.values())
    return PropertyResult(
        name=result.name,
        version=result.version,
        context=result.context,
        context_digest=result.context_digest,
        metrics=metrics,
        clusters=result.clusters if paired else (),
        primary_metric=result.primary_metric,
        weights=result.weights,
        series={name: each for name, each in result.series.items() if each.accepted},
    )


def _limited(result: PropertyResult) -> set[str]:
    """Metrics that were given a limit on change, by whomever."""
    rules = rules_from(result)
    return {rule.metric for rule in rules if not rule.limit.hard and not for_same_weights(rule)}


def _anchor(result: PropertyResult, old: PropertyResult | None, name: str) -> float | None:
    """The value that drift is compared with: where it was, or the new value where there was no comparable one.

    Over other clusters than before the anchor moves along, so that the drift so far is kept to the digit.
    """
    new = result.metrics[name]
    before = old.metrics.get(name) if old is not None else None
    if old is None or before is None or before.value is None or new.value is None:
        return new.value
    if old.context_digest != result.context_digest or before.version != new.version:
        return new.value
    anchor = before.value if before.anchor is None else before.anchor
    ours, theirs = estimate_from(new), estimate_from(before)
    if ours is None or theirs is None or set(old.clusters) == set(result.clusters):
        return anchor
    change = paired_change(ours, theirs, result.clusters, old.clusters)
    return anchor if change is None else new.value - change.value - (before.value - anchor)
