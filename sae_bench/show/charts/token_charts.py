"""Charts of tokens and documents: KL per token, token types as a funnel and by frequency, documents in order."""

from __future__ import annotations

import math
from dataclasses import replace

from sae_bench.measure.measurement import Series
from sae_bench.show.charts.figure import Figure, axis, numbers, shorten, token
from sae_bench.show.charts.series_charts import histogram

NAMED = 3
"Token types that lie farthest outside of the funnel and are named in it."


def token_histogram(series: Series) -> Figure | None:
    """Return the distribution over tokens; shares below the axis, which ends where float32 does, are in the caption."""
    figure = histogram("kl_tokens", series)
    if figure is None or figure.data[0]["x"][0] > min(series.columns["edges"]):
        return figure
    shares = [(trace["name"], trace["y"][0]) for trace in figure.data]
    highest = max(share or 0.0 for trace in figure.data for share in trace["y"][1:])
    if not highest or max(share for _, share in shares) <= highest:
        return figure
    below = ", ".join(f"{name} {share:.0%}" for name, share in shares)
    scale = {**figure.layout["yaxis"], "range": [0, 1.1 * highest]}
    caption = f"Tokens below {min(series.columns['edges']):g} nats, at the left edge: {below}."
    return replace(figure, layout={**figure.layout, "yaxis": scale}, caption=caption)


def ranked_documents(series: Series) -> Figure | None:
    """Draw the documents from the best to the worst, by the first column that is not the axis' own."""
    values = next((values for key, values in series.columns.items() if key != series.x), ())
    column = [each for each in numbers(values) if each is not None]
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
    """Draw the mean gap against occurrences: what scatters no more than sampling explains lies between the curves."""
    names, n, gap, se = _types(series)
    if len(n) < 2:
        return None
    mean = sum(a * b for a, b in zip(n, gap, strict=True)) / sum(n)
    # A type's variance per occurrence, over all occurrences.
    deviation = math.sqrt(sum((error * count) ** 2 for error, count in zip(se, n, strict=True)) / sum(n))
    low, high = min(n), max(n)
    counts = [low * (high / low) ** (step / 40) for step in range(41)] if high > low else [low, low]
    outside = [abs(each - mean) * math.sqrt(count) / (deviation or 1.0) for each, count in zip(gap, n, strict=True)]
    named = sorted((z for z in outside if z > 1.96), reverse=True)[:NAMED]
    texts = [name if z in named else "" for name, z in zip(names, outside, strict=True)]
    data = [{**_type_points(series, swapped=True), "mode": "markers+text", "text": texts, "customdata": names,
             "hovertemplate": "%{customdata}: %{x}, %{y}", "textposition": "top center"}]  # fmt: skip
    for sign in (-1, 1):
        x = [shorten(mean + sign * 1.96 * deviation / math.sqrt(count)) for count in counts]
        data.append({"type": "scatter", "mode": "lines", "x": x, "y": [shorten(count) for count in counts],
                     "line": {"color": "$ink", "dash": "dash", "width": 1}, "name": "sampling alone",
                     "showlegend": sign > 0, "hoverinfo": "skip"})  # fmt: skip
    layout = {"xaxis": axis("mean gap, nats", zeroline=True), "yaxis": axis("occurrences", log=True)}
    return Figure("Funnel of token types", data, layout, f"{series.title}; {mean:.3g} nats over all listed types.")


def by_frequency(series: Series) -> Figure | None:
    """Draw the gap against how often a token type occurs."""
    if not _types(series)[0]:
        return None
    layout = {"xaxis": axis("occurrences", log=True), "yaxis": axis("mean gap, nats"), "showlegend": False}
    return Figure("Frequency against gap", [_type_points(series, swapped=False)], layout, series.title)
