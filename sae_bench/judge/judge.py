"""Judge one property of one SAE against its limits, its accepted report and its known failures.

The only place where numbers become an opinion: a pure function, without files, terminal or torch. The table of
verdicts is in `sae_bench.judge.verdicts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sae_bench.errors import UsageError
from sae_bench.judge import against_limit, messages
from sae_bench.judge.limits import Kind, Limit, Rule, effective, judged_by_declaration
from sae_bench.judge.paired_change import paired_change
from sae_bench.judge.verdicts import (
    SEVERITY,
    AcceptedProperty,
    Difference,
    Judgement,
    LimitOutcome,
    PropertyVerdict,
    Verdict,
    exit_code,
)
from sae_bench.measure.measurement import Accepted, Estimate, Exact, Measurement, Metric, Undefined
from sae_bench.measure.uncertainty import interval, standard_error

__all__ = [
    "ALPHA",
    "AcceptedProperty",
    "Difference",
    "Judgement",
    "LimitOutcome",
    "PropertyVerdict",
    "Verdict",
    "context_differences",
    "exit_code",
    "judge",
    "sparsity_moved",
]

ALPHA = 0.01
"One-sided error rate of a property, fixed before the run and divided by the number of metrics it declares judged."
SAME_WEIGHTS = Limit("change", absolute=1e-5)
"The change allowed to a metric that follows from the weights alone, as long as the accepted ones are measured."


@dataclass(frozen=True)
class _Case:
    """Inputs that the judgements of a property's metrics share."""

    property: str
    sae: str
    measurement: Measurement
    accepted: AcceptedProperty | None
    differences: tuple[Difference, ...]
    known: Mapping[str, str]
    alpha: float
    compare: bool
    different_sparsity: bool

    def name(self, metric: str) -> str:
        return f"{self.property}.{metric}"

    def accepted_entry(self, metric: str) -> Accepted | None:
        return self.accepted.metrics.get(metric) if self.accepted is not None and self.compare else None


def judge(
    property: str,
    metrics: Sequence[Metric],
    primary_metric: str,
    measurement: Measurement | str,
    accepted: AcceptedProperty | None,
    *,
    sae: str,
    rules: Sequence[Rule],
    context: Mapping[str, Any],
    known_failures: Mapping[str, str] | None = None,
    compare: bool = True,
    strict: bool = False,
    sparsity_moved: bool = False,
) -> PropertyVerdict:
    """Judge one property of one SAE.

    Args:
        property: its name.
        metrics: all it declares; error rates depend on these, not on what was selected or measured.
        primary_metric: the metric shown for the property when all is well.
        measurement: the measured values, or the text of the error that prevented them.
        accepted: the accepted report's entry; None when there is none.
        sae: the id that rules and messages name.
        rules: limits from every source; those that don't concern this SAE are ignored.
        context: what decides comparability now, JSON values.
        known_failures: ``property.metric`` (or the metric alone) to the reason its hard limit is known to fail.
        compare: False judges hard limits only and looks at no accepted value.
        strict: whether NEW and undecided metrics inside their limits count as not judged.
        sparsity_moved: L0 exceeds its limit: nothing counts as improved.
    """
    alpha = ALPHA / judged_by_declaration(rules, property, metrics)
    if isinstance(measurement, str):
        return _not_measured(property, primary_metric, measurement, sae, alpha, strict)
    differences = context_differences(context, accepted.context) if accepted is not None and compare else ()
    known = {entry.removeprefix(f"{property}."): reason for entry, reason in (known_failures or {}).items()}
    case = _Case(property, sae, measurement, accepted, differences, known, alpha, compare, sparsity_moved)
    judged = _judge_all(case, metrics, rules)
    if not judged:
        return _not_measured(property, primary_metric, "nothing was measured", sae, alpha, strict)
    # A metric that is only reported cannot make the property undefined, however it is broken otherwise.
    deciding = {
        name: each.judgement
        for name, each in judged.items()
        if each.judgement.limits or name == primary_metric or each.judgement.verdict in _ALWAYS
    } or {name: each.judgement for name, each in judged.items()}
    worst = max(deciding, key=lambda name: (_rank(deciding[name]), name == primary_metric))
    return PropertyVerdict(
        property=property,
        sae=sae,
        verdict=deciding[worst].verdict or Verdict.PASS,
        message=deciding[worst].message,
        primary_metric=primary_metric,
        exceeds_limit=deciding[worst].exceeds_limit,
        judgements={name: each.judgement for name, each in judged.items()},
        decided_by=worst,
        confidence=1 - 2 * alpha,
        differences=differences,
        strict=strict,
        different_sparsity=sparsity_moved,
        outcomes={name: each.outcomes for name, each in judged.items()},
    )


