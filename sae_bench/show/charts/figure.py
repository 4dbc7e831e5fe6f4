"""Parts of plotly figures as plain JSON: labels, axes, lines, limits.

Colours are names (``$0`` to ``$7``, ``$ink``, ``$bad`` ...) that the page turns into those of its theme. Text that
comes from a report is escaped, because plotly reads markup in labels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sae_bench.report.records import MetricResult

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star")
NAMING = ("x", "q", "edges", "concept", "feature", "document", "position", "token", "name", "from", "to")
_RANKS = {**dict.fromkeys(NAMING, 0), **dict.fromkeys(("sae", "features", "all"), 2)}
MARKED = {"sae", "feature"}
"Conditions that are compared with all others of their chart."


Columns: TypeAlias = dict[str, list[float | None]]


@dataclass(frozen=True)
class Figure:
    """Figure: plotly's traces and layout, and the text around them."""

    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    caption: str = ""
    wide: bool = False

    @property
    def spec(self) -> dict[str, Any]:
        """Return the JSON that the page draws."""
        return {"data": self.data, "layout": self.layout}


def label(text: object) -> str:
    """Return text for plotly, with markup made visible."""
    return html.escape(str(text), quote=False).replace("\n", "⏎")


def token(text: object) -> str:
    """Return a token for plotly, with the spaces at its ends made visible."""
    shown = str(text)
    bare = shown.strip(" ")
    lead = len(shown) - len(shown.lstrip(" "))
    return label("␣" * lead + bare + "␣" * (len(shown) - len(bare) - lead)) if bare else label("␣" * len(shown))


def shorten(value: float) -> float | None:
    """Round to four significant digits, finer than a pixel; None (JSON's null, a gap) for what is not finite."""
    short = float(f"{value:.4g}")
    return short if math.isfinite(short) else None


def numbers(column: Sequence[Any]) -> list[float | None]:
    """Return a column as numbers for plotly; any other value becomes a gap."""
    return [shorten(float(each)) if is_number(each) else None for each in column]


def ordered(columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Sort columns: those that name a row, those that a property is about, then by name.

    Reports sort their keys, so the order of a property's columns is not stored.
    """
    return {key: columns[key] for key in sorted(columns, key=lambda key: (_RANKS.get(key, _rank_of(key)), key))}


def _rank_of(key: str) -> int:
    return 1 if key.endswith(("_from", "_to")) else 3


def is_number(each: Any) -> bool:
    """Return True for a finite number."""
    return isinstance(each, int | float) and not isinstance(each, bool)


def is_numeric(column: Sequence[Any]) -> bool:
    """Return True when every value is a number or missing."""
    return any(is_number(each) for each in column) and all(each is None or is_number(each) for each in column)


def axis(title: str = "", *, log: bool = False, **more: Any) -> dict[str, Any]:
    """Return a plotly axis."""
    values: dict[str, Any] = {"title": {"text": label(title)}, **more}
    if log:
        values |= {"type": "log", "exponentformat": "power"}
    return values


def line(name: str, index: int, x: Sequence[Any], y: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Return one line; colour, dash and marker all differ from its neighbours'."""
    style = {"color": f"${index % 8}", "dash": DASHES[index % len(DASHES)], "width": 2.5 if index == 0 else 1.75}
    return {"type": "scatter", "mode": "lines", "name": label(name), "x": list(x), "y": list(y), "line": style, **more}


def upright(x: float, name: str, color: str, dash: str = "solid") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a vertical line over the whole height, and its legend entry."""
    shape = {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper",
             "line": {"color": color, "dash": dash, "width": 2}}  # fmt: skip
    entry = {"type": "scatter", "mode": "lines", "x": [None], "y": [None], "name": label(name),
             "line": {"color": color, "dash": dash, "width": 2}}  # fmt: skip
    return shape, entry


def bounds(metric: MetricResult) -> list[float]:
    """Return the range of an axis."""
    values = []
    for limit in metric.limits:
        if limit.hard:
            values.append(limit.bound)
        elif metric.accepted is not None and not (limit.se or limit.noise):
            width = limit.relative * abs(metric.accepted) + limit.absolute
            signs = {"lower": (1,), "higher": (-1,)}.get(metric.better, (-1, 1))
            values += [metric.accepted + sign * width for sign in signs]
    return values
