"""Pictures for what is known by name: KL by arm, documents then and now, the funnel of token types, Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sae_bench.measurement import Series
from sae_bench.render.figures import SYMBOLS, Figure, axis, label, numbers, picture, shorten, token
from sae_bench.render.words import limits_of
from sae_bench.results import MetricResult, PropertyResult

_FAMILIES = {"kl_": "KL by arm", "kappa_": "KL per squared error norm, by arm", "ce_": "Next-token loss, by arm",
             "variance_explained_": "Variance explained, by factor"}  # fmt: skip
_DIFFERENCES = ("ce_gap",)
_TEXTS = {"document", "token", "kl"}


def pictures(result: PropertyResult, before: PropertyResult | None) -> tuple[list[Figure], list[str]]:
    """All pictures of a property, and the names of series that hold nothing to draw.

    Args:
        result: the property now.
        before: its accepted result with values per cluster; None when there is none.
    """
    drawn = [documents(result, before), *families(result)]
    empty = []
    for name, series in result.series.items():
        if set(series.columns) >= _TEXTS:
            continue
        found = [draw(series) for draw in _SPECIAL.get(name, ())] or [picture(name, series, result.metrics.get(name))]
        rows = series.kind == "table" and any(len(column) for column in series.columns.values())
        empty += [name] if not any(found) and not rows else []
        drawn += found
    return [figure for figure in drawn if figure is not None], empty


def families(result: PropertyResult) -> list[Figure]:
    """Metrics that are one quantity for several arms, side by side with their intervals."""
    figures = []
    for prefix, title in _FAMILIES.items():
        members = {
            name.removeprefix(prefix): metric
            for name, metric in result.metrics.items()
            if name.startswith(prefix) and name not in _DIFFERENCES and metric.value is not None
        }
        units = {metric.unit for metric in members.values()} & {"nats", "share"}
        for unit in sorted(units):
            alike = {arm: metric for arm, metric in members.items() if metric.unit == unit}
            figures += [_family(f"{title}, {unit}", alike, unit)] if len(alike) > 1 else []
    return figures


def _family(title: str, members: Mapping[str, MetricResult], unit: str) -> Figure:
    ordered = sorted(members, key=lambda name: (members[name].value or 0.0, name))
    values = [members[name].value or 0.0 for name in ordered]
    spans = [members[name].value_interval or (value, value) for name, value in zip(ordered, values, strict=True)]
    log = min(values) > 0 and max(values) / min(values) > 30
    trace = {
        "type": "scatter", "mode": "markers", "x": [shorten(each) for each in values],
        "y": [label(name) for name in ordered],
        "marker": {"size": 9, "color": ["$1" if name == "sae" else "$0" for name in ordered],
                   "symbol": ["diamond" if name == "sae" else "circle" for name in ordered]},
        "error_x": {"type": "data", "symmetric": False, "color": "$faint",
                    "array": [shorten(max(span[1] - v, 0)) for span, v in zip(spans, values, strict=True)],
                    "arrayminus": [shorten(max(v - span[0], 0)) for span, v in zip(spans, values, strict=True)]},
    }  # fmt: skip
    layout = {"xaxis": axis(unit, log=log), "yaxis": axis(automargin=True), "showlegend": False}
    return Figure(title, [trace], layout, "With the intervals that decide, where a value has one.")


def per_document(result: PropertyResult, metric: str) -> dict[int, float]:
    """A metric's value on each document (cluster) of its own, where it is a ratio of sums."""
    found = result.metrics.get(metric)
    parts = found.per_cluster if found is not None else None
    if parts is None or parts.numerator is None or parts.denominator is None:
        return {}
    rows = zip(result.clusters, parts.numerator, parts.denominator, strict=False)
    return {cluster: above / below for cluster, above, below in rows if below}


def moved(result: PropertyResult, before: PropertyResult | None) -> list[tuple[int, float]]:
    """Documents by how far the headline moved on them, farthest first: (cluster, change)."""
    if before is None:
        return []
    now, then = per_document(result, result.headline), per_document(before, result.headline)
    changes = [(cluster, now[cluster] - then[cluster]) for cluster in now if cluster in then]
    return sorted(changes, key=lambda pair: -abs(pair[1]))


