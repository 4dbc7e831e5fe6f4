"""One metric against its limit as a small inline SVG: value, interval and limit, without a script."""

from __future__ import annotations

import html

from sae_bench.report.records import MetricResult
from sae_bench.show import cells
from sae_bench.show.charts.figure import bounds

WIDTH, HEIGHT = 150, 20
_MIDDLE, _EDGE = HEIGHT / 2, 6


def bullet(metric: MetricResult) -> str:
    """The picture, '' for a metric that has no limit or no value. The part beyond the limit is shaded."""
    limits = bounds(metric)
    if metric.value is None or not limits:
        return ""
    spans = [metric.value, *limits]
    low, high = _interval(metric)
    spans += [low, high] + ([metric.accepted] if metric.accepted is not None else [])
    left, right = min(spans), max(spans)
    pad = 0.15 * (right - left) or abs(right) * 0.1 or 1.0
    left, right = left - pad, right + pad

    def at(value: float) -> float:
        return round(_EDGE + (WIDTH - 2 * _EDGE) * (value - left) / (right - left), 1)

    parts = [f'<rect class="beyond" x="{a}" width="{round(b - a, 1)}" y="2" height="{HEIGHT - 4}"/>'
             for a, b in _beyond(metric, limits, at)]  # fmt: skip
    parts += [_line("axis", _EDGE, WIDTH - _EDGE, _MIDDLE, _MIDDLE)]
    parts += [_line("limit", at(each), at(each), 1, HEIGHT - 1) for each in sorted(set(limits))]
    if metric.accepted is not None:
        parts.append(_line("was", at(metric.accepted), at(metric.accepted), 4, HEIGHT - 4))
    if high > low:
        parts.append(f'<rect class="span" x="{at(low)}" width="{max(round(at(high) - at(low), 1), 1)}" '
                     f'y="{_MIDDLE - 2}" height="4"/>')  # fmt: skip
    parts.append(f'<circle class="dot" cx="{at(metric.value)}" cy="{_MIDDLE}" r="4"/>')
    said = f"{cells.value(metric)}, {cells.change(metric)} {cells.interval(metric)}, allowed {cells.allowed(metric)}"
    return (
        f'<svg class="bullet" role="img" aria-label="{html.escape(said)}" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'
    )


def _interval(metric: MetricResult) -> tuple[float, float]:
    """Of the value: where a change was judged, the accepted value and the change's interval."""
    if metric.interval is not None and metric.value is not None and metric.change is not None:
        return metric.value - metric.change + metric.interval[0], metric.value - metric.change + metric.interval[1]
    value = metric.value or 0.0
    return metric.value_interval or (value, value)


def _beyond(metric: MetricResult, limits: list[float], at: object) -> list[tuple[float, float]]:
    """The ranges (in pixels) that a limit forbids."""
    assert callable(at)
    kinds = {limit.kind for limit in metric.limits}
    above = "max" in kinds or ("change" in kinds and metric.better != "higher")
    below = (
        "min" in kinds
        or ("change" in kinds and metric.better not in ("lower", "higher"))
        or ("change" in kinds and metric.better == "higher")
    )
    ranges = []
    if above:
        ranges.append((at(max(limits)), float(WIDTH - 1)))
    if below:
        ranges.append((1.0, at(min(limits))))
    return [(a, b) for a, b in ranges if b > a]


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'
