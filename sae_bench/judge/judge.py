"""Numbers become an opinion here and nowhere else: a pure function, no file, no terminal, no torch.

`judge` holds one property of one SAE against its limits, its accepted report and its known failures. The table of
verdicts is in `sae_bench.judge.verdicts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sae_bench.errors import UsageError
from sae_bench.judge import against_limit, messages
from sae_bench.judge.limits import Kind, Rule, effective, judged_by_declaration, parse_limit
from sae_bench.judge.paired_change import Change, paired_change
from sae_bench.judge.verdicts import (
    SEVERITY,
    AcceptedProperty,
    Difference,
    Judgement,
    LimitOutcome,
    PropertyVerdict,
    Verdict,
    exit_code,
    session_exit,
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
    "session_exit",
    "sparsity_moved",
]

ALPHA = 0.01
"One-sided error rate of a property, fixed before the run and divided by the number of metrics it declares judged."
SAME_WEIGHTS = "0.00001"
"The change allowed to a metric that follows from the weights alone, as long as the accepted ones are measured."


@dataclass(frozen=True)
class _Case:
    """What the judgement of every metric of a property shares."""

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

    def held(self, metric: str) -> Accepted | None:
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
    """The verdict on one property of one SAE.

    Args:
        property: its name.
        metrics: all it declares; error rates depend on these, not on what was selected or measured.
        headline: the metric that speaks for the property when all is well.
        measurement: what was found, or the text of the error that prevented it.
        accepted: the accepted report's entry; None when there is none.
        sae: the id that rules and messages name.
        rules: limits from every source; those that don't concern this SAE are ignored.
        context: what decides comparability now, JSON values.
        known_failures: ``property.metric`` (or the metric alone) to the reason its hard limit is known to fail.
        compare: False judges hard limits only and looks at no accepted value.
        strict: whether NEW and undecided metrics inside their limits count as not judged.
        sparsity_moved: L0 is beyond its limit: nothing counts as improved.
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
    deciding = [each for each in judged if each.limit or each.metric == primary_metric or each.verdict in _ALWAYS]
    worst = max(deciding or judged, key=lambda each: (_rank(each), each.metric == primary_metric))
    verdict = worst.verdict or Verdict.PASS
    return PropertyVerdict(
        property=property,
        sae=sae,
        verdict=verdict,
        exceeds_limit=worst.exceeds_limit,
        primary_metric=primary_metric,
        judgements=tuple(judged),
        lines=tuple(_lines(case, metrics, judged, worst)),
        confidence=1 - 2 * alpha,
        differences=differences,
        strict=strict,
        different_sparsity=sparsity_moved,
    )


_ALWAYS = (Verdict.ERROR, Verdict.MISSING, Verdict.FAIL)


def _rank(each: Judgement) -> tuple[int, bool]:
    return (SEVERITY[each.verdict] if each.verdict is not None else -1, each.exceeds_limit)


def _not_measured(
    property: str, primary_metric: str, why: str, sae: str, alpha: float, strict: bool
) -> PropertyVerdict:
    message = f"{property} of {sae} could not be measured: {why}"
    return PropertyVerdict(
        property, sae, Verdict.ERROR, False, primary_metric, (), (message,), 1 - 2 * alpha, strict=strict
    )


def _judge_all(case: _Case, metrics: Sequence[Metric], rules: Sequence[Rule]) -> list[Judgement]:
    declared = {metric.name: metric for metric in metrics}
    found = case.measurement.estimates
    judged = []
    for metric in metrics:
        limits = {**_same_weights(case, metric), **effective(rules, case.property, metric, case.sae)}
        estimate = found.get(metric.name)
        if estimate is not None:
            judged.append(_judge_metric(case, metric, estimate, limits))
        elif limits or case.held(metric.name) is not None:
            judged.append(_missing(case, metric, limits, "was not measured"))
    accepted = case.accepted.metrics if case.accepted is not None and case.compare else {}
    for name in sorted(set(accepted) - set(declared)):
        judged.append(_missing(case, Metric(name, "", "reported", ""), {}, f"is no longer declared by {case.property}"))
    for name in sorted(set(found) - set(declared)):
        judged.append(_broken(case, Metric(name, "", "reported", ""), {}, "was measured but is not declared"))
    return judged


