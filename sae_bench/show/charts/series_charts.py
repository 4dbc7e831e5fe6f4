"""Any series as a picture by its kind: histogram, quantiles, curve or table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sae_bench.measure.measurement import Series
from sae_bench.report.records import MetricResult
from sae_bench.show import cells as words
from sae_bench.show.charts.figure import (
    DASHES,
    NAMING,
    SYMBOLS,
    Columns,
    Figure,
    axis,
    bounds,
    is_numeric,
    label,
    line,
    numbers,
    ordered,
    shorten,
    token,
    upright,
)

CODE_LENGTH = 200
"Longest text of a table; longer ones are data for programs (masks)."
ROUNDING = 1e-5
QUARTILES = {"p25", "p50", "p75"}
FEW = 12
"Points of a line up to which each is marked."
MANY = 8
"Lines beyond which single ones are drawn thin and grey, with their mean above them."


def picture(name: str, series: Series) -> Figure | None:
    """Draw a series by its kind; None when nothing in it can be drawn."""
    draw = {"histogram": histogram, "quantiles": quantiles, "curve": curve, "table": table}.get(series.kind)
    return draw(name, series) if draw is not None else None


def marked(figure: Figure, metric: MetricResult, log: bool, value_label: str = "now") -> Figure:
    """Return a histogram with a metric's value, its accepted value and its limits on the axis."""
    marks = [(metric.value, value_label, "$0", "solid"), (metric.accepted, "accepted", "$ink", "dash")]
    marks += [(end, f"limit: {words.allowed(metric)}", "$bad", "dot") for end in bounds(metric)]
    shapes, entries, named = [], [], set()
    for x, name, color, dash in marks:
        if x is None or (log and x <= 0):
            continue
        shape, entry = upright(x, name, color, dash)
        shapes.append(shape)
        entries += [entry] if name not in named else []
        named.add(name)
    layout = {**figure.layout, "shapes": shapes, "showlegend": True}
    return Figure(figure.title, [*figure.data, *entries], layout, figure.caption, figure.wide)


def histogram(name: str, series: Series) -> Figure | None:
    """Draw one distribution as bars; several as steps, each as shares of its own total."""
    edges = [float(edge) for edge in series.columns.get("edges", ())]
    columns = {key: [float(n) for n in counts] for key, counts in ordered(series.columns).items() if key != "edges"}
    columns = {key: counts for key, counts in columns.items() if len(counts) + 1 == len(edges) and sum(counts) > 0}
    if not columns:
        return None
    filled = [any(counts[row] for counts in columns.values()) for row in range(len(edges) - 1)]
    first, last = max(filled.index(True) - 1, 0), min(len(filled) - filled[::-1].index(True) + 1, len(filled))
    edges = edges[first : last + 1]
    data = []
    for index, (key, counts) in enumerate(columns.items()):
        total = sum(counts)
        shares = [shorten(n / total) for n in counts[first:last]]
        fill = {"fill": "tozeroy", "fillcolor": "$fill"} if index == 0 else {}
        style = {"color": f"${index % 8}", "dash": DASHES[index % len(DASHES)], "width": 2.5 if index == 0 else 1.75,
                 "shape": "hv"}  # fmt: skip
        steps = line(key, index, [shorten(edge) for edge in edges], [*shares, shares[-1]], **fill)
        data.append(steps | {"line": style})
    what = next(iter(columns)) if len(columns) == 1 else "each distribution"
    layout = {
        "xaxis": axis(series.x, log=series.log_x),
        "yaxis": axis(f"share of {what}", rangemode="tozero", tickformat=".0%"),
        "showlegend": len(columns) > 1,
    }
    total = sum(next(iter(columns.values())))
    return Figure(series.title or name, data, layout, f"{total:,.0f} {what}" if len(columns) == 1 else "")


