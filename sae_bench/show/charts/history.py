"""One metric over the commits at which reports were accepted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sae_bench.report.records import Limit, MetricResult
from sae_bench.show.charts.figure import SYMBOLS, Figure, axis, label, shorten

Z95 = 1.96


def history(metric: str, dates: Sequence[str], values: Mapping[str, Sequence[MetricResult | None]]) -> Figure | None:
    """Draw one metric over accepted reports: a line per SAE, with intervals; a hard limit is drawn across.

    Accepted files hold standard errors, not intervals; the limits are those of each SAE's last report.

    Args:
        metric: ``property.metric``.
        dates: a label per report, oldest first.
        values: by SAE, one entry per label.
    """
    data: list[dict[str, object]] = []
    hard = {f"{'≤' if limit.kind == 'max' else '≥'} {limit.bound:g}": limit.bound for limit in _hard(values)}
    for index, (sae, column) in enumerate(sorted(values.items())):
        if not any(each is not None and each.value is not None for each in column):
            continue
        ys = [each.value if each is not None else None for each in column]
        error = [None if each is None or each.se is None else shorten(Z95 * each.se) for each in column]
        data.append({"type": "scatter", "mode": "lines+markers", "name": label(sae), "x": [label(d) for d in dates],
                     "y": [None if y is None else shorten(y) for y in ys], "connectgaps": True,
                     "error_y": {"type": "data", "array": error, "thickness": 1, "color": "$faint"},
                     "line": {"color": f"${index % 8}"},
                     "marker": {"symbol": SYMBOLS[index % 8], "size": 8}})  # fmt: skip
    if not data:
        return None
    shapes = [{"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": y, "y1": y,
               "line": {"color": "$bad", "dash": "dot", "width": 2}} for y in hard.values()]  # fmt: skip
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
    caption = [f"{len(dates)} accepted reports, ±{Z95} standard errors"] + (
        [f"dotted: {', '.join(hard)}"] if hard else []
    )
    return Figure(metric, data, layout, "; ".join(caption) + ".")


def _hard(values: Mapping[str, Sequence[MetricResult | None]]) -> list[Limit]:
    """Return the hard limits of the last report of each SAE."""
    last = [next((each for each in reversed(column) if each is not None), None) for _, column in sorted(values.items())]
    return [limit for each in last if each is not None for limit in each.limits if limit.hard]