def _judgement(
    case: _Case,
    metric: Metric,
    verdict: Verdict | None,
    message: str,
    limits: Mapping[Kind, Rule],
    estimate: Estimate | None = None,
    outcomes: Sequence[LimitOutcome] = (),
    change: Change | None = None,
    exceeds_limit: bool = False,
) -> Judgement:
    defined = estimate is not None and not isinstance(estimate, Undefined) and against_limit.is_finite(estimate)
    held = case.held(metric.name)
    accepted = change.accepted_value if change is not None else None if held is None else held.value
    on_change = next((each for each in outcomes if not each.rule.limit.hard), None)
    deciding = on_change or (outcomes[0] if outcomes else None)
    return Judgement(
        metric=metric.name,
        verdict=verdict,
        value=estimate.value if estimate is not None and defined else None,
        unit=metric.unit,
        se=standard_error(estimate) if estimate is not None and defined else None,
        interval=interval(estimate, 2 * case.alpha) if estimate is not None and defined else None,
        limit="; ".join(str(rule.limit) for rule in limits.values()),
        limit_from="; ".join(dict.fromkeys(rule.source for rule in limits.values())),
        accepted=accepted if accepted is not None and accepted == accepted else None,
        change=None if change is None else change.value,
        change_interval=on_change.interval if on_change is not None else None,
        detectable=deciding.detectable if deciding is not None else None,
        needed_documents=max((each.needed for each in outcomes if each.needed), default=None),
        exceeds_limit=exceeds_limit,
        message=f"{case.name(metric.name)} of {case.sae} {message}",
        outcomes=tuple(outcomes),
        paired=change,
    )


def _missing(case: _Case, metric: Metric, limits: Mapping[Kind, Rule], why: str) -> Judgement:
    held = case.held(metric.name)
    before = f"was accepted at {messages.number(held.value)} but " if held is not None else ""
    told = (
        ""
        if held is not None
        else f", so its limit {'; '.join(str(rule.limit) for rule in limits.values())} cannot be judged"
    )
    return _judgement(case, metric, Verdict.MISSING, before + why + told, limits)


def _broken(
    case: _Case, metric: Metric, limits: Mapping[Kind, Rule], why: str, estimate: Estimate | None = None
) -> Judgement:
    return _judgement(case, metric, Verdict.ERROR, why, limits, estimate)


def _judge_metric(case: _Case, metric: Metric, estimate: Estimate, limits: Mapping[Kind, Rule]) -> Judgement:
    held = case.held(metric.name)
    if isinstance(estimate, Undefined):
        if held is not None and limits and not isinstance(held.estimate, Undefined):
            # Else an SAE that loses what a metric needs (its live features, say) would turn green by it.
            return _missing(case, metric, limits, f"has no value now: {estimate.reason}")
        return _judgement(case, metric, Verdict.UNDEFINED, f"is undefined: {estimate.reason}", limits, estimate)
    if not against_limit.is_finite(estimate):
        why = f"is {estimate.value}" if len(case.measurement.clusters) else "was measured on no documents"
        return _broken(case, metric, limits, f"{why}, or rests on values that are not finite", estimate)
    if held is not None and not _sound(held):
        return _broken(case, metric, limits, f"was accepted as {held.value}; accept a finite value", estimate)
    hard = [against_limit.against_bound(estimate, rule, case.alpha) for rule in limits.values() if rule.limit.hard]
    texts = [messages.bounded(metric, estimate.value, outcome, case.alpha) for outcome in hard]
    hard, texts = _excuse(case, metric, hard, texts)
    change = None
    if "change" in limits and case.compare:
        try:
            outcome, change, text = _judge_change(case, metric, estimate, limits["change"])
        except UsageError as error:
            return _broken(case, metric, limits, f"cannot be judged: {error}", estimate)
        hard, texts = [outcome, *hard], [text, *texts]
    if not hard:
        text = f"is {messages.number(estimate.value)}, not judged"
        return _judgement(case, metric, None, text, limits, estimate)
    worst = max(range(len(hard)), key=lambda row: (SEVERITY[hard[row].verdict], hard[row].exceeds_limit, -row))
    verdict = hard[worst].verdict
    return _judgement(case, metric, verdict, texts[worst], limits, estimate, hard, change, hard[worst].exceeds_limit)