def documents(result: PropertyResult, before: PropertyResult | None) -> Figure | None:
    """Each document's headline value, accepted against now; points on the diagonal did not move."""
    now = per_document(result, result.headline)
    then = per_document(before, result.headline) if before is not None else {}
    both = [cluster for cluster in now if cluster in then]
    if len(both) < 2:
        return None
    metric = result.metrics[result.headline]
    x, y = [then[cluster] for cluster in both], [now[cluster] for cluster in both]
    low, high = min(*x, *y), max(*x, *y)
    log = low > 0 and high / low > 10
    far = {cluster for cluster, change in moved(result, before)[:3] if change}
    trace = {
        "type": "scatter", "mode": "markers+text", "name": "a document",
        "x": [shorten(each) for each in x], "y": [shorten(each) for each in y],
        "text": [f"#{cluster}" if cluster in far else "" for cluster in both], "textposition": "top center",
        "customdata": both, "hovertemplate": "#%{customdata}: %{x} → %{y}",
        "marker": {"size": 7, "color": ["$1" if cluster in far else "$0" for cluster in both],
                   "symbol": ["diamond" if cluster in far else "circle" for cluster in both]},
    }  # fmt: skip
    diagonal = {"type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "name": "unchanged",
                "line": {"color": "$ink", "dash": "dash", "width": 1}, "hoverinfo": "skip"}  # fmt: skip
    layout = {"xaxis": axis(f"accepted {metric.unit}", log=log), "yaxis": axis(f"now {metric.unit}", log=log)}
    worse = {"lower": sum(b > a for a, b in zip(x, y, strict=True)),
             "higher": sum(b < a for a, b in zip(x, y, strict=True))}.get(metric.better)  # fmt: skip
    said = f"{worse} of {len(both)} documents are worse." if worse is not None else f"{len(both)} documents."
    return Figure(f"{result.headline} of each document, accepted and now", [trace, diagonal], layout, said)


def ranked(series: Series) -> Figure | None:
    """Documents from the best to the worst."""
    column = [each for each in numbers(series.columns.get("kl_sae", ())) if each is not None]
    if not column:
        return None
    trace = {"type": "scatter", "mode": "markers", "x": list(range(1, len(column) + 1)), "y": sorted(column),
             "marker": {"size": 6, "color": "$0"}}  # fmt: skip
    log = min(column) > 0 and max(column) / min(column) > 10
    layout = {
        "xaxis": axis("documents, best first", zeroline=False),
        "yaxis": axis("nats", log=log),
        "showlegend": False,
    }
    return Figure(series.title or "documents", [trace], layout)


def _types(series: Series) -> tuple[list[str], list[float], list[float], list[float]]:
    columns = [series.columns.get(key, ()) for key in ("token", "n", "gap", "se")]
    rows = [row for row in zip(*columns, strict=False) if all(isinstance(each, int | float) for each in row[1:])]
    rows = [row for row in rows if row[1] > 0]
    return [token(row[0]) for row in rows], *([float(row[c]) for row in rows] for c in (1, 2, 3))  # type: ignore[return-value]


def _type_points(series: Series, swapped: bool) -> dict[str, object]:
    names, n, gap, se = _types(series)
    bars = {"type": "data", "array": [shorten(1.96 * each) for each in se], "color": "$faint", "thickness": 1}
    x, y = ([shorten(each) for each in gap], n) if swapped else (n, [shorten(each) for each in gap])
    return {
        "type": "scatter", "mode": "markers", "x": x, "y": y, "text": names, "name": "token type, ±1.96 se",
        "hovertemplate": "%{text}: %{x}, %{y}", "marker": {"size": 6, "color": "$0"},
        "error_x" if swapped else "error_y": bars,
    }  # fmt: skip


