"""Accept a run's values as the ones to compare with: all or nothing, with a reason, and only finite values.

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
from sae_bench.judge.paired_change import paired_change
from sae_bench.registry.spec import CONTROL
from sae_bench.report.baselines import accepted_path, accepted_text, load_accepted
from sae_bench.report.convert import estimate_from
from sae_bench.report.declared_limits import declared_limits
from sae_bench.report.json import rounded
from sae_bench.report.records import Acceptance, MetricResult, PropertyResult, SAEResult, Verdict, number
from sae_bench.report.report import Report, write_text


@dataclass(frozen=True)
class AcceptedChange:
    """One accepted number and the one it replaces."""

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
    """Return lines for a person: every value that replaced another one, and the number of new and unchanged ones."""
    # An accepted file keeps six significant digits, so the same value seldom equals itself to the last bit.
    replaced = [each for each in changes if each.old is not None and rounded(each.old) != rounded(each.new)]
    first = [each for each in changes if each.old is None]
    lines = [f"  {each}" for each in replaced]
    if first:
        names = sorted({f"{each.property} of {each.sae}" for each in first})
        lines.append(f"  {len(first)} new values: {', '.join(names)}")
    if same := len(changes) - len(replaced) - len(first):
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
    """Refuse a run that was cut short or left out items: the rest would be accepted without having been measured."""
    if report.run.interrupted:
        raise UsageError(
            "a run that was interrupted cannot be accepted; start the same command again, it takes up what is finished"
        )
    if report.run.narrowed_by:
        options = ", ".join(report.run.narrowed_by)
        raise UsageError(f"a run narrowed by {options} cannot be accepted; choose SAEs with --sae instead")


def _chosen(
    result: SAEResult, sae: str, folder: Path, only: Sequence[str] | None, new_only: bool
) -> Mapping[str, PropertyResult]:
    file = load_accepted(folder, sae) if new_only else None
    accepted = file.result.properties if file is not None else {}
    return {
        name: each
        for name, each in result.properties.items()
        if name not in accepted and (only is None or any(fnmatchcase(name, glob) for glob in only))
    }


def _refuse_broken(sae: str, name: str, result: PropertyResult) -> None:
    if result.verdict is Verdict.ERROR or not result.metrics:
        why = result.message or f"{name} of {sae} was not measured"
        raise UsageError(f"an ERROR cannot be accepted: {why}")
    for metric, each in result.metrics.items():
        if each.value is None and each.kind not in ("undefined", "unmeasured"):
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
    entries = dict(file.result.properties) if file is not None else {}
    listed = []
    for name, result in properties.items():
        old = entries.get(name)
        new = _entry(result, None if reanchor else old)
        before = {metric: each.value for metric, each in old.metrics.items()} if old is not None else {}
        listed += [
            AcceptedChange(sae, name, metric, before.get(metric), each.value) for metric, each in new.metrics.items()
        ]
        previous = {metric: value for metric, value in before.items() if _differs(value, new.metrics.get(metric))}
        entries[name] = replace(new, acceptance=replace(acceptance, previous=previous))
    # The command that started one run says nothing about what was accepted.
    run = replace(report.run, seconds=None, rerun_command=None)
    return accepted_text(Report(run, {sae: replace(report.saes[sae], properties=entries)})), listed


def _differs(value: float | None, metric: MetricResult | None) -> bool:
    if metric is None or value is None or metric.value is None:
        return metric is None or value is not metric.value
    return bool(rounded(value) != rounded(metric.value))


def _entry(result: PropertyResult, old: PropertyResult | None) -> PropertyResult:
    """Return the part of a result that an accepted file keeps: no verdicts, declared limits, marked series only."""
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
            detail=each.detail,
            target=each.target,
            noise_free=each.noise_free,
            of_weights=each.of_weights,
            limits=declared[name].deciding,
            overruled=declared[name].overruled,
            per_cluster=each.per_cluster if name in limited else None,
            anchor=_anchor(result, old, name) if name in limited else None,
            noise=each.noise,
        )
        for name, each in result.metrics.items()
        if each.kind != "unmeasured"
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
    """Return the metrics with a limit on change, whoever has set it."""
    return {
        name
        for name, each in result.metrics.items()
        if any(not limit.hard and limit.source != "unchanged weights" for limit in each.limits)
    }


def _anchor(result: PropertyResult, old: PropertyResult | None, name: str) -> float | None:
    """Return the value that drift is compared with: the earlier anchor, or the new value without a comparable one.

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