_ALWAYS = (Verdict.ERROR, Verdict.MISSING, Verdict.FAIL)


@dataclass(frozen=True)
class _JudgedMetric:
    """A judgement and the outcomes that it is made of, one per limit."""

    judgement: Judgement
    outcomes: tuple[LimitOutcome, ...] = ()


def _rank(each: Judgement) -> tuple[int, bool]:
    return (SEVERITY[each.verdict] if each.verdict is not None else -1, each.exceeds_limit)


def _not_measured(
    property: str, primary_metric: str, error: str, sae: str, alpha: float, strict: bool
) -> PropertyVerdict:
    return PropertyVerdict(
        property=property,
        sae=sae,
        verdict=Verdict.ERROR,
        message=messages.could_not_be_measured(property, sae, error),
        primary_metric=primary_metric,
        confidence=1 - 2 * alpha,
        error=error,
        strict=strict,
    )


def _judge_all(case: _Case, metrics: Sequence[Metric], rules: Sequence[Rule]) -> dict[str, _JudgedMetric]:
    declared = {metric.name: metric for metric in metrics}
    estimates = case.measurement.estimates
    judged = {}
    for metric in metrics:
        limits = {**_same_weights(case, metric), **effective(rules, case.property, metric, case.sae)}
        estimate = estimates.get(metric.name)
        if estimate is not None:
            judged[metric.name] = _judge_metric(case, metric, estimate, limits)
        elif limits or case.accepted_entry(metric.name) is not None:
            judged[metric.name] = _missing(case, metric, limits, "was not measured")
    accepted = case.accepted.metrics if case.accepted is not None and case.compare else {}
    for name in sorted(set(accepted) - set(declared) - set(estimates)):
        judged[name] = _missing(case, _undeclared(name), {}, f"is no longer declared by {case.property}")
    for name in sorted(set(estimates) - set(declared)):
        judged[name] = _broken(case, _undeclared(name), {}, "was measured but is not declared", estimates[name])
    return judged


def _undeclared(name: str) -> Metric:
    return Metric(name, "", "reported", "")


def _judgement(
    case: _Case,
    metric: Metric,
    verdict: Verdict | None,
    message: str,
    limits: Mapping[Kind, Rule],
    estimate: Estimate | None = None,
    outcomes: Sequence[LimitOutcome] = (),
    exceeds_limit: bool = False,
    reason: str = "",
) -> _JudgedMetric:
    defined = estimate is not None and not isinstance(estimate, Undefined) and against_limit.is_finite(estimate)
    entry = case.accepted_entry(metric.name)
    on_change = next((each for each in outcomes if not each.rule.limit.hard), None)
    change = on_change.change if on_change is not None else None
    accepted = change.accepted_value if change is not None else None if entry is None else entry.value
    deciding = on_change or (outcomes[0] if outcomes else None)
    failing = change is not None and verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)
    judgement = Judgement(
        value=float(estimate.value) if estimate is not None and defined else None,
        unit=metric.unit,
        se=standard_error(estimate) if estimate is not None and defined else None,
        verdict=verdict,
        exceeds_limit=exceeds_limit,
        limits=tuple(rule.sourced() for rule in limits.values()),
        allowed=on_change.width if on_change is not None else None,
        accepted=accepted if accepted is not None and math.isfinite(accepted) else None,
        change=None if change is None else change.value,
        interval=on_change.interval if on_change is not None else None,
        value_interval=interval(estimate, 2 * case.alpha) if estimate is not None and defined else None,
        detectable=deciding.detectable if deciding is not None else None,
        needed_documents=max((each.needed_documents for each in outcomes if each.needed_documents), default=None),
        documents=messages.worst_documents(change, metric) if failing and change is not None else None,
        reason="" if defined else estimate.reason if isinstance(estimate, Undefined) else reason,
        detail=estimate.detail if isinstance(estimate, Undefined) else "",
        not_comparable=next((each.note for each in outcomes if each.verdict is Verdict.INCOMPARABLE), ""),
        drift=on_change.drift if on_change is not None else None,
        message=f"{case.name(metric.name)} of {case.sae} {message}",
    )
    return _JudgedMetric(judgement, tuple(outcomes))


