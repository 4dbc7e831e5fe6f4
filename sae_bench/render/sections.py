"""The parts of the HTML report: grid, changes, a section per SAE, comparison, provenance. All text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import quote

from sae_bench.outcome import Verdict
from sae_bench.render import facts, known, pareto, words
from sae_bench.render.bullets import bullet
from sae_bench.render.figures import Figure, shorten
from sae_bench.render.listed import documents_as_text, scroll, series_table
from sae_bench.render.rows import Row, all_rows, changed, properties, property_rows
from sae_bench.results import MetricResult, PropertyResult, Report, SAEResult

GLYPHS = {
    Verdict.PASS: "✓", Verdict.IMPROVED: "▲", Verdict.KNOWN: "◆", Verdict.UNDEFINED: "∅", Verdict.NEW: "+",
    Verdict.INCONCLUSIVE: "?", Verdict.FAIL: "✗", Verdict.INCOMPARABLE: "≠", Verdict.MISSING: "⊘", Verdict.ERROR: "!",
}  # fmt: skip
"A shape beside each colour."
CHANGES = 60
_SILENT = (None, Verdict.UNDEFINED)


@dataclass
class Gallery:
    """Figures of the page, by the name under which the script finds them."""

    specs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, figure: Figure) -> str:
        """The figure's place in the page."""
        name = f"f{len(self.specs)}"
        self.specs[name] = figure.spec
        caption = f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
        return (
            f"<figure{' class=wide' if figure.wide else ''}><h4>{escape(figure.title)}</h4>"
            f'<div class="plot" data-figure="{name}" role="img" aria-label="{escape(figure.title)}"></div>'
            f"{caption}</figure>"
        )


def anchor(sae: str, name: str = "") -> str:
    """The id of a section."""
    return f"{sae}--{name}" if name else f"{sae}--"


def link(sae: str, name: str = "") -> str:
    """The address of a section."""
    return "#" + quote(anchor(sae, name), safe="")


def mark(verdict: Verdict | None, beyond: bool = False, more: str = "", metric: MetricResult | None = None) -> str:
    """A verdict as glyph and word."""
    if verdict is None:
        return f'<span class="v v-none">· {words.unjudged_word(metric)}</span>'
    alarm = " alarm" if words.needs_attention(verdict, beyond) else ""
    word = words.verdict_word(verdict, beyond)
    return f'<span class="v v-{verdict.value.lower()}{alarm}">{GLYPHS[verdict]} {word}{escape(more)}</span>'


def grid(report: Report) -> str:
    """A verdict per SAE and property; each cell leads to its section."""
    names = sorted({name for _, name, _ in properties(report)})
    if not names:
        return "<p>Nothing was measured.</p>"
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    lines = []
    for sae in sorted(report.saes):
        cells = []
        for name in names:
            result = report.saes[sae].properties.get(name)
            if result is None:
                cells.append('<td class="quiet">not run</td>')
                continue
            said = escape(f"{name} of {sae}")
            cells.append(
                f'<td><a href="{link(sae, name)}" aria-label="{said}: {words.verdict_word(result.verdict)}">'
                f"{mark(result.verdict, result.beyond)}</a></td>"
            )
        head_cell = f'<th scope=row title="{escape(sae)}"><a href="{link(sae)}">{escape(sae)}</a></th>'
        lines.append(f"<tr>{head_cell}{''.join(cells)}</tr>")
    return scroll(f"<table class=grid><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>")


def changes(report: Report) -> str:
    """What is not as it was accepted, worst first; then what moved within its limits."""
    shown = changed(report)
    parts = [rows_table(shown[:CHANGES])] if shown else ["<p>Everything that was judged passes.</p>"]
    if len(shown) > CHANGES:
        parts.append(f"<p class=quiet>and {len(shown) - CHANGES} more, in the sections below</p>")
    if not facts.compared(report):
        parts.append("<p>There is no accepted side: nothing was compared with an earlier report.</p>")
    moved = [row for row in all_rows(report) if row.verdict is Verdict.PASS and row.result and row.result.change]
    moved.sort(key=lambda row: (-_share_of_limit(row.result), row.sae, row.name))
    if moved:
        table = rows_table(moved[:CHANGES])
        shown_of = f", {CHANGES} shown" if len(moved) > CHANGES else ""
        count = f"{len(moved)} metrics moved within their limits{shown_of}"
        parts.append(f"<details><summary>{count}, nearest to the limit first</summary>{table}</details>")
    return "".join(parts)