def funnel(series: Series) -> Figure | None:
    """Mean gap against occurrences: what scatters no more than sampling explains lies between the curves."""
    _, n, gap, se = _types(series)
    if len(n) < 2:
        return None
    mean = sum(a * b for a, b in zip(n, gap, strict=True)) / sum(n)
    # A type's standard deviation per occurrence; the middle one stands for all.
    deviation = sorted(error * math.sqrt(count) for error, count in zip(se, n, strict=True))[len(n) // 2]
    low, high = min(n), max(n)
    counts = [low * (high / low) ** (step / 40) for step in range(41)] if high > low else [low, low]
    data = [_type_points(series, swapped=True)]
    for sign in (-1, 1):
        x = [shorten(mean + sign * 1.96 * deviation / math.sqrt(count)) for count in counts]
        data.append({"type": "scatter", "mode": "lines", "x": x, "y": [shorten(count) for count in counts],
                     "line": {"color": "$ink", "dash": "dash", "width": 1}, "name": "sampling alone",
                     "showlegend": sign > 0, "hoverinfo": "skip"})  # fmt: skip
    layout = {"xaxis": axis("mean gap, nats", zeroline=True), "yaxis": axis("occurrences", log=True)}
    return Figure("Funnel of token types", data, layout, f"Mean over all types {mean:.3g} nats.")


def by_frequency(series: Series) -> Figure | None:
    """Gap against how often a token type occurs."""
    if not _types(series)[0]:
        return None
    layout = {"xaxis": axis("occurrences", log=True), "yaxis": axis("mean gap, nats"), "showlegend": False}
    return Figure("Frequency against gap", [_type_points(series, swapped=False)], layout, series.title)


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
    layout = {"xaxis": axis("mean slope, ± sd over prompts"), "yaxis": axis("share of prompts moved backwards"),
              "showlegend": False}  # fmt: skip
    return Figure("Steered features", [trace], layout, series.title)


_SPECIAL = {"kl_types": (funnel, by_frequency), "kl_documents": (ranked,), "features": (steered,)}


def history(metric: str, dates: Sequence[str], values: Mapping[str, Sequence[MetricResult | None]]) -> Figure | None:
    """One metric over accepted reports, a line per SAE, with intervals; a hard limit is drawn across.

    Args:
        metric: ``property.metric``.
        dates: a label per report, oldest first.
        values: by SAE, one entry per label.
    """
    data: list[dict[str, object]] = []
    limits: set[float] = set()
    for index, (sae, column) in enumerate(sorted(values.items())):
        if not any(each is not None and each.value is not None for each in column):
            continue
        spans = [each.value_interval if each is not None else None for each in column]
        ys = [each.value if each is not None else None for each in column]
        pairs = list(zip(spans, ys, strict=True))
        up = [0.0 if span is None or y is None else max(span[1] - y, 0.0) for span, y in pairs]
        down = [0.0 if span is None or y is None else max(y - span[0], 0.0) for span, y in pairs]
        limits |= {limit.bound for each in column if each is not None for limit in limits_of(each) if limit.hard}
        data.append({"type": "scatter", "mode": "lines+markers", "name": label(sae), "x": [label(d) for d in dates],
                     "y": [None if y is None else shorten(y) for y in ys], "connectgaps": True,
                     "error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1},
                     "line": {"color": f"${index % 8}"},
                     "marker": {"symbol": SYMBOLS[index % 8], "size": 8}})  # fmt: skip
    if not data:
        return None
    shapes = [{"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": y, "y1": y,
               "line": {"color": "$bad", "dash": "dot", "width": 2}} for y in sorted(limits)]  # fmt: skip
    # Labels must differ, or reports of one day would be one point; what is written below the axis may be shorter.
    every = max(1, math.ceil(len(dates) / 6))
    shown = [label(date) for date in dates[::every]]
    ticks: dict[str, Any] = {
        "tickvals": shown,
        "ticktext": [date[:10] for date in shown],
        "tickangle": -30,
        "tickfont": {"size": 10},
    }
    layout = {"xaxis": axis(type="category", **ticks), "yaxis": axis(), "shapes": shapes, "showlegend": len(data) > 1}
    return Figure(metric, data, layout, f"{len(dates)} accepted reports" + ("; dotted: limits" if shapes else ""))