def _missing(
    case: _Case, metric: Metric, limits: Mapping[Kind, Rule], why: str, estimate: Undefined | None = None
) -> _JudgedMetric:
    entry = case.accepted_entry(metric.name)
    if entry is not None:
        message = f"was accepted at {messages.number(entry.value)} but {why}"
    else:
        message = f"{why}, so its limit {' and '.join(str(rule.limit) for rule in limits.values())} cannot be judged"
    return _judgement(case, metric, Verdict.MISSING, message, limits, estimate, reason=why)


def _broken(
    case: _Case, metric: Metric, limits: Mapping[Kind, Rule], why: str, estimate: Estimate | None = None
) -> _JudgedMetric:
    return _judgement(case, metric, Verdict.ERROR, why, limits, estimate, reason=why)


def _judge_metric(case: _Case, metric: Metric, estimate: Estimate, limits: Mapping[Kind, Rule]) -> _JudgedMetric:
    entry = case.accepted_entry(metric.name)
    if isinstance(estimate, Undefined):
        if entry is not None and limits and not isinstance(entry.estimate, Undefined):
            # Else an SAE that loses what a metric needs (its live features, say) would turn green by it.
            return _missing(case, metric, limits, f"has no value now: {estimate.full_reason}", estimate)
        return _judgement(case, metric, Verdict.UNDEFINED, f"is undefined: {estimate.full_reason}", limits, estimate)
    if not against_limit.is_finite(estimate):
        why = f"is {estimate.value}" if len(case.measurement.clusters) else "was measured on no documents"
        return _broken(case, metric, limits, f"{why}, or rests on values that are not finite", estimate)
    if entry is not None and not _sound(entry):
        return _broken(case, metric, limits, f"was accepted as {entry.value}; accept a finite value", estimate)
    outcomes = [against_limit.against_bound(estimate, rule, case.alpha) for rule in limits.values() if rule.limit.hard]
    texts = [messages.bounded(metric, estimate.value, outcome, case.alpha) for outcome in outcomes]
    known = case.known.get(metric.name) if outcomes else None
    stale = known is not None and all(outcome.verdict is Verdict.PASS for outcome in outcomes)
    if known is not None:
        outcomes, texts = _excused(outcomes, texts, known, stale)
    if "change" in limits and case.compare:
        try:
            outcome, text = _judge_change(case, metric, estimate, limits["change"])
        except UsageError as error:
            return _broken(case, metric, limits, f"cannot be judged: {error}", estimate)
        outcomes, texts = [outcome, *outcomes], [text, *texts]
    if not outcomes:
        text = f"is {messages.number(estimate.value)}, not judged"
        return _judgement(case, metric, None, text, limits, estimate)
    worst = max(range(len(outcomes)), key=lambda row: (*_severity(outcomes[row]), -row))
    decisive = outcomes[worst]
    judged = _judgement(
        case, metric, decisive.verdict, texts[worst], limits, estimate, outcomes, decisive.exceeds_limit
    )
    return replace(judged, judgement=replace(judged.judgement, known_reason=known or "", stale_known_failure=stale))


def _severity(outcome: LimitOutcome) -> tuple[int, bool]:
    return SEVERITY[outcome.verdict], outcome.exceeds_limit


