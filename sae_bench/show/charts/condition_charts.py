"""Charts that compare conditions: the SAE with its noise floors, a feature with other directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_bench.measure.measurement import Series
from sae_bench.report.records import MetricResult, PropertyResult
from sae_bench.show import cells
from sae_bench.show.charts.figure import (
    DASHES,
    MARKED,
    SYMBOLS,
    Figure,
    axis,
    bounds,
    label,
    line,
    numbers,
    shorten,
    upright,
)

_PATTERNS = ("", "/", "x", ".", "\\", "-", "+", "|")


def family_charts(result: PropertyResult) -> dict[str, Figure]:
    """Return a chart for every family of metrics with two values or more, by the family's title."""
    families: dict[str, dict[str, MetricResult]] = {}
    for name, metric in result.metrics.items():
        if metric.family and metric.value is not None:
            families.setdefault(metric.family, {})[name] = metric
    return {
        title: _factor_bars(title, members, result) if any(each.factor for each in members.values()) else chart
        for title, members in families.items()
        if len(members) > 1
        for chart in [_condition_points(title, list(members.values()), result)]
    }


def _spread(metric: MetricResult) -> tuple[float | None, float | None]:
    """Return the distance from the value to the ends of its interval."""
    value = metric.value or 0.0
    low, high = metric.value_interval or (value, value)
    return shorten(max(high - value, 0.0)), shorten(max(value - low, 0.0))


def _error_bars(metrics: Sequence[MetricResult], color: str = "$faint") -> dict[str, Any]:
    spreads = [_spread(metric) for metric in metrics]
    return {
        "type": "data", "symmetric": False, "color": color,
        "array": [above for above, _ in spreads], "arrayminus": [below for _, below in spreads],
    }  # fmt: skip


def _caption(result: PropertyResult) -> str:
    return "" if result.confidence is None else f"Bars: {100 * result.confidence:.4g}% intervals."


def _condition_points(title: str, metrics: Sequence[MetricResult], result: PropertyResult) -> Figure:
    """Return a point with its interval per condition, the smallest value first; the SAE or feature is marked."""
    ordered = sorted(metrics, key=lambda metric: (metric.value or 0.0, metric.condition))
    values, unit = [metric.value or 0.0 for metric in ordered], ordered[0].unit
    marked = [metric.condition in MARKED for metric in ordered]
    log = unit != "share" and min(values) > 0 and max(values) / min(values) > 30
    data: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "markers", "x": [shorten(each) for each in values],
        "y": [label(metric.condition) for metric in ordered], "showlegend": False,
        "marker": {"size": 9, "color": ["$1" if each else "$0" for each in marked],
                   "symbol": ["diamond" if each else "circle" for each in marked]},
        "error_x": _error_bars(ordered),
    }]  # fmt: skip
    shapes = []
    for metric in (metric for metric in ordered if metric.condition in MARKED):
        for row, end in enumerate(each for each in bounds(metric) if each > 0 or not log):
            shape, entry = upright(end, f"limit of {metric.condition}: {cells.allowed(metric)}", "$bad", "dot")
            shapes.append(shape)
            data += [entry] if row == 0 else []
    layout = {
        "xaxis": axis(unit, log=log),
        "yaxis": axis(automargin=True),
        "shapes": shapes,
        "showlegend": bool(shapes),
    }
    return Figure(title, data, layout, _caption(result))


def _factor_bars(title: str, metrics: Mapping[str, MetricResult], result: PropertyResult) -> Figure:
    """Return shares of variance: a group of bars per factor, a bar per condition."""
    conditions: dict[str, dict[str, MetricResult]] = {}
    for metric in metrics.values():
        conditions.setdefault(metric.condition, {})[metric.factor] = metric
    data = []
    for index, condition in enumerate(sorted(conditions, key=lambda name: (name not in MARKED, name))):
        by_factor = dict(sorted(conditions[condition].items()))
        data.append({
            "type": "bar", "name": label(condition), "x": [label(factor) for factor in by_factor],
            "y": [shorten(metric.value or 0.0) for metric in by_factor.values()],
            "error_y": _error_bars(list(by_factor.values()), "$ink"),
            "marker": {"color": f"${index % 8}", "pattern": {"shape": _PATTERNS[index % 8]}},
        })  # fmt: skip
    layout = {"xaxis": axis(type="category"), "yaxis": axis("share of variance", tickformat=".0%"), "barmode": "group"}
    return Figure(title, data, layout, _caption(result))


def near_directions(series: Series) -> Figure | None:
    """Return quantiles of cosines with near directions: a colour per rank, a dash per floor."""
    q = series.columns.get("q", ())
    columns = {key: numbers(column) for key, column in series.columns.items() if key != "q" and len(column) == len(q)}
    ranks = sorted({key.rpartition("_")[2] for key in columns}, key=lambda rank: (len(rank), rank))
    kinds = sorted({key.rpartition("_")[0] for key in columns})
    data = []
    for key in sorted(columns, key=lambda key: (key.rpartition("_")[0], ranks.index(key.rpartition("_")[2]))):
        kind, _, rank = key.rpartition("_")
        color, dash = f"${ranks.index(rank) % 8}", DASHES[kinds.index(kind) % len(DASHES)]
        trace = line(f"{kind or 'features'} {rank}", 0, range(len(q)), columns[key], mode="lines+markers",
                     marker={"symbol": SYMBOLS[ranks.index(rank) % 8], "size": 6})  # fmt: skip
        data.append(trace | {"line": {"color": color, "dash": dash, "width": 1.5 if kind else 2.5}})
    ticks = [f"{100 * float(each):.4g}%" for each in q]
    xaxis = axis("share of features", tickvals=list(range(len(q))), ticktext=ticks, zeroline=False)
    return Figure(series.title or "quantiles", data, {"xaxis": xaxis, "yaxis": axis("cosine")}) if data else None


def feature_slopes(series: Series) -> Figure | None:
    """Return mean slopes with their spread over prompts, against the share of prompts with a slope below 0."""
    keys = ("feature", "slope_mean", "slope_sd", "anti_share")
    if not all(key in series.columns for key in keys) or not series.columns["feature"]:
        return None
    feature, mean, deviation, anti = (series.columns[key] for key in keys)
    targets = series.columns.get("targets", [""] * len(feature))
    trace = {
        "type": "scatter", "mode": "markers", "x": numbers(mean), "y": numbers(anti),
        "text": [f"feature {a}: {label(b)}" for a, b in zip(feature, targets, strict=False)],
        "hovertemplate": "%{text}<br>slope %{x}, not rising %{y}", "marker": {"size": 7, "color": "$0"},
        "error_x": {"type": "data", "array": numbers(deviation), "color": "$faint", "thickness": 1},
    }  # fmt: skip
    layout = {"xaxis": axis("mean slope, ± sd over prompts"), "showlegend": False,
              "yaxis": axis("share of prompts without a rise", tickformat=".0%", rangemode="tozero")}  # fmt: skip
    return Figure("Steered features", [trace], layout, f"{len(feature)} features.")
