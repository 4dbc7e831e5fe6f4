"""Series that are read rather than looked at: tables with links to dashboards, and documents with shaded tokens."""

from __future__ import annotations

import math
from html import escape
from typing import Any
from urllib.parse import quote

from sae_bench.measure.measurement import Series
from sae_bench.measure.shared import packed_text
from sae_bench.report.records import PropertyResult, SAEResult, number
from sae_bench.show.charts import property_charts
from sae_bench.show.charts.figure import is_number, ordered
from sae_bench.show.charts.series_charts import is_coded, picture

ROWS = 30
"Of a series that is a table of names."
SHADES = 5
_FEATURES = {"feature", "that_neighbour", "explained_by"}
"Columns that name features, one or several."


def scroll(table: str) -> str:
    """A table that scrolls by itself where the window is narrow."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{table}</div>'


def series_table(name: str, series: Series, sae: SAEResult) -> str:
    """A series with names or features in it, as a table; features link to their dashboards where there are any."""
    columns = ordered(series.columns)
    keys = list(columns)
    rows = list(zip(*columns.values(), strict=False))
    if series.kind != "table" or not rows or packed_text.holds_documents(series):
        return ""
    wordy = any(isinstance(each, str) for row in rows for each in row)
    if is_coded(series) or not (wordy or "feature" in keys or picture(name, series) is None):
        return ""
    dashboard = sae.provenance.get("neuronpedia_id")
    body = "".join(f"<tr>{''.join(_cell(key, each, dashboard) for key, each in zip(keys, row, strict=True))}</tr>"
                   for row in rows[:ROWS])  # fmt: skip
    head = "".join(f"<th scope=col>{escape(key)}</th>" for key in keys)
    more = f", the first {ROWS} of {len(rows)}" if len(rows) > ROWS else ""
    table = scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    return f"<details><summary>{escape(series.title or name)} as a table{more}</summary>{table}</details>"


def _link(dashboard: Any, feature: int) -> str:
    address = f"https://www.neuronpedia.org/{quote(str(dashboard))}/{feature}"
    return f'<a href="{address}" rel="noreferrer">{feature}</a>'


def _cell(key: str, value: Any, dashboard: Any) -> str:
    if key in _FEATURES and dashboard:
        named = [value] if is_number(value) else str(value).split(", ")
        if all(str(each).isdecimal() for each in named):
            return f"<td>{', '.join(_link(dashboard, int(each)) for each in named)}</td>"
    if is_number(value):
        return f'<td class="n">{number(float(value), 4) if isinstance(value, float) else value}</td>'
    return f"<td>{'' if value is None else escape(str(value))}</td>"


def documents_as_text(series: Series, result: PropertyResult, before: PropertyResult | None) -> str:
    """The three documents that moved most, as text: each token shaded by its KL."""
    if not packed_text.holds_documents(series):
        return ""
    documents = packed_text.unpack_documents(series)
    if not documents:
        return "<p class=quiet>The text of the documents cannot be read.</p>"
    far = property_charts.moved(result, before)
    held = [(document, change) for document, change in far if document in documents]
    chosen = [(document, f"#{document} moved by {change:+.3g}") for document, change in held[:3]]
    title = "Documents that moved most"
    if not chosen:
        title = "Documents that lose most"
        mean = {key: sum(kl for _, kl in tokens) / len(tokens) for key, tokens in documents.items() if tokens}
        most = sorted(mean, key=lambda document: -mean[document])[:3]
        chosen = [(document, f"#{document}, mean {mean[document]:.3g}") for document in most]
    parts = [f"<h3>{title}</h3><p class=quiet>Darker: larger KL, in steps of a factor 3 from 0.01 nats.</p>"]
    for document, said in chosen:
        spans = "".join(
            f'<span class="k{_shade(kl)}" title="{kl:.2g} nats">{escape(token)}</span>' if _shade(kl) else escape(token)
            for token, kl in documents[document]
        )
        parts.append(f'<p class="tokens"><span class="quiet">{escape(said)}</span>\n{spans}</p>')
    return "".join(parts)


def _shade(kl: float) -> int:
    return min(max(math.floor(math.log(kl / 0.01, 3)) + 1, 0), SHADES) if kl > 0 else 0
