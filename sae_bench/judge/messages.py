"""Spell verdicts as sentences. Numbers in, text out; nothing is decided here, and no code reads these sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sae_bench.judge.limits import Limit
from sae_bench.judge.paired_change import Change
from sae_bench.judge.verdicts import (
    ChangedDocuments,
    Difference,
    DocumentChange,
    Judgement,
    LimitOutcome,
    PropertyVerdict,
    Verdict,
)
from sae_bench.measure.measurement import Accepted, Metric, Ratio

_WORDLESS_UNITS = {"", "ratio", "share", "cosine", "slope"}
_SILENT = (Verdict.PASS, None)
_SMALLEST_INFLATION = 1.05
"Inflation of the error of a change that is mentioned: a smaller one would be printed as 1.0."


def number(value: float, digits: int = 3) -> str:
    """Spell ``value`` with ``digits`` significant digits, in plain notation wherever a person would write it so."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"
    return f"{value:.{digits - 1}e}"


def _counted(value: float, unit: str) -> str:
    return number(value) if unit in _WORDLESS_UNITS else f"{number(value)} {unit}"


def _span(interval: tuple[float, float], scale: float, percent: bool, signed: bool) -> str:
    ends = sorted(end * scale for end in interval)
    texts = [("+" if signed and end > 0 else "") + (f"{end:.1f}" if percent else number(end)) for end in ends]
    return f"{texts[0]} to {texts[1]}" + ("%" if percent else "")


def confidence(alpha: float) -> str:
    """Spell the confidence of a two-sided interval with error rate ``alpha`` on either side: ``98%``, ``99.67%``."""
    return f"{100 * (1 - 2 * alpha):.4g}%"


def _allowed(limit: Limit, width: float) -> str:
    if str(limit) == number(width) or (limit.percent and not (limit.absolute or limit.se or limit.noise)):
        return str(limit)
    return f"{limit}, here {number(width)}"


def _decides(outcome: LimitOutcome) -> str:
    if outcome.verdict is not Verdict.INCONCLUSIVE:
        return ""
    if outcome.needed_documents is None:
        return "; not decided"
    return f"; not decided, about {outcome.needed_documents} documents would decide"


def paired(metric: Metric, change: Change, outcome: LimitOutcome, alpha: float, accepted_clusters: int) -> str:
    """Spell a judged change, to follow the metric's name."""
    limit, width = outcome.rule.limit, outcome.width or 0.0
    relative = bool(limit.percent) and change.accepted_value != 0
    scale = 100 / abs(change.accepted_value) if relative else 1.0
    size = abs(change.value) * scale
    if change.value == 0:
        shift = f"unchanged from the accepted {number(change.accepted_value)}"
    else:
        where = "above" if change.value > 0 else "below"
        shift = f"{f'{size:.1f}%' if relative else number(size)} {where} the accepted {number(change.accepted_value)}"
    inside = []
    if outcome.interval is not None and outcome.interval[0] != outcome.interval[1]:
        inside.append(f"{confidence(alpha)} interval {_span(outcome.interval, scale, relative, True)}")
    inside.append(f"allowed {_allowed(limit, width)}")
    over = ""
    if 0 < len(change.clusters) < accepted_clusters:
        over = f", over the {len(change.clusters)} documents that both have"
        if change.inflation >= _SMALLEST_INFLATION and change.se:
            over += f", which vary less than all {accepted_clusters}: errors times {change.inflation:.1f}"
    note = f"; {outcome.drift}" if outcome.drift is not None else ""
    return f"is {_counted(change.now_value, metric.unit)}, {shift} ({'; '.join(inside)}){over}{note}{_decides(outcome)}"


def bounded(metric: Metric, value: float, outcome: LimitOutcome, alpha: float) -> str:
    """Spell a judged hard limit, to follow the metric's name."""
    wrong, right = ("above", "below") if outcome.rule.limit.kind == "max" else ("below", "above")
    side = wrong if outcome.exceeds_limit else right
    where = "at" if value == outcome.rule.limit.bound else side
    span = ""
    if outcome.interval is not None and outcome.interval[0] != outcome.interval[1]:
        span = f" ({confidence(alpha)} interval {_span(outcome.interval, 1.0, False, False)})"
    limit = f"the hard limit {outcome.rule.limit}"
    note = f"; {outcome.note}" if outcome.note else ""
    return f"is {_counted(value, metric.unit)}{span}, {where} {limit}{note}{_decides(outcome)}"


def unpaired(metric: Metric, value: float, accepted: Accepted, outcome: LimitOutcome) -> str:
    """Spell a comparison without pairing, to follow the metric's name."""
    return f"is {_counted(value, metric.unit)}, accepted at {number(accepted.value)}; {outcome.note}{_decides(outcome)}"


def worst_documents(change: Change, metric: Metric, most: int = 3) -> ChangedDocuments | None:
    """Return the documents that a change comes from; None where no document can be compared by itself."""
    if not (isinstance(change.now, Ratio) and isinstance(change.accepted, Ratio)) or metric.better == "reported":
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        moves = change.now.numerator / change.now.denominator - change.accepted.numerator / change.accepted.denominator
    moves = np.where(np.isfinite(moves), moves, 0.0)
    worse = -moves if metric.better == "higher" else np.abs(moves) if metric.better == "target" else moves
    count = int((worse > 0).sum())
    if count == 0:
        return None
    order = np.argsort(-worse, kind="stable")[: min(most, count)]
    largest = tuple(DocumentChange(int(change.clusters[row]), float(moves[row])) for row in order)
    return ChangedDocuments(count, len(change.clusters), largest, either_way=metric.better == "target")


def could_not_be_measured(property: str, sae: str, error: str) -> str:
    """Return the message of a property without any value."""
    return f"{property} of {sae} could not be measured: {error}"


def verdict_lines(verdict: PropertyVerdict) -> tuple[str, ...]:
    """Return the whole text of a property's verdict: the metric that decides first, then all that did not pass."""
    return lines(verdict.message, verdict.decided_by, verdict.judgements, verdict.differences)


def lines(
    message: str, decided_by: str, judgements: Mapping[str, Judgement], differences: Sequence[Difference]
) -> tuple[str, ...]:
    """Return the whole text of a judged property from its fields.

    Args:
        message: of the property.
        decided_by: the metric that ``message`` is about; '' where it is about none.
        judgements: of all metrics.
        differences: between the context now and the accepted one.
    """
    text = [message]
    decisive = judgements.get(decided_by)
    if decisive is not None and decisive.documents is not None:
        text.append(f"  {decisive.documents}")
    text += [f"  {each.message}" for name, each in judgements.items() if name != decided_by and _did_not_pass(each)]
    if any(each.verdict is Verdict.INCOMPARABLE for each in judgements.values()):
        text += [f"  {difference}" for difference in differences]
    return tuple(text)


def _did_not_pass(each: Judgement) -> bool:
    """Return True for what a reader of a failure needs; a reported metric without a value is left to the summary."""
    return each.verdict not in _SILENT and (each.verdict is not Verdict.UNDEFINED or bool(each.limits))
