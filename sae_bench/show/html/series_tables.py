"""Series that are read as text: tables with links to dashboards, and documents with shaded tokens."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote

from sae_bench.measure.measurement import Series
from sae_bench.measure.shared import packed_text
from sae_bench.report.records import PropertyResult, SAEResult, number
from sae_bench.show.charts import property_charts
from sae_bench.show.charts.figure import is_number, ordered
from sae_bench.show.charts.series_charts import holds_codes, picture
from sae_bench.show.html.views import Cell, Document, Documents, SeriesTable, Token

ROWS = 30
"Rows of a series that is a table of names."
SHADES = 5
_FEATURES = {"feature", "that_neighbour", "explained_by"}
"Columns that name features, one or several."


def series_table(name: str, series: Series, sae: SAEResult) -> SeriesTable | None:
    """Return a series with names or features in it as a table; None for a series that is drawn."""
    columns = ordered(series.columns)
    keys = list(columns)
    rows = list(zip(*columns.values(), strict=False))
    if series.kind != "table" or not rows or packed_text.holds_documents(series):
        return None
    wordy = any(isinstance(each, str) for row in rows for each in row)
    if holds_codes(series) or not (wordy or "feature" in keys or picture(name, series) is None):
        return None
    dashboard = sae.provenance.get("neuronpedia_id")
    return SeriesTable(
        series.title or name,
        f", the first {ROWS} of {len(rows)}" if len(rows) > ROWS else "",
        tuple(keys),
        tuple(tuple(_cell(key, each, dashboard) for key, each in zip(keys, row, strict=True)) for row in rows[:ROWS]),
    )


def _cell(key: str, value: Any, dashboard: Any) -> Cell:
    if key in _FEATURES and dashboard:
        features = [str(value)] if is_number(value) else str(value).split(", ")
        if all(each.isdecimal() for each in features):
            address = f"https://www.neuronpedia.org/{quote(str(dashboard))}"
            return Cell("", links=tuple((f"{address}/{feature}", feature) for feature in features))
    if is_number(value):
        return Cell(number(float(value), 4) if isinstance(value, float) else str(value), right=True)
    return Cell("" if value is None else str(value))


def documents_as_text(series: Series, result: PropertyResult, before: PropertyResult | None) -> Documents | None:
    """Return the three documents that changed most, or else that lose most; None for a series without text."""
    if not packed_text.holds_documents(series):
        return None
    documents = packed_text.unpack_documents(series)
    if not documents:
        return Documents(unreadable=True)
    changes = [pair for pair in property_charts.document_changes(result, before) if pair[0] in documents]
    title, chosen = (
        "Documents that changed most",
        [(key, f"#{key} changed by {size:+.3g}") for key, size in changes[:3]],
    )
    if not chosen:
        means = {key: sum(kl for _, kl in tokens) / len(tokens) for key, tokens in documents.items() if tokens}
        worst = sorted(means, key=lambda document: -means[document])[:3]
        title, chosen = "Documents that lose most", [(key, f"#{key}, mean {means[key]:.3g}") for key in worst]
    return Documents(
        title,
        tuple(
            Document(label, tuple(Token(token, _shade(kl), f"{kl:.2g} nats") for token, kl in documents[key]))
            for key, label in chosen
        ),
    )


def _shade(kl: float) -> int:
    return min(max(math.floor(math.log(kl / 0.01, 3)) + 1, 0), SHADES) if kl > 0 else 0
