"""Compare one metric with one limit: intervals in, a `LimitOutcome` out. Error rates are given, none is chosen here."""

from __future__ import annotations

import math

from sae_bench.judge.limits import Limit, Rule, width
from sae_bench.judge.paired_change import Change, same_number
from sae_bench.judge.verdicts import Drift, LimitOutcome, Verdict
from sae_bench.measure.measurement import Accepted, Estimate, Exact, Influence, Metric, Summary, Undefined
from sae_bench.measure.uncertainty import (
    NUMERIC_FLOOR,
    degrees_of_freedom,
    detectable_change,
    documents_needed,
    interval,
    standard_error,
    t_quantile,
)

_TOO_FEW = "its error cannot be estimated from fewer than two documents"


def against_bound(estimate: Estimate, rule: Rule, alpha: float) -> LimitOutcome:
    """Judge the value against a hard ``max`` or ``min``; ``alpha`` is the one-sided error rate."""
    bound = rule.limit.bound
    span = interval(estimate, 2 * alpha)
    if span is None:
        return LimitOutcome(rule, Verdict.ERROR, width=bound, note=_TOO_FEW)
    low, high = span if rule.limit.kind == "max" else (-span[1], -span[0])
    value, border = (estimate.value, bound) if rule.limit.kind == "max" else (-estimate.value, -bound)
    verdict = Verdict.PASS if high <= border else Verdict.FAIL if low > border else Verdict.INCONCLUSIVE
    error, dof = standard_error(estimate), degrees_of_freedom(estimate)
    needed_documents = None
    if verdict is Verdict.INCONCLUSIVE and error is not None:
        needed_documents = documents_needed(value - border, error, alpha, dof + 1)
    reach = detectable_change(error, alpha, dof) if error is not None else None
    return LimitOutcome(rule, verdict, value > border, bound, span, reach, needed_documents)


def against_accepted(
    metric: Metric, change: Change, accepted: Accepted, rule: Rule, alpha: float, name: str
) -> LimitOutcome:
    """Judge the paired change against a limit on change, and the drift since the anchor against twice that limit.

    Raises `UsageError` for a percentage of an accepted 0 and for a noise that was never measured.
    """
    allowed = width(rule.limit, change.accepted_value, change.se, accepted.noise, name)
    if change.exact:
        error, reach, slack = None, 0.0, NUMERIC_FLOOR * abs(change.accepted_value)
    else:
        relative = rule.limit.relative
        error = change.se_against(relative, allowed - relative * abs(change.accepted_value))
        if error is None:
            return LimitOutcome(rule, Verdict.ERROR, width=allowed, note=_TOO_FEW, change=change)
        reach, slack = t_quantile(alpha, change.dof) * error, 0.0
    verdict = _side(metric, change.value, reach, allowed + slack, change.accepted_value)
    drift = None if verdict is Verdict.FAIL else _drift(metric, change.value, reach, accepted, rule.limit, allowed)
    if drift is not None:
        verdict = Verdict.FAIL
    gap = abs(_badness(metric, change.value) - allowed)
    needed_documents = None
    if verdict is Verdict.INCONCLUSIVE and error is not None:
        needed_documents = documents_needed(gap, error, alpha, len(change.clusters))
    return LimitOutcome(
        rule,
        verdict,
        exceeds_limit=verdict is not Verdict.IMPROVED and _badness(metric, change.value) > allowed + slack,
        width=allowed,
        interval=(change.value - reach, change.value + reach),
        detectable=allowed + (detectable_change(error, alpha, change.dof) if error is not None else 0.0),
        needed_documents=needed_documents,
        drift=drift,
        change=change,
    )


def _badness(metric: Metric, change: float) -> float:
    """Return the change with worse as positive; a metric without a good direction is worse either way."""
    return change if metric.better == "lower" else -change if metric.better == "higher" else abs(change)