def _share_of_limit(metric: MetricResult | None) -> float:
    """A change as a share of what is allowed; 0 where the report doesn't say how much that is."""
    if metric is None or metric.change is None or metric.accepted is None:
        return 0.0
    widths = [limit.relative * abs(metric.accepted) + limit.absolute for limit in words.limits_of(metric)
              if not (limit.hard or limit.se or limit.noise)]  # fmt: skip
    return abs(metric.change) / widths[0] if widths and widths[0] else 0.0


def rows_table(rows: Sequence[Row], sae: bool = True) -> str:
    """Metrics with their numbers, limits and verdicts."""
    names = ["verdict", *(["SAE"] if sae else []), "metric", "accepted", "now", "change", "interval", "allowed", ""]
    right = ("accepted", "now", "change")
    head = "".join(f"<th scope=col{' class=n' if n in right else ''}>{n}</th>" if n else "<td></td>" for n in names)
    body = "".join(_row(row, sae, len(names)) for row in rows)
    return scroll(f"<table class=rows><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _row(row: Row, sae: bool, width: int) -> str:
    metric = row.result
    cells = [f"<td>{mark(row.verdict, row.beyond, f' (+{row.more})' if row.more else '', metric)}</td>"]
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


def _reported(rows: Sequence[Row]) -> str:
    """Metrics without a limit: fewer columns, and no verdict."""
    head = "".join(f"<th scope=col>{name}</th>" for name in ("metric", "accepted", "now", "interval"))
    lines = []
    for row in rows:
        assert row.result is not None
        metric = row.result
        value = f"{words.value(metric)} {words.unit(metric)}" if metric.value is not None else metric.reason
        texts = (words.accepted(metric), value.strip(), words.value_interval(metric))
        cells = "".join(f"<td>{escape(each)}</td>" for each in (row.metric, *texts))
        lines.append(f"<tr>{cells}</tr>")
    return scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>")


def _cell(name: str, text: str, *, right: bool = False) -> str:
    """A cell that knows its column's name, for windows too narrow for columns."""
    label = f' data-name="{name}"' if text else ""
    return f"<td{' class=n' if right else ''}{label}>{escape(text)}</td>"


def sae_section(report: Report, sae: str, accepted: Report | None, gallery: Gallery, opened: bool) -> str:
    """Everything about one SAE; properties that need attention are unfolded."""
    found = report.saes[sae]
    described = [pareto.architecture(found), *(tag for tag in found.tags if not tag.startswith("architecture:"))]
    described += [f"{key} {value}" for key, value in facts.flat(found.provenance).items() if key != "architecture"]
    parts = [f'<section><h2 id="{escape(anchor(sae))}">{escape(sae)}</h2>']
    parts.append(f"<p class=quiet>{escape(' · '.join(described))}</p>")
    if not found.properties:
        parts.append("<p>No property of it was measured.</p>")
    before = accepted.saes.get(sae) if accepted is not None else None
    for name in sorted(found.properties):
        held = before.properties.get(name) if before is not None else None
        parts.append(property_section(sae, found, name, held, gallery, opened))
    return "".join([*parts, "</section>"])


def property_section(
    sae: str, found: SAEResult, name: str, before: PropertyResult | None, gallery: Gallery, opened: bool
) -> str:
    """One property of one SAE: its verdict in words, its numbers, its pictures."""
    result = found.properties[name]
    alarm = words.needs_attention(result.verdict, result.beyond)
    first = result.lines[0] if result.lines else ""
    rows = list(property_rows(sae, name, result))
    judged = [row for row in rows if row.result is not None and (row.verdict not in _SILENT or row.result.limit)]
    reported = [row for row in rows if row.result is not None and row not in judged]
    parts = [f'<pre class="lines">{escape(chr(10).join(result.lines))}</pre>'] if len(result.lines) > 1 else []
    parts += [rows_table(judged, sae=False)] if judged else []
    figures, empty = known.pictures(result, before)
    parts += [f'<div class="figures">{"".join(map(gallery.add, figures))}</div>'] if figures else []
    if not figures and result.metrics:
        parts.append("<p class=quiet>This property has no distribution to draw; its numbers stand above and below.</p>")
    parts += [f"<p class=quiet>{escape(each)}: nothing to draw, it holds no values</p>" for each in empty]
    parts += [series_table(title, series, found) for title, series in result.series.items()]
    parts += [documents_as_text(series, result, before) for series in result.series.values()]
    if reported:
        summary = f"{len(reported)} metrics reported, not judged"
        parts.append(f"<details><summary>{summary}</summary>{_reported(reported)}</details>")
    parts += [f"<p>{escape(note)}</p>" for note in result.notes if "\n" not in note]
    parts += [f'<pre class="lines">{escape(note)}</pre>' for note in result.notes if "\n" in note]
    parts.append(f"<p class=quiet>{escape(_footnote(result))}</p>")
    shown = " open" if alarm or opened else ""
    return (
        f'<details class="property{" alarm" if alarm else ""}" id="{escape(anchor(sae, name))}"{shown}>'
        f"<summary>{mark(result.verdict, result.beyond)} <b>{escape(name)}</b>"
        f'<span class="line quiet">{escape(first)}</span></summary><div class="body">{"".join(parts)}</div></details>'
    )


def _footnote(result: PropertyResult) -> str:
    confidence = None if result.confidence is None else f"intervals {100 * result.confidence:.4g}%"
    documents = f"{len(result.clusters)} documents" if result.clusters else None
    seconds = None if result.seconds is None else f"{result.seconds:.1f} s"
    taken = result.acceptance
    accepted = None if taken is None else f"accepted by {taken.who} on {taken.when}: {taken.reason}"
    context = result.context_digest.removeprefix("sha256:")[:8]
    shown_context = f"context {context}" if context else None
    told = [f"version {result.version}", documents, confidence, seconds, shown_context, accepted]
    return " · ".join(filter(None, told))


def compare(report: Report, gallery: Gallery) -> str:
    """Quality against sparsity over all SAEs."""
    figures = pareto.pareto(report)
    if not figures:
        needed = "sparsity.l0 and kl_gap.kl_sae (or reconstruction.explained_variance)"
        return f"<p>SAEs are compared by {needed}, which no SAE of this report has both of.</p>"
    return f'<div class="figures fit">{"".join(map(gallery.add, figures))}</div>'


def meanings(report: Report) -> str:
    """What every metric of the report is, once."""
    found = {row.name: row.result.meaning for row in all_rows(report) if row.result is not None and row.result.meaning}
    if not found:
        return ""
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(found[name])}</dd>" for name in sorted(found))
    return f"<details id=meanings><summary>What the {len(found)} metrics mean</summary><dl>{entries}</dl></details>"


