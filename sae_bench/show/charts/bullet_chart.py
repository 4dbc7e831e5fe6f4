"""Bullet chart of one metric: value, interval and limit in a small picture that needs no script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sae_bench.report.records import MetricResult
from sae_bench.show import cells
from sae_bench.show.charts.figure import bounds

WIDTH, HEIGHT = 150, 20
_EDGE = 6


@dataclass(frozen=True)
class Bullet:
    """Places in pixels, from the left."""

    label: str
    "The numbers as text, for readers of the screen."
    value: float
    limits: tuple[float, ...]
    forbidden: tuple[tuple[float, float], ...]
    "Start and width of the ranges outside the limits."
    accepted: float | None
    interval: tuple[float, float] | None
    "Start and width."
    width: int = WIDTH
    height: int = HEIGHT
    start: int = _EDGE
    end: int = WIDTH - _EDGE
    middle: float = HEIGHT / 2


def bullet(metric: MetricResult) -> Bullet | None:
    """Return the chart; None for a metric without a limit or a value."""
    limits = bounds(metric)
    if metric.value is None or not limits:
        return None
    low, high = _interval(metric)
    spans = [metric.value, *limits, low, high, *([metric.accepted] if metric.accepted is not None else [])]
    left, right = min(spans), max(spans)
    pad = 0.15 * (right - left) or abs(right) * 0.1 or 1.0
    left, right = left - pad, right + pad

    def at(value: float) -> float:
        return round(_EDGE + (WIDTH - 2 * _EDGE) * (value - left) / (right - left), 1)

    return Bullet(
        f"{cells.value(metric)}, {cells.change(metric)} {cells.interval(metric)}, allowed {cells.allowed(metric)}",
        at(metric.value),
        tuple(at(each) for each in sorted(set(limits))),
        tuple((a, round(b - a, 1)) for a, b in _forbidden(metric, limits, at)),
        at(metric.accepted) if metric.accepted is not None else None,
        (at(low), max(round(at(high) - at(low), 1), 1)) if high > low else None,
    )


def _interval(metric: MetricResult) -> tuple[float, float]:
    """Return the interval of the value; where a change was judged, the accepted value and the change's interval."""
    if metric.interval is not None and metric.value is not None and metric.change is not None:
        return metric.value - metric.change + metric.interval[0], metric.value - metric.change + metric.interval[1]
    value = metric.value or 0.0
    return metric.value_interval or (value, value)


def _forbidden(metric: MetricResult, limits: list[float], at: Callable[[float], float]) -> list[tuple[float, float]]:
    """Return the ranges, in pixels, that a limit forbids."""
    kinds = {limit.kind for limit in metric.limits}
    above = "max" in kinds or ("change" in kinds and metric.better != "higher")
    below = "min" in kinds or ("change" in kinds and metric.better != "lower")
    ranges = [(at(max(limits)), float(WIDTH - 1))] if above else []
    ranges += [(1.0, at(min(limits)))] if below else []
    return [(a, b) for a, b in ranges if b > a]
