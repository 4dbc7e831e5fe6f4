"""All pictures of a property, the most telling first: those by arm, those of known series, those of any series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sae_bench.measure.measurement import Series
from sae_bench.measure.shared import packed_text
from sae_bench.report.records import MetricResult, PropertyResult
from sae_bench.show.charts import conditions, kl_gap_charts
from sae_bench.show.charts.figure import Figure, axis, shorten
from sae_bench.show.charts.series_charts import marked, picture

_SPECIAL: Mapping[str, tuple[Callable[[Series], Figure | None], ...]] = {
    "kl_tokens": (kl_gap_charts.tokens,),
    "kl_types": (kl_gap_charts.funnel, kl_gap_charts.by_frequency),
    "kl_documents": (kl_gap_charts.ranked,),
    "nn_quantiles": (conditions.near,),
    "features": (conditions.steered,),
}
_SCALES = {"t_star": ("uniform_scale", "s*, one scale for all")}
"Series whose axis is that of a metric with another name: the metric is drawn in."
_FIRST = (
    "t_star", "kl_ nats", "kl_tokens", "kl_quantiles", "documents", "kl_position", "kl_types", "kl_documents",
    "suppression_density_curve", "suppression_strength_curve", "fvu", "nn1", "nn10", "nn100", "nn_quantiles",
    "steerability", "slopes", "propensity_lines", "propensity_lines_mean_difference",
    "propensity_lines_random_direction", "variance_explained_", "effect", "anti_share", "slope_mean", "features",
    "l0", "density", "interference_excess",
)  # fmt: skip
"Names of pictures in their order; the others follow."
MOVED = 1e-5
"Relative change of a document from which on it moved: files keep fewer digits, and sums may run in another order."


def pictures(result: PropertyResult, before: PropertyResult | None) -> tuple[list[Figure], list[str]]:
    """All pictures of a property, and the names of series that hold nothing to draw.

    Args:
        result: the property now.
        before: its accepted result with values per cluster; None when there is none.
    """
    found: dict[str, list[Figure | None]] = {"documents": [documents(result, before)]}
    found |= {name: [figure] for name, figure in conditions.families(result).items()}
    empty = []
    for name, series in result.series.items():
        if packed_text.holds_documents(series):
            continue
        drawn = _drawn(name, series, result)
        rows = series.kind == "table" and any(len(column) for column in series.columns.values())
        empty += [name] if not any(drawn) and not rows else []
        found[name] = drawn
    order = sorted(found, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return [figure for name in order for figure in found[name] if figure is not None], empty


def _drawn(name: str, series: Series, result: PropertyResult) -> list[Figure | None]:
    if name in _SPECIAL:
        return [draw(series) for draw in _SPECIAL[name]]
    metric, said = _SCALES.get(name, (name, "now"))
    figure = picture(name, series)
    if figure is None or series.kind != "histogram" or metric not in result.metrics:
        return [figure]
    return [marked(figure, result.metrics[metric], series.log_x, said)]


def per_document(result: PropertyResult, metric: str) -> dict[int, float]:
    """A metric's value on each document (cluster) of its own, where it is a ratio of sums."""
    found = result.metrics.get(metric)
    parts = found.per_cluster if found is not None else None
    if parts is None or parts.numerator is None or parts.denominator is None:
        return {}
    rows = zip(result.clusters, parts.numerator, parts.denominator, strict=False)
    return {cluster: above / below for cluster, above, below in rows if below}


def moved(result: PropertyResult, before: PropertyResult | None) -> list[tuple[int, float]]:
    """Documents on which the headline moved, farthest first: (cluster, change)."""
    if before is None:
        return []
    now, then = per_document(result, result.primary_metric), per_document(before, result.primary_metric)
    changes = [
        (cluster, now[cluster] - then[cluster])
        for cluster in now
        if cluster in then and abs(now[cluster] - then[cluster]) > MOVED * max(abs(now[cluster]), abs(then[cluster]))
    ]
    return sorted(changes, key=lambda pair: -abs(pair[1]))


def documents(result: PropertyResult, before: PropertyResult | None) -> Figure | None:
    """Each document's headline value, accepted against now; points on the diagonal did not move."""
    now = per_document(result, result.primary_metric)
    then = per_document(before, result.primary_metric) if before is not None else {}
    both = [cluster for cluster in now if cluster in then]
    if len(both) < 2:
        return None
    metric = result.metrics[result.primary_metric]
    x, y = [then[cluster] for cluster in both], [now[cluster] for cluster in both]
    low, high = min(*x, *y), max(*x, *y)
    log = low > 0 and high / low > 10
    changes = moved(result, before)
    far = [cluster for cluster, _ in changes[:3]]
    data = [_dots("a document", [cluster for cluster in both if cluster not in far], then, now)]
    if far:
        named = {"mode": "markers+text", "textposition": "top center", "text": [f"#{each}" for each in far],
                 "marker": {"size": 9, "color": "$1", "symbol": "diamond"}}  # fmt: skip
        data.append(_dots("moved most", far, then, now) | named)
    unchanged = {"type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "name": "unchanged",
                "line": {"color": "$ink", "dash": "dash", "width": 1}, "hoverinfo": "skip"}  # fmt: skip
    unit = f", {metric.unit}" if metric.unit else ""
    layout: dict[str, Any] = {"xaxis": axis(f"accepted{unit}", log=log), "yaxis": axis(f"now{unit}", log=log)}
    title = f"{result.primary_metric} of each document, accepted and now"
    return Figure(title, [*data, unchanged], layout, _counted(metric, dict(changes), len(both)))


def _dots(name: str, clusters: Sequence[int], then: Mapping[int, float], now: Mapping[int, float]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": name, "marker": {"size": 7, "color": "$0"},
        "x": [shorten(then[each]) for each in clusters], "y": [shorten(now[each]) for each in clusters],
        "customdata": list(clusters), "hovertemplate": "#%{customdata}: %{x} → %{y}",
    }  # fmt: skip


def _counted(metric: MetricResult, changes: Mapping[int, float], total: int) -> str:
    """How many documents got worse, better, or moved at all."""
    if not changes:
        return f"None of {total} documents moved."
    sign = {"lower": 1, "higher": -1}.get(metric.better)
    if sign is None:
        return f"{len(changes)} of {total} documents moved."
    worse = sum(sign * change > 0 for change in changes.values())
    return f"{worse} of {total} documents are worse, {len(changes) - worse} better."