def _side(metric: Metric, change: float, reach: float, allowed: float, accepted: float) -> Verdict:
    worse = _badness(metric, change)
    if worse + reach <= allowed:
        directed = metric.better in ("lower", "higher")
        return Verdict.IMPROVED if directed and worse + reach < -allowed else Verdict.PASS
    if worse - reach > allowed:
        return Verdict.IMPROVED if _nearer(metric, change, reach, accepted) else Verdict.FAIL
    return Verdict.INCONCLUSIVE


def _nearer(metric: Metric, change: float, reach: float, accepted: float) -> bool:
    """Return True when the whole interval lies nearer to the metric's fixed target than the accepted value did."""
    if metric.better != "target" or metric.target is None:
        return False
    before = abs(accepted - metric.target)
    return all(abs(accepted + end - metric.target) < before for end in (change - reach, change + reach))


def _drift(
    metric: Metric, change: float, reach: float, accepted: Accepted, limit: Limit, allowed: float
) -> Drift | None:
    """Return the drift where the sum of all accepted steps fails, else None."""
    if accepted.anchor is None:
        return None
    drift = accepted.value - accepted.anchor + change
    if accepted.anchor != 0:
        # Only the percentage is relative to the value that the limit is applied to.
        allowed += limit.relative * (abs(accepted.anchor) - abs(accepted.value))
    if _badness(metric, drift) - reach <= 2 * allowed + NUMERIC_FLOOR * abs(accepted.anchor):
        return None
    if _nearer(metric, drift, reach, accepted.anchor):
        return None
    return Drift(accepted.anchor, drift, 2 * allowed)


def unpaired(metric: Metric, estimate: Estimate, entry: Accepted, rule: Rule, alpha: float, name: str) -> LimitOutcome:
    """Judge a value that cannot be paired: never FAIL, and it exceeds its limit only when that is decided.

    Fitted quantities have no value on a subset of documents. Over other documents than the accepted ones they are
    INCONCLUSIVE, and the accepted report's documents would decide. Errors of both sides are added, which is too much
    for nested documents and so on the quiet side. Where the report that is judged keeps no values per document either,
    the same number is the same, and another one cannot be judged.
    """
    accepted = entry.estimate
    if isinstance(estimate, Summary) and same_number(estimate.value, entry.value):
        return LimitOutcome(rule, Verdict.PASS, note="unchanged")
    if accepted is None or isinstance(estimate, Summary):
        which = "accepted report" if accepted is None else "report that is judged"
        return LimitOutcome(rule, Verdict.INCOMPARABLE, note=f"the {which} keeps no values per document of this metric")
    if not (isinstance(estimate, Influence) and isinstance(accepted, Influence)):
        other = type(estimate) is not type(accepted)
        why = "its kind of evidence changed" if other else "the two reports share no document"
        return LimitOutcome(rule, Verdict.INCOMPARABLE, note=why)
    errors = standard_error(estimate), standard_error(accepted)
    if errors[0] is None or errors[1] is None:
        return LimitOutcome(rule, Verdict.ERROR, note=_TOO_FEW)
    error = math.hypot(errors[0], errors[1])
    allowed = width(rule.limit, entry.value, error, entry.noise, name)
    dof = min(degrees_of_freedom(estimate), degrees_of_freedom(accepted))
    change = estimate.value - entry.value
    reach = t_quantile(alpha, dof) * error
    decided = _badness(metric, change) - reach > allowed and not _nearer(metric, change, reach, entry.value)
    here, there = len(estimate.influence), len(accepted.influence)
    note = f"measured over {here} documents and accepted over {there}, but comparable over the same documents only"
    span = (change - reach, change + reach)
    needed_documents = there if there > here else None
    return LimitOutcome(
        rule, Verdict.INCONCLUSIVE, decided, allowed, span, needed_documents=needed_documents, note=note
    )


def is_finite(estimate: Estimate) -> bool:
    """Return True when the value and all that its error is made of are finite; an undefined value is not looked at."""
    if isinstance(estimate, Undefined):
        return True
    if not math.isfinite(estimate.value):
        return False
    if isinstance(estimate, Exact | Summary):
        return True
    return math.isfinite(math.fsum(estimate.influence)) and (
        not isinstance(estimate, Influence) or estimate.second is None or math.isfinite(math.fsum(estimate.second))
    )
