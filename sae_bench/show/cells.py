"""Spell a metric's numbers for tables, whatever the output: one cell each, '' where there is nothing."""

from __future__ import annotations

from collections.abc import Sequence

from sae_bench.report.records import MetricResult, Verdict, exit_code, number

_WORDLESS = {"", "ratio", "share", "cosine", "slope"}
_MARKS = {"lower": "↓", "higher": "↑", "target": "→", "reported": "·"}


def needs_attention(verdict: Verdict | None, exceeds_limit: bool) -> bool:
    """Return True when the verdict fails its pytest item."""
    return verdict is not None and exit_code(verdict, exceeds_limit, strict=False) != 0


def verdict_word(verdict: Verdict | None, exceeds_limit: bool = False) -> str:
    """Spell the verdict, in upper case only where somebody has to do something."""
    if verdict is None:
        return ""
    return verdict.value if needs_attention(verdict, exceeds_limit) else verdict.value.lower()


def unjudged_word(metric: MetricResult | None) -> str:
    """Spell why a metric has no verdict: it is only reported, or nothing was compared."""
    return "not compared" if metric is not None and metric.limits else "reported"


def direction(metric: MetricResult) -> str:
    """Spell the good direction: ``↓``, ``↑``, ``→ 1``, ``·``."""
    if metric.better == "target" and metric.target is not None:
        return f"→ {number(metric.target, 2)}"
    return _MARKS.get(metric.better, "·")


def unit(metric: MetricResult) -> str:
    """Return the unit, or '' for a pure number."""
    return "" if metric.unit in _WORDLESS else metric.unit


def plain(metric: MetricResult) -> str:
    """Spell the value alone, ``0.0449``; ``-`` where there is none."""
    return "-" if metric.value is None else number(metric.value)


def value(metric: MetricResult) -> str:
    """Spell the value with its standard error, ``0.0449 ±.0013``; ``-`` where there is none."""
    text = plain(metric)
    return f"{text} ±{number(metric.se, 2).removeprefix('0')}" if metric.se else text


def accepted(metric: MetricResult) -> str:
    """Spell the accepted value."""
    return "" if metric.accepted is None else number(metric.accepted)


def _relative(metric: MetricResult) -> float | None:
    """Return the factor that turns a change into percent; None where it is read in the metric's unit."""
    percent = any(limit.percent for limit in metric.limits)
    return 100 / abs(metric.accepted) if percent and metric.accepted else None


def _signed(amount: float, percent: bool) -> str:
    if percent:
        return f"{amount:+.1f}%"
    return ("+" if amount > 0 else "") + number(amount)


def change(metric: MetricResult) -> str:
    """Spell the change in the limit's unit, ``+9.0%`` or ``+0.019``; ``~`` marks one whose interval contains 0."""
    if metric.change is None:
        return ""
    if metric.change == 0:
        return "0"
    scale = _relative(metric)
    unsure = metric.interval is not None and metric.interval[0] <= 0 <= metric.interval[1]
    return ("~" if unsure else "") + _signed(metric.change * (scale or 1.0), scale is not None)


def _of_change(interval: Sequence[float], scale: float | None) -> str:
    low, high = sorted(end * (scale or 1.0) for end in interval)
    if scale is not None:
        return f"[{low:+.1f}, {high:+.1f}]"
    return f"[{', '.join(('+' if end > 0 else '') + number(end) for end in (low, high))}]"


def interval(metric: MetricResult) -> str:
    """Spell the interval of the change, ``[-0.1, +0.3]``, else of a value with a hard limit, ``0.1 to 0.3``.

    Empty for exact values.
    """
    if metric.interval is not None and metric.interval[0] != metric.interval[1]:
        return _of_change(metric.interval, _relative(metric))
    hard = any(limit.hard for limit in metric.limits)
    return value_interval(metric) if metric.interval is None and hard else ""


def value_interval(metric: MetricResult) -> str:
    """Spell the interval of the value, whatever its limits are."""
    span = metric.value_interval
    return f"{number(span[0])} to {number(span[1])}" if span is not None and span[0] != span[1] else ""


def allowed(metric: MetricResult) -> str:
    """Spell the limits: ``≤ +5%``, ``≥ -1%``, ``±0.01`` for changes; ``≤ 0.25``, ``0.95 to 1.05`` for the value."""
    limits = metric.limits
    bounds = {limit.kind: f"{limit.bound:.4g}" for limit in limits if limit.hard}
    texts = []
    if len(bounds) == 2:
        texts.append(f"{bounds['min']} to {bounds['max']}")
    else:
        texts += [f"{'≤' if kind == 'max' else '≥'} {bound}" for kind, bound in bounds.items()]
    for limit in limits:
        if limit.hard:
            continue
        if metric.better == "lower":
            texts.append(f"≤ +{limit}")
        elif metric.better == "higher":
            texts.append(f"≥ -{limit}")
        else:
            texts.append(f"±{limit}")
    return ", ".join(texts)


def documents(metric: MetricResult) -> str:
    """Spell the number of documents that would decide an inconclusive metric."""
    if metric.verdict is not Verdict.INCONCLUSIVE:
        return ""
    if metric.needed_documents is None:
        return "not decided; the number of documents that would decide is not known"
    return f"about {metric.needed_documents} documents would decide"
