"""Page of a report, ``report.html``: one file that opens offline. plotly is embedded once; nothing is fetched."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sae_bench.report.records import SEVERITY, MetricResult, Verdict
from sae_bench.report.report import Report
from sae_bench.show import cells, context
from sae_bench.show.charts import history
from sae_bench.show.html import metric_tables, sections
from sae_bench.show.html.views import AcceptedRow, Data, HistoryView, PageView, ReportView
from sae_bench.show.rows import accept_commands, properties, undefined, verdict_line

if TYPE_CHECKING:
    from jinja2 import Environment

OPEN = 1
"SAEs whose properties are unfolded when nothing needs attention."
LONG = 1_000_000
"Characters of JSON above which it is packed. What is not is there when the page has loaded, for printing at once."
PACKED = "application/json+gzip+base64"
"Type of the script elements that hold packed JSON."
_LINKS = {"grid": "verdicts", "changes": "changes", "compare": "compare", "saes": "SAEs", "all": "all metrics"}
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class AcceptedAt:
    """An accepted report at a commit, for `history_page`."""

    commit: str
    when: str
    "ISO 8601."
    report: Report


def report_html(report: Report, *, accepted: Report | None = None, title: str = "SAE quality") -> str:
    """Return the page of a report.

    Args:
        report: the run.
        accepted: the accepted reports of its SAEs in one, for what needs their values per document; None leaves those
            figures out, the table still shows accepted values.
        title: the heading.
    """
    figures = sections.FigureList()
    results = [result for _, _, result in properties(report)]
    calm = not any(cells.needs_attention(result.verdict, result.exceeds_limit) for result in results)
    view = ReportView(
        verdict=verdict_line(report),
        context=context.context_line(report),
        grid=sections.grid(report),
        changes=sections.changes(report),
        undefined=tuple((heading.capitalize(), tuple(lines)) for heading, lines in undefined(report).items()),
        accept_commands=tuple(accept_commands(report)),
        compare=sections.compare(report, figures),
        saes=tuple(
            sections.sae_section(report, sae, accepted, figures, calm and row < OPEN)
            for row, sae in enumerate(sorted(report.saes))
        ),
        verdicts=tuple(verdict.value.lower() for verdict in sorted(Verdict, key=lambda each: -SEVERITY[each])),
        meanings=metric_tables.meanings(report),
        contexts=sections.contexts(report),
        provenance=tuple(context.provenance(report)),
    )
    links = {target: name for target, name in _LINKS.items() if target != "compare" or view.compare is not None}
    page = _page(title, {**links, "about": "provenance"}, figures, metric_tables.table_data(report))
    return _templates().get_template("report.html.jinja").render(page=page, report=view)


def history_page(entries: Sequence[AcceptedAt], *, title: str = "Accepted reports over time") -> str:
    """Return a page with each judged metric over the commits at which reports were accepted, a line per SAE."""
    figures = sections.FigureList()
    # By the moment, whatever the time zone; commits of one second stay in the order they came in.
    in_order = sorted(entries, key=lambda entry: datetime.fromisoformat(entry.when))
    labels = [f"{entry.when[:10]} {entry.commit[:7]}" for entry in in_order]
    values: dict[str, dict[str, list[MetricResult | None]]] = {}
    for row, entry in enumerate(in_order):
        for sae, name, result in properties(entry.report):
            for metric, of_metric in result.metrics.items():
                if of_metric.better != "reported" or of_metric.limits or metric == result.primary_metric:
                    column = values.setdefault(f"{name}.{metric}", {}).setdefault(sae, [None] * len(in_order))
                    column[row] = of_metric
    charts = (history.history(metric, labels, values[metric]) for metric in sorted(values))
    view = HistoryView(
        figures.add_all(chart for chart in charts if chart is not None),
        tuple(
            AcceptedRow(entry.when, entry.commit[:10], sae, name, result.acceptance.who, result.acceptance.reason)
            for entry in reversed(in_order)
            for sae, name, result in properties(entry.report)
            if result.acceptance is not None
        ),
    )
    page = _page(title, {"top": "metrics", "about": "who and why"}, figures, None)
    return _templates().get_template("history.html.jinja").render(page=page, history=view)


def _page(title: str, links: dict[str, str], figures: sections.FigureList, table: dict[str, Any] | None) -> PageView:
    data = [_data("figures", figures.specs), *([_data("table", table)] if table is not None else [])]
    return PageView(
        title,
        links,
        _POLICY,
        _asset("report.css"),
        _asset("report.js"),
        _plotly() if figures.specs else "",
        tuple(data),
        table is not None,
    )


def _data(name: str, tree: Any) -> Data:
    """Return JSON without ``<``, so that no text of a report can end the element; packed when it is long."""
    text = json.dumps(tree, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    if len(text) > LONG:
        return Data(name, PACKED, base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode())
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Data(name, "application/json", text)


@cache
def _templates() -> Environment:
    # Imported here: comparing and accepting need no templates.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("sae_bench.show.html")
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@cache
def _asset(name: str) -> str:
    return files("sae_bench.show.html").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