def quantiles(name: str, series: Series) -> Figure | None:
    """Draw quantiles against their share; the vertical axis is logarithmic where everything is positive."""
    q = [float(each) for each in series.columns.get("q", ())]
    columns = _lines(series, "q", len(q))
    if not columns:
        return None
    columns, log, caption = _scaled(columns)
    # Even spacing keeps .95 and .999 apart, which on a linear axis are one point.
    ticks = [f"{100 * each:.4g}%" for each in q]
    data = [
        line(key, index, range(len(q)), column, mode="lines+markers", customdata=ticks,
             hovertemplate="%{customdata}: %{y}", marker={"symbol": SYMBOLS[index % 8], "size": 7})
        for index, (key, column) in enumerate(columns.items())
    ]  # fmt: skip
    layout = {
        "xaxis": axis(series.x or "quantile", tickvals=list(range(len(q))), ticktext=ticks, zeroline=False),
        "yaxis": axis(log=log),
        "showlegend": len(columns) > 1,
    }
    return Figure(series.title or name, data, layout, caption)


def curve(name: str, series: Series) -> Figure | None:
    """Draw one line per column, with a band or bars where there are errors; many lines are thin, with their mean."""
    x = series.columns.get("x", ())
    columns = _lines(series, "x", len(x))
    if not columns:
        return None
    errors = {key: columns.pop(f"{key}_se") for key in list(columns) if f"{key}_se" in columns}
    ordered_columns, (columns, log, caption) = columns, _scaled(columns)
    xs = numbers(x) if is_numeric(x) else [label(each) for each in x]
    data = (
        _many(columns, ordered_columns, xs)
        if len(columns) > MANY
        else _band(columns, xs)
        if set(columns) == QUARTILES
        else []
    )
    if not data:
        for index, (key, column) in enumerate(columns.items()):
            more: dict[str, Any] = {"error_y": _errors(column, errors[key], log)} if key in errors else {}
            if len(xs) <= FEW:
                more |= {"mode": "lines+markers", "marker": {"symbol": SYMBOLS[index % 8], "size": 7}}
            data.append(line(key, index, xs, column, **more))
    layout = {
        "xaxis": axis(series.x, log=series.log_x),
        "yaxis": axis(log=log),
        "showlegend": len(columns) > 1,
    }
    bars = f"Bars: 95% intervals{'' if len(errors) == len(columns) else ' of ' + ', '.join(errors)}."
    return Figure(series.title or name, data, layout, " ".join(filter(None, [caption, bars if errors else ""])))


def _errors(column: Sequence[float | None], errors: Sequence[float | None], log: bool) -> dict[str, Any]:
    """Return 95% intervals; on a logarithmic axis those of the logarithm, which end above 0."""
    up: list[float | None] = []
    down: list[float | None] = []
    for value, error in zip(column, errors, strict=True):
        if value is None or error is None:
            up, down = [*up, None], [*down, None]
            continue
        factor = math.exp(min(1.96 * error / value, 50.0)) if log else 1.0
        up.append(shorten(value * (factor - 1) if log else 1.96 * error))
        down.append(shorten(value * (1 - 1 / factor) if log else 1.96 * error))
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1}


def _band(columns: Mapping[str, Sequence[float | None]], x: Sequence[Any]) -> list[dict[str, Any]]:
    edge = {"line": {"width": 0, "color": "$0"}, "showlegend": False, "hoverinfo": "skip"}
    middle = line("median, with the middle half", 0, x, columns["p50"], mode="lines+markers")
    low = line("", 0, x, columns["p25"], **edge)
    return [low, line("", 0, x, columns["p75"], fill="tonexty", fillcolor="$fill", **edge), middle]


def _many(columns: Columns, ordered_columns: Columns, x: Sequence[Any]) -> list[dict[str, Any]]:
    """Draw every line thin, all in one trace with gaps; the mean is of all values, also of those left out."""
    xs = [each for _ in columns for each in [*x, None]]
    ys = [each for column in columns.values() for each in [*column, None]]
    each = line(f"each of {len(columns)}", 0, xs, ys, opacity=0.6, hoverinfo="skip")
    data = [each | {"line": {"color": "$faint", "width": 1, "dash": "solid"}}]
    rows = [[each for each in row if each is not None] for row in zip(*ordered_columns.values(), strict=True)]
    mean = [shorten(sum(row) / len(row)) if row else None for row in rows]
    return [*data, line("mean", 0, x, mean)]


