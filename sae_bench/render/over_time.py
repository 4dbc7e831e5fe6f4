"""One metric over the commits at which reports were accepted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sae_bench.render.figures import SYMBOLS, Figure, axis, label, shorten
from sae_bench.render.words import limits_of
from sae_bench.results import MetricResult


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
