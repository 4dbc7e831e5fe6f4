"""All charts of a property, in the order that its series and metrics declare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sae_bench.measure.measurement import Chart, Series
from sae_bench.measure.shared import packed_text
from sae_bench.report.records import MetricResult, PropertyResult
from sae_bench.show.charts import condition_charts, token_charts
from sae_bench.show.charts.figure import Figure, axis, shorten
from sae_bench.show.charts.series_charts import marked, picture

_CHARTS: Mapping[Chart, tuple[Callable[[Series], Figure | None], ...]] = {
    "token_histogram": (token_charts.token_histogram,),
    "token_funnel": (token_charts.funnel, token_charts.by_frequency),
    "ranked_documents": (token_charts.ranked_documents,),
    "near_directions": (condition_charts.near_directions,),
    "feature_slopes": (condition_charts.feature_slopes,),
}
"Charts by the name under which a `Series` asks for them."
_PRIMARY, _DOCUMENTS, _OTHER_FAMILIES = 5, 30, 60
"Places of the primary metric's family, of the documents and of other families among the series' own."
CHANGED = 1e-5
"Relative change from which on a document counts as changed: files have fewer digits, and sums another order."


def pictures(result: PropertyResult, before: PropertyResult | None) -> tuple[list[Figure], list[str]]:
    """Return all charts of a property, and the names of series that hold nothing to draw.

    Args:
        result: the property now.
        before: its accepted result with values per cluster; None when there is none.
    """
    primary = result.metrics.get(result.primary_metric)
    placed: list[tuple[int, Figure | None]] = [(_DOCUMENTS, documents(result, before))]
    for title, chart in condition_charts.family_charts(result).items():
        placed.append((_PRIMARY if primary is not None and primary.family == title else _OTHER_FAMILIES, chart))
    empty = []
    for name, series in result.series.items():
        if packed_text.holds_documents(series):
            continue
        charts = _series_charts(name, series, result)
        rows = series.kind == "table" and any(len(column) for column in series.columns.values())
        empty += [name] if not any(charts) and not rows else []
        placed += [(series.order, chart) for chart in charts]
    ordered = sorted(placed, key=lambda pair: pair[0])
    return [chart for _, chart in ordered if chart is not None], empty


def _series_charts(name: str, series: Series, result: PropertyResult) -> list[Figure | None]:
    if series.chart in _CHARTS:
        return [draw(series) for draw in _CHARTS[series.chart]]
    figure, metric = picture(name, series), series.marks or name
    if figure is None or series.kind != "histogram" or metric not in result.metrics:
        return [figure]
    return [marked(figure, result.metrics[metric], series.log_x, series.marks or "now")]


def per_document(result: PropertyResult, metric: str) -> dict[int, float]:
    """Return the value of a metric on each document (cluster); empty when it is not a ratio of sums."""
    metric_result = result.metrics.get(metric)
    parts = metric_result.per_cluster if metric_result is not None else None
    if parts is None or parts.numerator is None or parts.denominator is None:
        return {}
    rows = zip(result.clusters, parts.numerator, parts.denominator, strict=False)
    return {cluster: above / below for cluster, above, below in rows if below}


def document_changes(result: PropertyResult, before: PropertyResult | None) -> list[tuple[int, float]]:
    """Return the documents on which the primary metric changed, farthest first: (cluster, change)."""
    if before is None:
        return []
    now, then = per_document(result, result.primary_metric), per_document(before, result.primary_metric)
    changes = [
        (cluster, now[cluster] - then[cluster])
        for cluster in now
        if cluster in then and abs(now[cluster] - then[cluster]) > CHANGED * max(abs(now[cluster]), abs(then[cluster]))
    ]
    return sorted(changes, key=lambda pair: -abs(pair[1]))


def documents(result: PropertyResult, before: PropertyResult | None) -> Figure | None:
    """Return each document's value of the primary metric, accepted and now; unchanged ones are on the diagonal."""
    now = per_document(result, result.primary_metric)
    then = per_document(before, result.primary_metric) if before is not None else {}
    shared = [cluster for cluster in now if cluster in then]
    if len(shared) < 2:
        return None
    metric = result.metrics[result.primary_metric]
    x, y = [then[cluster] for cluster in shared], [now[cluster] for cluster in shared]
    low, high = min(*x, *y), max(*x, *y)
    log = low > 0 and high / low > 10
    changes = document_changes(result, before)
    far = [cluster for cluster, _ in changes[:3]]
    data = [_dots("a document", [cluster for cluster in shared if cluster not in far], then, now)]
    if far:
        named = {"mode": "markers+text", "textposition": "top center", "text": [f"#{each}" for each in far],
                 "marker": {"size": 9, "color": "$1", "symbol": "diamond"}}  # fmt: skip
        data.append(_dots("changed most", far, then, now) | named)
    unchanged = {"type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "name": "unchanged",
                "line": {"color": "$ink", "dash": "dash", "width": 1}, "hoverinfo": "skip"}  # fmt: skip
    unit = f", {metric.unit}" if metric.unit else ""
    layout: dict[str, Any] = {"xaxis": axis(f"accepted{unit}", log=log), "yaxis": axis(f"now{unit}", log=log)}
    title = f"{result.primary_metric} of each document, accepted and now"
    return Figure(title, [*data, unchanged], layout, _counted(metric, dict(changes), len(shared)))


def _dots(name: str, clusters: Sequence[int], then: Mapping[int, float], now: Mapping[int, float]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": name, "marker": {"size": 7, "color": "$0"},
        "x": [shorten(then[each]) for each in clusters], "y": [shorten(now[each]) for each in clusters],
        "customdata": list(clusters), "hovertemplate": "#%{customdata}: %{x} → %{y}",
    }  # fmt: skip


def _counted(metric: MetricResult, changes: Mapping[int, float], total: int) -> str:
    """Return how many documents changed, as a sentence."""
    if not changes:
        return f"None of {total} documents changed."
    sign = {"lower": 1, "higher": -1}.get(metric.better)
    if sign is None:
        return f"{len(changes)} of {total} documents changed."
    worse = sum(sign * change > 0 for change in changes.values())
    return f"{worse} of {total} documents are worse, {len(changes) - worse} better."