def _same_weights(case: _Case, metric: Metric) -> dict[Kind, Rule]:
    """A limit on what follows from weights that are the accepted ones: only the measurement itself can change it."""
    held, accepted = case.held(metric.name), case.accepted
    if not metric.of_weights or held is None or accepted is None or case.differences or held.version != metric.version:
        return {}
    if not accepted.weights or accepted.weights != case.measurement.weights:
        return {}
    return {"change": Rule(case.property, metric.name, parse_limit(SAME_WEIGHTS))}


def _sound(held: Accepted) -> bool:
    if isinstance(held.estimate, Undefined):
        return True
    return against_limit.is_finite(Exact(held.value)) and (
        held.estimate is None or against_limit.is_finite(held.estimate)
    )


def _judge_change(
    case: _Case, metric: Metric, estimate: Estimate, rule: Rule
) -> tuple[LimitOutcome, Change | None, str]:
    held, number = case.held(metric.name), f"is {messages.number(estimate.value)} {metric.unit}".rstrip()
    if held is None or isinstance(held.estimate, Undefined):
        return LimitOutcome(rule, Verdict.NEW), None, f"{number}; nothing is accepted yet"
    if case.differences:
        why = f"of another {', '.join(difference.field for difference in case.differences)}"
    elif held.version != metric.version:
        why = f"its definition is version {metric.version} now and was version {held.version} when accepted"
    else:
        why = ""
    if why:
        return LimitOutcome(rule, Verdict.INCOMPARABLE), None, f"cannot be compared with its accepted value: {why}"
    name, clusters = case.name(metric.name), case.measurement.clusters
    change = None
    if held.estimate is not None:
        change = paired_change(estimate, held.estimate, clusters, held.clusters)
    if change is None:
        outcome = against_limit.unpaired(metric, estimate, held, rule, case.alpha, name)
        return outcome, None, messages.unpaired(metric, estimate.value, held, outcome)
    outcome = against_limit.against_accepted(metric, change, held, rule, case.alpha, name)
    text = messages.paired(metric, change, outcome, case.alpha, len(held.clusters))
    if case.different_sparsity:
        text += "; at different sparsity"
        if outcome.verdict is Verdict.IMPROVED:
            outcome = replace(outcome, verdict=Verdict.PASS)
    return outcome, change, text


def _excuse(
    case: _Case, metric: Metric, hard: list[LimitOutcome], texts: list[str]
) -> tuple[list[LimitOutcome], list[str]]:
    """Apply ``known_failures`` to the hard limits of a metric."""
    reason = case.known.get(metric.name)
    if reason is None or not hard:
        return hard, texts
    if all(outcome.verdict is Verdict.PASS for outcome in hard):
        stale = replace(hard[0], verdict=Verdict.FAIL, note="stale entry in known_failures")
        told = f"{texts[0]}, and yet known_failures names it ({reason}): remove this entry"
        return [stale, *hard[1:]], [told, *texts[1:]]
    excused = []
    for outcome in hard:
        verdict = Verdict.KNOWN if outcome.verdict is Verdict.FAIL else outcome.verdict
        # An undecided failure is no worse than a decided one, which passes.
        exceeds_limit = outcome.exceeds_limit and verdict is not Verdict.INCONCLUSIVE
        excused.append(replace(outcome, verdict=verdict, exceeds_limit=exceeds_limit))
    return excused, [f"{text}; known: {reason}" for text in texts]


def _lines(case: _Case, metrics: Sequence[Metric], judged: Sequence[Judgement], worst: Judgement) -> list[str]:
    text = messages.lines(judged, worst, case.differences)
    if worst.paired is not None and worst.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        metric = next(metric for metric in metrics if metric.name == worst.metric)
        where = messages.worst_documents(worst.paired, metric)
        text[1:1] = [f"  {where}"] if where else []
    return text


def context_differences(now: Mapping[str, Any], accepted: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The fields in which two contexts differ, by dotted path; a field that one lacks differs, as None."""
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
    """Whether `sparsity`'s verdict says that L0 left its limit on change, decided or not."""
    judgement = verdict.by_metric.get(metric)
    if judgement is None:
        return False
    return any(not outcome.rule.limit.hard and outcome.exceeds_limit for outcome in judgement.outcomes)
