"""Tables of metrics, and the marks and addresses in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from sae_bench.report.records import MetricResult, Verdict
from sae_bench.report.report import Report
from sae_bench.show import cells as words
from sae_bench.show.charts.bullet_chart import bullet
from sae_bench.show.charts.figure import shorten
from sae_bench.show.html.views import Cell, Mark, RowsTable, RowView
from sae_bench.show.rows import Row, all_rows

GLYPHS = {
    Verdict.PASS: "✓", Verdict.IMPROVED: "▲", Verdict.KNOWN: "◆", Verdict.UNDEFINED: "∅", Verdict.NEW: "+",
    Verdict.INCONCLUSIVE: "?", Verdict.FAIL: "✗", Verdict.INCOMPARABLE: "≠", Verdict.MISSING: "⊘", Verdict.ERROR: "!",
}  # fmt: skip
"A shape for each verdict, so that colour is not needed to tell them apart."
_RIGHT = ("accepted", "now", "change")


def anchor(sae: str, name: str = "") -> str:
    """Return the id of a section."""
    return f"{sae}--{name}" if name else f"{sae}--"


def link(sae: str, name: str = "") -> str:
    """Return the address of a section."""
    return "#" + quote(anchor(sae, name), safe="")


def glyph(verdict: Verdict) -> Mark:
    """Return a verdict without its word, where there is room for no more."""
    return Mark(f"v v-{verdict.value.lower()}", GLYPHS[verdict])


def mark(
    verdict: Verdict | None, exceeds_limit: bool = False, more: str = "", metric: MetricResult | None = None
) -> Mark:
    """Return a verdict as glyph and word."""
    if verdict is None:
        return Mark("v v-none", f"· {words.unjudged_word(metric)}")
    alarm = " alarm" if words.needs_attention(verdict, exceeds_limit) else ""
    word = words.verdict_word(verdict, exceeds_limit)
    return Mark(f"v v-{verdict.value.lower()}{alarm}", f"{GLYPHS[verdict]} {word}{more}")


def rows_table(rows: Sequence[Row], with_sae: bool = True) -> RowsTable:
    """Return metrics with their numbers, limits and verdicts."""
    names = [
        "verdict",
        *(["SAE"] if with_sae else []),
        "metric",
        "accepted",
        "now",
        "change",
        "interval",
        "allowed",
        "",
    ]
    heads = tuple(Cell(name, name, right=name in _RIGHT) for name in names)
    return RowsTable(heads, tuple(_row(row, with_sae) for row in rows), with_sae)


def _row(row: Row, with_sae: bool) -> RowView:
    metric = row.result
    cells: tuple[Cell, ...] = ()
    if metric is not None:
        unit = words.unit(metric) if metric.value is not None else ""
        cells = (
            Cell(words.accepted(metric), "accepted", right=True),
            Cell(f"{words.value(metric)} {unit}".strip(), "now", right=True),
            Cell(words.change(metric), "change", right=True),
            Cell(words.interval(metric) or words.value_interval(metric), "interval"),
            Cell(words.allowed(metric), "allowed"),
        )
    return RowView(
        mark(row.verdict, row.exceeds_limit, f" (+{row.more})" if row.more else "", metric),
        row.sae,
        row.name if with_sae else row.metric or row.name,
        link(row.sae, row.property_name) if with_sae and row.metric else "",
        metric.meaning if metric is not None else "",
        cells,
        bullet(metric) if metric is not None else None,
        tuple(row.notes),
    )


def reported_rows(rows: Sequence[Row]) -> tuple[tuple[str, ...], ...]:
    """Return name, accepted value, value and interval of metrics without a limit."""
    lines = []
    for row in rows:
        assert row.result is not None
        metric = row.result
        value = f"{words.value(metric)} {words.unit(metric)}" if metric.value is not None else metric.full_reason
        lines.append((row.metric, words.accepted(metric), value.strip(), words.value_interval(metric)))
    return tuple(lines)


def meanings(report: Report) -> dict[str, str]:
    """Return the meaning of every metric, by name."""
    rows = (row for row in all_rows(report) if row.result is not None and row.result.meaning)
    return dict(sorted((row.name, row.result.meaning) for row in rows if row.result is not None))


def table_data(report: Report) -> dict[str, Any]:
    """Return the table of all metrics as the page's script reads it: a number to sort by and its text, or a text."""
    columns = ["SAE", "metric", "now", "accepted", "change", "interval", "allowed", "verdict"]
    rows = []
    for row in all_rows(report):
        metric, word = row.result, words.verdict_word(row.verdict, row.exceeds_limit)
        numbers: list[Any] = [None, None, None, "", ""]
        if metric is not None:
            unit = words.unit(metric)
            numbers = [
                [
                    shorten(metric.value) if metric.value is not None else None,
                    f"{words.value(metric)} {unit}".strip() if metric.value is not None else "-",
                ],
                [shorten(metric.accepted), words.accepted(metric)] if metric.accepted is not None else None,
                [shorten(metric.change), words.change(metric)] if metric.change is not None else None,
                words.interval(metric) or words.value_interval(metric),
                words.allowed(metric),
            ]
        judged = row.verdict is not None and (row.verdict is not Verdict.UNDEFINED or bool(metric and metric.limits))
        rows.append([row.sae, row.name, *numbers, word, row.property_name, int(judged)])
    return {"columns": columns, "rows": rows}
