"""Tables of metrics for the HTML report, and the marks and addresses that stand in them. All text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from sae_bench.report.records import MetricResult, Verdict
from sae_bench.report.report import Report
from sae_bench.show import cells as words
from sae_bench.show.charts.bullet_chart import bullet
from sae_bench.show.charts.figure import shorten
from sae_bench.show.html.series_tables import scroll
from sae_bench.show.rows import Row, all_rows

GLYPHS = {
    Verdict.PASS: "✓", Verdict.IMPROVED: "▲", Verdict.KNOWN: "◆", Verdict.UNDEFINED: "∅", Verdict.NEW: "+",
    Verdict.INCONCLUSIVE: "?", Verdict.FAIL: "✗", Verdict.INCOMPARABLE: "≠", Verdict.MISSING: "⊘", Verdict.ERROR: "!",
}  # fmt: skip
"A shape beside each colour."


def anchor(sae: str, name: str = "") -> str:
    """The id of a section."""
    return f"{sae}--{name}" if name else f"{sae}--"


def link(sae: str, name: str = "") -> str:
    """The address of a section."""
    return "#" + quote(anchor(sae, name), safe="")


def glyph(verdict: Verdict) -> str:
    """A verdict without its word, where there is room for no more."""
    return f'<span class="v v-{verdict.value.lower()}">{GLYPHS[verdict]}</span>'


def mark(
    verdict: Verdict | None, exceeds_limit: bool = False, more: str = "", metric: MetricResult | None = None
) -> str:
    """A verdict as glyph and word."""
    if verdict is None:
        return f'<span class="v v-none">· {words.unjudged_word(metric)}</span>'
    alarm = " alarm" if words.needs_attention(verdict, exceeds_limit) else ""
    word = words.verdict_word(verdict, exceeds_limit)
    return f'<span class="v v-{verdict.value.lower()}{alarm}">{GLYPHS[verdict]} {word}{escape(more)}</span>'


def rows_table(rows: Sequence[Row], sae: bool = True) -> str:
    """Metrics with their numbers, limits and verdicts."""
    names = ["verdict", *(["SAE"] if sae else []), "metric", "accepted", "now", "change", "interval", "allowed", ""]
    right = ("accepted", "now", "change")
    head = "".join(f"<th scope=col{' class=n' if n in right else ''}>{n}</th>" if n else "<td></td>" for n in names)
    body = "".join(_row(row, sae, len(names)) for row in rows)
    return scroll(f"<table class=rows><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _row(row: Row, sae: bool, width: int) -> str:
    metric = row.result
    cells = [f"<td>{mark(row.verdict, row.exceeds_limit, f' (+{row.more})' if row.more else '', metric)}</td>"]
    cells += [f"<td class=name>{escape(row.sae).replace('/', '/<wbr>')}</td>"] if sae else []
    name = escape(row.name if sae else row.metric or row.name)
    title = f' title="{escape(metric.meaning)}"' if metric is not None and metric.meaning else ""
    shown = f'<a href="{link(row.sae, row.property_name)}">{name}</a>' if sae and row.metric else name
    cells.append(f"<td{title}>{shown}</td>")
    if metric is None:
        cells += ["<td></td>"] * 6
    else:
        unit = words.unit(metric) if metric.value is not None else ""
        cells += [
            _cell("accepted", words.accepted(metric), right=True),
            _cell("now", f"{words.value(metric)} {unit}".strip(), right=True),
            _cell("change", words.change(metric), right=True),
            _cell("interval", words.interval(metric) or words.value_interval(metric)),
            _cell("allowed", words.allowed(metric)),
            f"<td>{bullet(metric)}</td>",
        ]
    text = f"<tr>{''.join(cells)}</tr>"
    if row.notes:
        why = "<br>".join(map(escape, row.notes))
        text += f'<tr class="note"><td></td><td class="why" colspan="{width - 1}">{why}</td></tr>'
    return text


def reported_table(rows: Sequence[Row]) -> str:
    """Metrics without a limit: fewer columns, and no verdict."""
    head = "".join(f"<th scope=col>{name}</th>" for name in ("metric", "accepted", "now", "interval"))
    lines = []
    for row in rows:
        assert row.result is not None
        metric = row.result
        value = f"{words.value(metric)} {words.unit(metric)}" if metric.value is not None else metric.full_reason
        texts = (words.accepted(metric), value.strip(), words.value_interval(metric))
        cells = "".join(f"<td>{escape(each)}</td>" for each in (row.metric, *texts))
        lines.append(f"<tr>{cells}</tr>")
    return scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>")


def _cell(name: str, text: str, *, right: bool = False) -> str:
    """A cell that knows its column's name, for windows too narrow for columns."""
    label = f' data-name="{name}"' if text else ""
    return f"<td{' class=n' if right else ''}{label}>{escape(text)}</td>"


def meanings(report: Report) -> str:
    """Return the meanings of metrics as a list."""
    found = {row.name: row.result.meaning for row in all_rows(report) if row.result is not None and row.result.meaning}
    if not found:
        return ""
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(found[name])}</dd>" for name in sorted(found))
    return f"<details id=meanings><summary>What the {len(found)} metrics mean</summary><dl>{entries}</dl></details>"


def table_data(report: Report) -> dict[str, Any]:
    """The table of all metrics, as the page's script reads it: a number to sort by and its text, or a text."""
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
