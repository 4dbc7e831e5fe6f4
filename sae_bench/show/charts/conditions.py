"""One quantity for several arms, side by side: the SAE among its noise floors, a feature among other directions."""

from __future__ import annotations

from collections.abc import Mapping
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

_TITLES = {
    ("kl_", "nats"): "KL by arm",
    ("kl_", "share"): "Share of the KL that is gone",
    ("kappa_", "nats"): "KL per squared error norm, by arm",
    ("ce_", "nats"): "Next-token loss by arm",
    ("ce_", "share"): "Loss recovered, by what the site is replaced with",
    ("mse_", "share"): "Share of the squared error that is gone",
}
"By the prefix that the metrics of a family share, and their unit."
_DIFFERENCES = ("ce_gap",)
ARMS = ("mean_difference", "random_direction", "other_feature", "permuted_decoder", "covariance_direction")
"Directions that steer beside a feature's; their metrics end in their name."
_STEERED = {
    "anti_share": "Share moved backwards, by arm",
    "slope_mean": "Mean slope, by arm",
    "steerability": "Steerability, by arm",
}
_SHARES = {
    "variance_explained_": "Variance explained, by factor",
    "variance_in_order_": "Variance explained, factor after factor",
}
_PATTERNS = ("", "/", "x", ".", "\\", "-", "+", "|")


def families(result: PropertyResult) -> dict[str, Figure]:
    """Metrics that are one quantity for several arms, with their intervals; by the name of the picture."""
    found = {}
    for (prefix, unit), title in _TITLES.items():
        members = {
            name.removeprefix(prefix): metric
            for name, metric in _valued(result).items()
            if name.startswith(prefix) and name not in _DIFFERENCES and metric.unit == unit
        }
        if len(members) > 1:
            found[f"{prefix} {unit}"] = _family(title, members, unit, result)
    for base, title in _STEERED.items():
        names = {"feature": base, **{condition: f"{base}_{condition}" for condition in ARMS}}
        held = {condition: _valued(result)[name] for condition, name in names.items() if name in _valued(result)}
        if len(held) > 1:
            found[base] = _family(title, held, held[next(iter(held))].unit, result)
    for prefix, title in _SHARES.items():
        if (bars := _bars(result, prefix, title)) is not None:
            found[prefix] = bars
    return found


def _valued(result: PropertyResult) -> dict[str, MetricResult]:
    return {name: metric for name, metric in result.metrics.items() if metric.value is not None}


def _spread(metric: MetricResult) -> tuple[float | None, float | None]:
    """How far the interval reaches above and below the value."""
    value = metric.value or 0.0
    low, high = metric.value_interval or (value, value)
    return shorten(max(high - value, 0.0)), shorten(max(value - low, 0.0))


def _bars_of(metrics: list[MetricResult], color: str = "$faint") -> dict[str, Any]:
    spreads = [_spread(metric) for metric in metrics]
    return {
        "type": "data", "symmetric": False, "color": color,
        "array": [above for above, _ in spreads], "arrayminus": [below for _, below in spreads],
    }  # fmt: skip


def _said(result: PropertyResult) -> str:
    return "" if result.confidence is None else f"Bars: {100 * result.confidence:.4g}% intervals."


def _family(title: str, members: Mapping[str, MetricResult], unit: str, result: PropertyResult) -> Figure:
    ordered = sorted(members, key=lambda name: (members[name].value or 0.0, name))
    values = [members[name].value or 0.0 for name in ordered]
    log = unit != "share" and min(values) > 0 and max(values) / min(values) > 30
    data: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "markers", "x": [shorten(each) for each in values],
        "y": [label(name) for name in ordered], "showlegend": False,
        "marker": {"size": 9, "color": ["$1" if name in MARKED else "$0" for name in ordered],
                   "symbol": ["diamond" if name in MARKED else "circle" for name in ordered]},
        "error_x": _bars_of([members[name] for name in ordered]),
    }]  # fmt: skip
    shapes = []
    for name in MARKED & set(ordered):
        for row, end in enumerate(each for each in bounds(members[name]) if each > 0 or not log):
            shape, entry = upright(end, f"limit of {name}: {cells.allowed(members[name])}", "$bad", "dot")
            shapes.append(shape)
            data += [entry] if row == 0 else []
    layout = {
        "xaxis": axis(unit, log=log),
        "yaxis": axis(automargin=True),
        "shapes": shapes,
        "showlegend": bool(shapes),
    }
    return Figure(title, data, layout, _said(result))


def _bars(result: PropertyResult, prefix: str, title: str) -> Figure | None:
    """Shares of variance by factor, a bar per arm."""
    conditions: dict[str, dict[str, MetricResult]] = {}
    for name, metric in _valued(result).items():
        if name.startswith(prefix):
            factor = name.removeprefix(prefix)
            condition = next((condition for condition in ARMS if factor.endswith(f"_{condition}")), "feature")
            conditions.setdefault(condition, {})[factor.removesuffix(f"_{condition}")] = metric
    if not conditions:
        return None
    factors = sorted({factor for held in conditions.values() for factor in held})
    data = []
    for index, condition in enumerate(sorted(conditions, key=lambda condition: (condition != "feature", condition))):
        held = [factor for factor in factors if factor in conditions[condition]]
        data.append({
            "type": "bar", "name": label(condition), "x": [label(factor) for factor in held],
            "y": [shorten(conditions[condition][factor].value or 0.0) for factor in held],
            "error_y": _bars_of([conditions[condition][factor] for factor in held], "$ink"),
            "marker": {"color": f"${index % 8}", "pattern": {"shape": _PATTERNS[index % 8]}},
        })  # fmt: skip
    layout = {"xaxis": axis(type="category"), "yaxis": axis("share of variance", tickformat=".0%"), "barmode": "group"}
    return Figure(title, data, layout, _said(result))


def near(series: Series) -> Figure | None:
    """Quantiles of cosines with near directions: a colour per rank, a dash for the features and for each floor."""
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


def steered(series: Series) -> Figure | None:
    """Each feature's mean slope, with its spread over prompts, against the share of prompts it moves backwards."""
    keys = ("feature", "slope_mean", "slope_sd", "anti_share")
    if not all(key in series.columns for key in keys) or not series.columns["feature"]:
        return None
    feature, mean, deviation, anti = (series.columns[key] for key in keys)
    targets = series.columns.get("targets", [""] * len(feature))
    trace = {
        "type": "scatter", "mode": "markers", "x": numbers(mean), "y": numbers(anti),
        "text": [f"feature {a}: {label(b)}" for a, b in zip(feature, targets, strict=False)],
        "hovertemplate": "%{text}<br>slope %{x}, backwards %{y}", "marker": {"size": 7, "color": "$0"},
        "error_x": {"type": "data", "array": numbers(deviation), "color": "$faint", "thickness": 1},
    }  # fmt: skip
    layout = {"xaxis": axis("mean slope, ± sd over prompts"), "showlegend": False,
              "yaxis": axis("share of prompts moved backwards", tickformat=".0%", rangemode="tozero")}  # fmt: skip
    return Figure("Steered features", [trace], layout, f"{len(feature)} features.")