def provenance(report: Report) -> str:
    """Context, which decides what may be compared, and where the run comes from."""
    parts = ["<h2 id=about>Context and provenance</h2>"]
    parts.append("<h3>Context: decides whether results may be compared</h3><dl>")
    for name, values in facts.contexts(report).items():
        several = len(values) > 1
        told = [f"{value}{_whose(whose) if several else ''}" for value, whose in values.items()]
        parts.append(f"<dt>{escape(name)}</dt><dd>{'<br>'.join(map(escape, told))}</dd>")
    parts.append("</dl><h3>Provenance: explains, never decides</h3><dl>")
    parts += [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.provenance(report)]
    return "".join([*parts, "</dl>"])


def _whose(results: Iterable[str]) -> str:
    names = list(results)
    return f" ({', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})"


def table_data(report: Report) -> dict[str, Any]:
    """The table of all metrics, as the page's script reads it: a number to sort by and its text, or a text."""
    columns = ["SAE", "metric", "now", "accepted", "change", "interval", "allowed", "verdict"]
    rows = []
    for row in all_rows(report):
        metric, word = row.result, words.verdict_word(row.verdict, row.beyond)
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
        judged = row.verdict is not None and (row.verdict is not Verdict.UNDEFINED or bool(metric and metric.limit))
        rows.append([row.sae, row.name, *numbers, word, row.property_name, int(judged)])
    return {"columns": columns, "rows": rows}
