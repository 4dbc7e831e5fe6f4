"""Typed values that the templates of the page draw; they hold plain text, which the templates escape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_bench.report.records import LoadCheck
from sae_bench.show.charts.bullet_chart import Bullet


@dataclass(frozen=True)
class Mark:
    """A verdict as glyph and word."""

    css: str
    text: str


@dataclass(frozen=True)
class FigureView:
    """The place of a figure that the page's script draws."""

    name: str
    "Key of the figure's data."
    title: str
    caption: str
    wide: bool


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    name: str = ""
    "Of its column, for windows too narrow for columns."
    right: bool = False
    links: tuple[tuple[str, str], ...] = ()
    "Address and text; they take the place of `text`."


@dataclass(frozen=True)
class RowView:
    """One metric, or a property without metrics."""

    mark: Mark
    sae: str
    name: str
    href: str
    "Address of the property's section; '' in that section itself."
    meaning: str
    cells: tuple[Cell, ...]
    "Empty for a property without metrics."
    bullet: Bullet | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RowsTable:
    """Metrics with their numbers, limits and verdicts."""

    heads: tuple[Cell, ...]
    rows: tuple[RowView, ...]
    with_sae: bool


@dataclass(frozen=True)
class SeriesTable:
    """A series as a table; features link to their dashboards where there are any."""

    title: str
    more: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Token:
    """One token of a document, shaded by its KL."""

    text: str
    shade: int
    title: str


@dataclass(frozen=True)
class Document:
    """One document as text."""

    label: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Documents:
    """The documents that changed or lose most."""

    title: str = ""
    documents: tuple[Document, ...] = ()
    unreadable: bool = False


@dataclass(frozen=True)
class GridCell:
    """The verdict on one property of one SAE."""

    href: str
    label: str
    mark: Mark


@dataclass(frozen=True)
class GridRow:
    """The verdicts on one SAE; None where a property was not measured."""

    sae: str
    href: str
    cells: tuple[GridCell | None, ...]


@dataclass(frozen=True)
class Grid:
    """A verdict per SAE and property."""

    names: tuple[str, ...]
    rows: tuple[GridRow, ...]


@dataclass(frozen=True)
class Changes:
    """Metrics that are not as accepted, and those that changed within their limits."""

    table: RowsTable | None
    more: int
    "Rows of `table` that are left out."
    compared: bool
    within: RowsTable | None
    within_summary: str


@dataclass(frozen=True)
class PropertyView:
    """One property of one SAE."""

    name: str
    anchor: str
    mark: Mark
    message: str
    alarm: bool
    open: bool
    lines: tuple[str, ...]
    judged: RowsTable | None
    figures: tuple[FigureView, ...]
    has_metrics: bool
    empty_series: tuple[str, ...]
    series_tables: tuple[SeriesTable, ...]
    documents: tuple[Documents, ...]
    reported: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    long_notes: tuple[str, ...]
    "Notes of several lines."
    footnote: str


@dataclass(frozen=True)
class SAEView:
    """One SAE."""

    id: str
    anchor: str
    description: str
    load_checks: tuple[LoadCheck, ...]
    failed_checks: int
    checks_summary: str
    properties: tuple[PropertyView, ...]


@dataclass(frozen=True)
class ReportView:
    """Everything that the page of a report shows."""

    verdict: str
    context: str
    grid: Grid
    changes: Changes
    undefined: tuple[tuple[str, tuple[str, ...]], ...]
    "Heading and lines."
    accept_commands: tuple[str, ...]
    compare: tuple[FigureView, ...] | None
    "None for a report of one SAE."
    saes: tuple[SAEView, ...]
    verdicts: tuple[str, ...]
    meanings: Mapping[str, str]
    contexts: tuple[tuple[str, tuple[str, ...]], ...]
    provenance: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class AcceptedRow:
    """One acceptance of one property."""

    when: str
    commit: str
    sae: str
    property: str
    who: str
    reason: str


@dataclass(frozen=True)
class HistoryView:
    """Everything that the page of accepted reports shows."""

    figures: tuple[FigureView, ...]
    accepted: tuple[AcceptedRow, ...]


@dataclass(frozen=True)
class Data:
    """JSON of a script element; nothing in it can end the element."""

    name: str
    type: str
    text: str


@dataclass(frozen=True)
class PageView:
    """Frame of a page."""

    title: str
    links: Mapping[str, str]
    "Menu: id of a heading and its name."
    policy: str
    css: str
    script: str
    plotly: str
    "'' for a page without figures."
    data: tuple[Data, ...]
    table: bool
    "True for a page with the table of all metrics."
