"""The parts of the HTML report: grid, changes, a section per SAE, comparison, provenance. All text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from sae_bench.report.records import LoadCheck, MetricResult, PropertyResult, SAEResult, Verdict
from sae_bench.report.report import Report
from sae_bench.show import cells as words
from sae_bench.show import context as facts
from sae_bench.show.charts import pareto, property_charts
from sae_bench.show.charts.figure import Figure
from sae_bench.show.html.metric_tables import anchor, glyph, link, mark, reported_table, rows_table
from sae_bench.show.html.series_tables import documents_as_text, scroll, series_table
from sae_bench.show.rows import all_rows, changed, properties, property_rows

CHANGES = 60
_SILENT = (None, Verdict.UNDEFINED)
_CALM = (Verdict.PASS, Verdict.UNDEFINED)
ROOMY = 12
"Columns of the grid up to which every verdict has its word; with more, what is calm is a glyph."


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
            said = f"{name} of {sae}: {words.verdict_word(result.verdict)}"
            calm = result.verdict if len(names) > ROOMY and result.verdict in _CALM else None
            shown = mark(result.verdict, result.exceeds_limit) if calm is None else glyph(calm)
            cells.append(
                f'<td><a href="{link(sae, name)}" title="{escape(said)}" aria-label="{escape(said)}">{shown}</a></td>'
            )
        head_cell = f'<th scope=row title="{escape(sae)}"><a href="{link(sae)}">{escape(sae)}</a></th>'
        lines.append(f"<tr>{head_cell}{''.join(cells)}</tr>")
    return scroll(f"<table class=grid><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>")


def changes(report: Report) -> str:
    """Return the table of metrics that are not as accepted, worst first."""
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
    widths = [limit.relative * abs(metric.accepted) + limit.absolute for limit in metric.limits
              if not (limit.hard or limit.se or limit.noise)]  # fmt: skip
    return abs(metric.change) / widths[0] if widths and widths[0] else 0.0


def sae_section(report: Report, sae: str, accepted: Report | None, gallery: Gallery, opened: bool) -> str:
    """Everything about one SAE; properties that need attention are unfolded."""
    found = report.saes[sae]
    described = [pareto.architecture(found), *(tag for tag in found.tags if not tag.startswith("architecture:"))]
    known_as = facts.flat(found.provenance)
    described += [f"{key} {known_as[key]}" for key in known_as if key != "architecture"]
    parts = [f'<section><h2 id="{escape(anchor(sae))}">{escape(sae)}</h2>']
    parts.append(f"<p class=quiet>{escape(' · '.join(described))}</p>")
    parts.append(_load_checks(found.load_checks))
    if not found.properties:
        parts.append("<p>No property of it was measured.</p>")
    before = accepted.saes.get(sae) if accepted is not None else None
    for name in sorted(found.properties):
        held = before.properties.get(name) if before is not None else None
        parts.append(property_section(sae, found, name, held, gallery, opened))
    return "".join([*parts, "</section>"])


def _load_checks(checks: Sequence[LoadCheck]) -> str:
    """Return the checks that were made when the SAE was loaded; unfolded where one of them is not ok."""
    if not checks:
        return ""
    odd = [check for check in checks if not check.ok]
    entries = "".join(
        f"<dt>{escape(check.name)}</dt><dd>{'' if check.ok else 'please check: '}{escape(check.text)}</dd>"
        for check in checks
    )
    summary = f"{len(odd)} of {len(checks)} load checks need a look" if odd else f"{len(checks)} load checks are ok"
    return f"<details{' open' if odd else ''}><summary>{summary}</summary><dl>{entries}</dl></details>"


def property_section(
    sae: str, found: SAEResult, name: str, before: PropertyResult | None, gallery: Gallery, opened: bool
) -> str:
    """One property of one SAE: its verdict in words, its numbers, its pictures."""
    result = found.properties[name]
    alarm = words.needs_attention(result.verdict, result.exceeds_limit)
    first = result.message
    rows = list(property_rows(sae, name, result))
    judged = [row for row in rows if row.result is not None and (row.verdict not in _SILENT or row.result.limits)]
    reported = [row for row in rows if row.result is not None and row not in judged]
    parts = [f'<pre class="lines">{escape(chr(10).join(result.lines))}</pre>'] if len(result.lines) > 1 else []
    parts += [rows_table(judged, sae=False)] if judged else []
    figures, empty = property_charts.pictures(result, before)
    parts += [f'<div class="figures">{"".join(map(gallery.add, figures))}</div>'] if figures else []
    if not figures and result.metrics:
        parts.append("<p class=quiet>This property has no distribution to draw; its numbers stand above and below.</p>")
    parts += [f"<p class=quiet>{escape(each)}: nothing to draw, it holds no values</p>" for each in empty]
    parts += [series_table(title, series, found) for title, series in result.series.items()]
    parts += [documents_as_text(series, result, before) for series in result.series.values()]
    if reported:
        summary = f"{len(reported)} metrics reported, not judged"
        parts.append(f"<details><summary>{summary}</summary>{reported_table(reported)}</details>")
    parts += [f"<p>{escape(note)}</p>" for note in result.notes if "\n" not in note]
    parts += [f'<pre class="lines">{escape(note)}</pre>' for note in result.notes if "\n" in note]
    parts.append(f"<p class=quiet>{escape(_footnote(result))}</p>")
    shown = " open" if alarm or opened else ""
    return (
        f'<details class="property{" alarm" if alarm else ""}" id="{escape(anchor(sae, name))}"{shown}>'
        f"<summary>{mark(result.verdict, result.exceeds_limit)} <b>{escape(name)}</b>"
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
