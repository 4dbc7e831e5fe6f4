"""Quality against sparsity over SAEs: what is better in both beats the others, and the front is what nothing beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sae_bench.report.records import MetricResult, SAEResult
from sae_bench.report.report import Report
from sae_bench.show.charts.figure import SYMBOLS, Figure, axis, label, shorten


def architecture(sae: SAEResult) -> str:
    """Return the SAE's architecture, from its tags or its own config."""
    if name := sae.provenance.get("architecture"):
        return str(name)
    tags = [tag.partition(":")[2] for tag in sae.tags if tag.startswith("architecture:")]
    return tags[0] if tags else "unknown architecture"


QUALITIES = (("kl_gap", "kl_sae"), ("reconstruction", "explained_variance"), ("reconstruction", "fvu"))


def pareto(report: Report) -> list[Figure]:
    """Draw quality against L0 over SAEs, with the front of those that nothing beats in both; at most two pictures."""
    figures = [chart for property, metric in QUALITIES if (chart := _pareto(report, property, metric)) is not None]
    return figures[:2]


def _metric(sae: SAEResult, property: str, metric: str) -> MetricResult | None:
    result = sae.properties.get(property)
    value = result.metrics.get(metric) if result is not None else None
    return value if value is not None and value.value is not None else None


def _pareto(report: Report, property: str, metric: str) -> Figure | None:
    points: dict[str, tuple[MetricResult, MetricResult]] = {}
    for name, sae in sorted(report.saes.items()):
        x, y = _metric(sae, "sparsity", "l0"), _metric(sae, property, metric)
        if x is not None and y is not None:
            points[name] = (x, y)
    if not points:
        return None
    better = next(iter(points.values()))[1].better
    unit = next(iter(points.values()))[1].unit
    kinds: dict[str, list[str]] = {}
    for name in points:
        kinds.setdefault(architecture(report.saes[name]), []).append(name)
    sides = _sides({name: (x.value or 0.0, y.value or 0.0) for name, (x, y) in points.items()})
    data = [_kind(kind, index, names, points, sides) for index, (kind, names) in enumerate(kinds.items())]
    front = _front({name: (x.value or 0.0, y.value or 0.0) for name, (x, y) in points.items()}, better)
    if len(front) > 1:
        data.append({"type": "scatter", "mode": "lines", "x": [shorten(each[0]) for each in front],
                     "y": [shorten(each[1]) for each in front], "name": "not beaten",
                     "line": {"color": "$ink", "dash": "dot", "width": 1}, "hoverinfo": "skip"})  # fmt: skip
    values = [y.value or 0.0 for _, y in points.values()]
    log = min(values) > 0 and max(values) / min(values) > 10
    layout = {
        "xaxis": axis("L0, features that fire on a token"),
        "yaxis": axis(f"{metric}, {unit}" if unit else metric, log=log),
    }
    good = "lower" if better == "lower" else "higher"
    caption = (
        f"{good.capitalize()} and further left is better; what no SAE beats in both is joined. Bars are intervals."
    )
    return Figure(f"{property}.{metric} against L0", data, layout, caption, wide=len(points) > 12)


def _kind(
    kind: str,
    index: int,
    names: Sequence[str],
    points: Mapping[str, tuple[MetricResult, MetricResult]],
    sides: Mapping[str, str],
) -> dict[str, object]:
    def bars(which: int) -> dict[str, object]:
        metrics = [points[name][which] for name in names]
        spans = [metric.value_interval or (metric.value or 0.0,) * 2 for metric in metrics]
        values = [metric.value or 0.0 for metric in metrics]
        return {"type": "data", "symmetric": False, "thickness": 1, "color": "$faint",
                "array": [shorten(max(span[1] - value, 0)) for span, value in zip(spans, values, strict=True)],
                "arrayminus": [shorten(max(value - span[0], 0)) for span, value in zip(spans, values, strict=True)],
                }  # fmt: skip

    return {
        "type": "scatter", "mode": "markers+text" if len(points) <= 12 else "markers", "name": label(kind),
        "x": [shorten(points[name][0].value or 0.0) for name in names],
        "y": [shorten(points[name][1].value or 0.0) for name in names],
        "text": [label(name.rpartition("/")[2]) for name in names], "textposition": [sides[name] for name in names],
        "customdata": [label(name) for name in names], "hovertemplate": "%{customdata}: L0 %{x}, %{y}",
        "marker": {"size": 10, "symbol": SYMBOLS[index % 8], "color": f"${index % 8}"},
        "error_x": bars(0), "error_y": bars(1), "cliponaxis": False,
    }  # fmt: skip


def _sides(points: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """Return the sides on which labels of points are placed."""
    spans = [max(column) - min(column) or 1.0 for column in zip(*points.values(), strict=True)]

    def distance(one: str, other: str) -> float:
        return sum(((a - b) / span) ** 2 for a, b, span in zip(points[one], points[other], spans, strict=True))

    sides = {}
    for name, (_, y) in points.items():
        nearest = min((each for each in points if each != name), key=lambda each: distance(name, each), default=name)
        sides[name] = "bottom center" if y < points[nearest][1] else "top center"
    return sides


def _front(points: Mapping[str, tuple[float, float]], better: str) -> list[tuple[float, float]]:
    """Return points that no other beats in both, by growing L0."""
    sign = 1 if better == "lower" else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points.values(), key=lambda each: (each[0], sign * each[1])):
        if not front or sign * y < sign * front[-1][1]:
            front.append((x, y))
    return front
