"""The sentences that say what a verdict rests on. Numbers in, text out; nothing is decided here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sae_bench.judge.limits import Limit
from sae_bench.judge.paired_change import Change
from sae_bench.judge.verdicts import Difference, Judgement, LimitOutcome, Verdict
from sae_bench.measure.measurement import Accepted, Metric, Ratio

_WORDLESS_UNITS = {"", "ratio", "share", "cosine", "slope"}
_WORTH_A_LINE = (Verdict.PASS, None)
_WORTH_TELLING = 1.05
"Inflation of the error of a change: one that would be printed as 1.0 is not told."


def number(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, in plain notation wherever a person would write it so."""
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
    """How a two-sided interval with error rate ``alpha`` on either side is called: ``98%``, ``99.67%``."""
    return f"{100 * (1 - 2 * alpha):.4g}%"


def _allowed(limit: Limit, width: float) -> str:
    if str(limit) == number(width) or (limit.percent and not (limit.absolute or limit.se or limit.noise)):
        return str(limit)
    return f"{limit}, here {number(width)}"


def _decides(outcome: LimitOutcome) -> str:
    if outcome.verdict is not Verdict.INCONCLUSIVE:
        return ""
    if outcome.needed is None:
        return "; not decided"
    return f"; not decided, about {outcome.needed} documents would decide"


def paired(metric: Metric, change: Change, outcome: LimitOutcome, alpha: float, accepted_clusters: int) -> str:
    """What follows the name when a change was judged."""
    limit, width = outcome.rule.limit, outcome.width or 0.0
    relative = bool(limit.percent) and change.accepted_value != 0
    scale = 100 / abs(change.accepted_value) if relative else 1.0
    size = abs(change.value) * scale
    if change.value == 0:
        moved = f"unchanged from the accepted {number(change.accepted_value)}"
    else:
        where = "above" if change.value > 0 else "below"
        moved = f"{f'{size:.1f}%' if relative else number(size)} {where} the accepted {number(change.accepted_value)}"
    inside = []
    if outcome.interval is not None and outcome.interval[0] != outcome.interval[1]:
        inside.append(f"{confidence(alpha)} interval {_span(outcome.interval, scale, relative, True)}")
    inside.append(f"allowed {_allowed(limit, width)}")
    over = ""
    if 0 < len(change.clusters) < accepted_clusters:
        over = f", over the {len(change.clusters)} documents that both have"
        if change.inflation >= _WORTH_TELLING and change.se:
            over += f", which vary less than all {accepted_clusters}: errors times {change.inflation:.1f}"
    note = f"; {outcome.note}" if outcome.note else ""
    return f"is {_counted(change.now_value, metric.unit)}, {moved} ({'; '.join(inside)}){over}{note}{_decides(outcome)}"


def bounded(metric: Metric, value: float, outcome: LimitOutcome, alpha: float) -> str:
    """What follows the name when a hard limit was judged."""
    wrong, right = ("above", "below") if outcome.rule.limit.kind == "max" else ("below", "above")
    side = wrong if outcome.exceeds_limit else right
    where = "at" if value == outcome.rule.limit.bound else side
    span = ""
    if outcome.interval is not None and outcome.interval[0] != outcome.interval[1]:
        span = f" ({confidence(alpha)} interval {_span(outcome.interval, 1.0, False, False)})"
    limit = f"the hard limit {outcome.rule.limit}"
    note = f"; {outcome.note}" if outcome.note else ""
    return f"is {_counted(value, metric.unit)}{span}, {where} {limit}{note}{_decides(outcome)}"


def unpaired(metric: Metric, value: float, held: Accepted, outcome: LimitOutcome) -> str:
    """What follows the name when there was an accepted value but no pairing."""
    return f"is {_counted(value, metric.unit)}, accepted at {number(held.value)}; {outcome.note}{_decides(outcome)}"


def worst_documents(change: Change, metric: Metric, most: int = 3) -> str | None:
    """Which documents a change comes from: ``97 of 128 documents are worse, the worst three: #17 (+0.21) ...``."""
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
    named = ", ".join(f"#{change.clusters[row]} ({moves[row]:+.2g})" for row in order)
    verb = "moved" if metric.better == "target" else "are worse"
    return f"{count} of {len(change.clusters)} documents {verb}, most of all {named}"


def _worth_a_line(each: Judgement) -> bool:
    """What a reader of a failure needs; that a merely reported metric is undefined stands in the summary."""
    return each.verdict not in _WORTH_A_LINE and (each.verdict is not Verdict.UNDEFINED or bool(each.limit))


def lines(judgements: Sequence[Judgement], worst: Judgement, differences: Sequence[Difference]) -> list[str]:
    """The whole text of a property's verdict: worst metric first, then all that is not PASS."""
    text = [worst.message]
    text += [f"  {each.message}" for each in judgements if each is not worst and _worth_a_line(each)]
    if differences and any(each.verdict is Verdict.INCOMPARABLE for each in judgements):
        text += [f"  {difference}" for difference in differences]
    return text