def _same_weights(case: _Case, metric: Metric) -> dict[Kind, Rule]:
    """Return the limit on a metric of weights that are the accepted ones: only the measurement itself can change it."""
    entry, accepted = case.accepted_entry(metric.name), case.accepted
    if not metric.of_weights or entry is None or accepted is None:
        return {}
    if case.differences or entry.version != metric.version:
        return {}
    if not accepted.weights or accepted.weights != case.measurement.weights:
        return {}
    return {"change": Rule(case.property, metric.name, SAME_WEIGHTS, source="unchanged weights")}


def _sound(entry: Accepted) -> bool:
    if isinstance(entry.estimate, Undefined):
        return True
    return against_limit.is_finite(Exact(entry.value)) and (
        entry.estimate is None or against_limit.is_finite(entry.estimate)
    )


def _judge_change(case: _Case, metric: Metric, estimate: Estimate, rule: Rule) -> tuple[LimitOutcome, str]:
    entry, number = case.accepted_entry(metric.name), f"is {messages.number(estimate.value)} {metric.unit}".rstrip()
    if entry is None or isinstance(entry.estimate, Undefined):
        return LimitOutcome(rule, Verdict.NEW), f"{number}; nothing is accepted yet"
    if case.differences:
        why = f"it was accepted with another {', '.join(difference.field for difference in case.differences)}"
    elif entry.version != metric.version:
        why = f"its definition is version {metric.version} now and was version {entry.version} when accepted"
    else:
        why = ""
    if why:
        outcome = LimitOutcome(rule, Verdict.INCOMPARABLE, note=why)
        return outcome, f"cannot be compared with its accepted value: {why}"
    name, clusters = case.name(metric.name), case.measurement.clusters
    change = None
    if entry.estimate is not None:
        change = paired_change(estimate, entry.estimate, clusters, entry.clusters)
    if change is None:
        outcome = against_limit.unpaired(metric, estimate, entry, rule, case.alpha, name)
        return outcome, messages.unpaired(metric, estimate.value, entry, outcome)
    outcome = against_limit.against_accepted(metric, change, entry, rule, case.alpha, name)
    text = messages.paired(metric, change, outcome, case.alpha, len(entry.clusters))
    if case.different_sparsity:
        text += "; at different sparsity"
        if outcome.verdict is Verdict.IMPROVED:
            outcome = replace(outcome, verdict=Verdict.PASS)
    return outcome, text


def _excused(
    outcomes: Sequence[LimitOutcome], texts: Sequence[str], reason: str, stale: bool
) -> tuple[list[LimitOutcome], list[str]]:
    """Apply ``known_failures`` to the hard limits of a metric, and to the sentences about them."""
    if stale:
        text = f"{texts[0]}, but known_failures names it ({reason}): remove this entry"
        return [replace(outcomes[0], verdict=Verdict.FAIL), *outcomes[1:]], [text, *texts[1:]]
    excused = []
    for outcome in outcomes:
        verdict = Verdict.KNOWN if outcome.verdict is Verdict.FAIL else outcome.verdict
        # An undecided failure is no worse than a decided one, which passes.
        exceeds_limit = outcome.exceeds_limit and verdict is not Verdict.INCONCLUSIVE
        excused.append(replace(outcome, verdict=verdict, exceeds_limit=exceeds_limit))
    return excused, [f"{text}; known: {reason}" for text in texts]


def context_differences(now: Mapping[str, Any], accepted: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Return the fields in which two contexts differ, by dotted path; a field that one lacks differs, as None."""
    ours, theirs = _flat(now), _flat(accepted)
    return tuple(
        Difference(field, ours.get(field), theirs.get(field))
        for field in sorted({*ours, *theirs})
        if ours.get(field) != theirs.get(field)
    )


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        flat: dict[str, Any] = {}
        for key, value in tree.items():
            flat.update(_flat(value, f"{path}.{key}" if path else str(key)))
        return flat
    return {path: list(tree) if isinstance(tree, tuple) else tree}


def sparsity_moved(verdict: PropertyVerdict, metric: str = "l0") -> bool:
    """Return True when `sparsity`'s verdict says that L0 exceeds its limit on change, decided or not."""
    outcomes = verdict.outcomes.get(metric, ())
    return any(not outcome.rule.limit.hard and outcome.exceeds_limit for outcome in outcomes)
