"""Sections of the page of a report: grid, changes, a section per SAE, comparison, provenance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_bench.report.records import MetricResult, PropertyResult, SAEResult, Verdict
from sae_bench.report.report import Report
from sae_bench.show import cells, context
from sae_bench.show.charts import pareto, property_charts
from sae_bench.show.charts.figure import Figure
from sae_bench.show.html.metric_tables import anchor, glyph, link, mark, reported_rows, rows_table
from sae_bench.show.html.series_tables import documents_as_text, series_table
from sae_bench.show.html.views import Changes, FigureView, Grid, GridCell, GridRow, PropertyView, SAEView
from sae_bench.show.rows import all_rows, changed, properties, property_rows

CHANGES = 60
_SILENT = (None, Verdict.UNDEFINED)
_CALM = (Verdict.PASS, Verdict.UNDEFINED)
ROOMY = 12
"Columns of the grid up to which every verdict has its word; with more, a verdict that needs no action is a glyph."


@dataclass
class FigureList:
    """Figures of the page, by the name under which the script finds them."""

    specs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, figure: Figure) -> FigureView:
        """Add a figure's data; return its place in the page."""
        name = f"f{len(self.specs)}"
        self.specs[name] = figure.spec
        return FigureView(name, figure.title, figure.caption, figure.wide)

    def add_all(self, figures: Iterable[Figure]) -> tuple[FigureView, ...]:
        """Add several figures."""
        return tuple(self.add(figure) for figure in figures)


def grid(report: Report) -> Grid:
    """Return a verdict per SAE and property; each cell leads to its section."""
    names = tuple(sorted({name for _, name, _ in properties(report)}))
    rows = []
    for sae in sorted(report.saes):
        results = [report.saes[sae].properties.get(name) for name in names]
        rows.append(
            GridRow(
                sae, link(sae), tuple(_grid_cell(sae, result, len(names)) if result else None for result in results)
            )
        )
    return Grid(names, tuple(rows))


def _grid_cell(sae: str, result: PropertyResult, columns: int) -> GridCell:
    brief = result.verdict if columns > ROOMY and result.verdict in _CALM else None
    shown = mark(result.verdict, result.exceeds_limit) if brief is None else glyph(brief)
    return GridCell(link(sae, result.name), f"{result.name} of {sae}: {cells.verdict_word(result.verdict)}", shown)


def changes(report: Report) -> Changes:
    """Return the metrics that are not as accepted, worst first, then those that changed within their limits."""
    shown = changed(report)
    within = [row for row in all_rows(report) if row.verdict is Verdict.PASS and row.result and row.result.change]
    within.sort(key=lambda row: (-_share_of_limit(row.result), row.sae, row.name))
    count = f", {CHANGES} shown" if len(within) > CHANGES else ""
    return Changes(
        rows_table(shown[:CHANGES]) if shown else None,
        max(len(shown) - CHANGES, 0),
        context.compared(report),
        rows_table(within[:CHANGES]) if within else None,
        f"{len(within)} metrics changed within their limits{count}, nearest to the limit first",
    )


def _share_of_limit(metric: MetricResult | None) -> float:
    """Return a change as a share of what is allowed; 0 where the report doesn't say how much that is."""
    if metric is None or metric.change is None or metric.accepted is None:
        return 0.0
    widths = [limit.relative * abs(metric.accepted) + limit.absolute for limit in metric.limits
              if not (limit.hard or limit.se or limit.noise)]  # fmt: skip
    return abs(metric.change) / widths[0] if widths and widths[0] else 0.0


def sae_section(report: Report, sae: str, accepted: Report | None, figures: FigureList, opened: bool) -> SAEView:
    """Return everything about one SAE; properties that need attention are unfolded."""
    result = report.saes[sae]
    description = [pareto.architecture(result), *(tag for tag in result.tags if not tag.startswith("architecture:"))]
    facts = context.flat(result.provenance)
    description += [f"{key} {facts[key]}" for key in facts if key != "architecture"]
    failed, total = sum(not check.ok for check in result.load_checks), len(result.load_checks)
    before = accepted.saes.get(sae) if accepted is not None else None
    earlier = before.properties if before is not None else {}
    return SAEView(
        sae,
        anchor(sae),
        " · ".join(description),
        tuple(result.load_checks),
        failed,
        f"{failed} of {total} load checks need a look" if failed else f"{total} load checks are ok",
        tuple(
            property_section(sae, result, name, earlier.get(name), figures, opened)
            for name in sorted(result.properties)
        ),
    )


def property_section(
    sae: str, of_sae: SAEResult, name: str, before: PropertyResult | None, figures: FigureList, opened: bool
) -> PropertyView:
    """Return one property of one SAE: its verdict in words, its numbers, its figures."""
    result = of_sae.properties[name]
    alarm = cells.needs_attention(result.verdict, result.exceeds_limit)
    rows = [row for row in property_rows(sae, name, result) if row.result is not None]
    judged = [row for row in rows if row.verdict not in _SILENT or (row.result and row.result.limits)]
    charts, empty = property_charts.pictures(result, before)
    tables = (series_table(title, series, of_sae) for title, series in result.series.items())
    documents = (documents_as_text(series, result, before) for series in result.series.values())
    return PropertyView(
        name,
        anchor(sae, name),
        mark(result.verdict, result.exceeds_limit),
        result.message,
        alarm,
        alarm or opened,
        tuple(result.lines) if len(result.lines) > 1 else (),
        rows_table(judged, with_sae=False) if judged else None,
        figures.add_all(charts),
        bool(result.metrics),
        tuple(empty),
        tuple(table for table in tables if table is not None),
        tuple(each for each in documents if each is not None),
        reported_rows([row for row in rows if row not in judged]),
        tuple(note for note in result.notes if "\n" not in note),
        tuple(note for note in result.notes if "\n" in note),
        _footnote(result),
    )


def _footnote(result: PropertyResult) -> str:
    confidence = None if result.confidence is None else f"intervals {100 * result.confidence:.4g}%"
    documents = f"{len(result.clusters)} documents" if result.clusters else None
    seconds = None if result.seconds is None else f"{result.seconds:.1f} s"
    acceptance = result.acceptance
    accepted = None if acceptance is None else f"accepted by {acceptance.who} on {acceptance.when}: {acceptance.reason}"
    digest = result.context_digest.removeprefix("sha256:")[:8]
    parts = [f"version {result.version}", documents, confidence, seconds, f"context {digest}" if digest else None]
    return " · ".join(filter(None, [*parts, accepted]))


def compare(report: Report, figures: FigureList) -> tuple[FigureView, ...] | None:
    """Return quality against sparsity over all SAEs; None for a report of one SAE."""
    return figures.add_all(pareto.pareto(report)) if len(report.saes) > 1 else None


def contexts(report: Report) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return what decides whether results may be compared, with the results it is of where they differ."""
    return tuple(
        (name, tuple(f"{value}{_results(names) if len(values) > 1 else ''}" for value, names in values.items()))
        for name, values in context.contexts(report).items()
    )


def _results(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})"