def table(name: str, series: Series) -> Figure | None:
    """Draw one column against the first: points where that is a number, bars where it is a name.

    Several columns are rarely one quantity: such a table is read as a table, and has no picture.
    """
    keys = _keys_first(series)
    length = len(series.columns[keys[0]]) if keys else 0
    columns = {key: numbers(series.columns[key]) for key in keys[1:] if is_numeric(series.columns[key])}
    columns = {key: column for key, column in columns.items() if any(each is not None for each in column)}
    error = next((columns.pop(key) for key in ("se", *(f"{key}_se" for key in keys)) if key in columns), None)
    if (
        len(columns) != 1
        or length < 2
        or holds_codes(series)
        or any(len(series.columns[key]) != length for key in keys)
    ):
        return None
    ((key, column),) = columns.items()
    first = series.columns[keys[0]]
    texts = [each for each in keys if any(isinstance(cell, str) for cell in series.columns[each])]
    named = [token(cell) for cell in series.columns[texts[0]]] if texts else None
    numeric = is_numeric(first) and keys[0] != "feature"
    trace: dict[str, Any] = {"y": column, "name": label(key)}
    if numeric:
        trace |= _points(first, named)
    else:
        names = [f"feature {each}" if keys[0] == "feature" else token(each) for each in first]
        trace |= {"type": "bar", "x": names, "marker": {"color": "$0"}}
    if error is not None:
        trace["error_y"] = {"type": "data", "array": error, "thickness": 1, "color": "$faint" if numeric else "$ink"}
    layout = {
        "xaxis": axis(series.x or keys[0], log=True) if series.log_x and numeric else axis(series.x or keys[0]),
        "yaxis": axis(key),
        "showlegend": False,
    }
    return Figure(series.title or name, [trace], layout, wide=not numeric and length > 12)


def _keys_first(series: Series) -> list[str]:
    """Return column names; first what names or places a row: a column of texts, or the one of the axis' label."""
    keys = list(ordered(series.columns))
    texts = [key for key in keys if any(isinstance(cell, str) for cell in series.columns[key])]
    leading = [key for key in keys if key in NAMING or key == series.x] or texts
    return [*leading[:1], *(key for key in keys if key not in leading[:1])]


def holds_codes(series: Series) -> bool:
    """Return True for columns of code names, not of sentences."""
    cells = (cell for column in series.columns.values() for cell in column)
    return "mask" in series.columns or any(isinstance(cell, str) and len(cell) > CODE_LENGTH for cell in cells)


def _points(first: Sequence[Any], named: Sequence[str] | None) -> dict[str, Any]:
    trace: dict[str, Any] = {"type": "scatter", "mode": "markers", "x": numbers(first),
                             "marker": {"size": 7, "color": "$0"}}  # fmt: skip
    if named is not None:
        trace |= {"text": list(named), "hovertemplate": "%{text}: %{x}, %{y}"}
    return trace


def _lines(series: Series, x: str, length: int) -> Columns:
    """Return the columns that can be drawn against ``x``."""
    ordered_columns = ordered(series.columns)
    columns = {key: numbers(column) for key, column in ordered_columns.items() if key != x and len(column) == length}
    return {key: column for key, column in columns.items() if any(each is not None for each in column)}


def _scaled(columns: Columns) -> tuple[Columns, bool, str]:
    """Return columns for an axis that fits them, True for a logarithmic one, and a caption of what it leaves out.

    Logarithmic where values span more than a linear axis can show, and hardly any is 0. What lies below 0 by less than
    `ROUNDING` of the largest value counts as 0: a KL in float32 does.
    """
    values = [each for column in columns.values() for each in column if each is not None]
    above = [each for each in values if each > 0]
    few = len(above) > 0.8 * len(values)
    if not (few and min(values) >= -ROUNDING * max(above) and max(above) / min(above) > 30):
        return columns, False, ""
    caption = "Values of 0 are not shown." if len(above) < len(values) else ""
    shown = {key: [each if each is None or each > 0 else None for each in column] for key, column in columns.items()}
    return shown, True, caption
