"""``report.html``: one file that opens offline. Pictures are drawn by plotly, embedded once; nothing is fetched."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from sae_bench.report.records import SEVERITY, MetricResult, Verdict
from sae_bench.report.report import Report
from sae_bench.show import cells, context
from sae_bench.show.charts import history
from sae_bench.show.html import metric_tables, sections
from sae_bench.show.rows import accept_commands, properties, undefined, verdict_line

OPEN = 1
"SAEs whose properties are unfolded when nothing needs attention."
LONG = 1_000_000
"Characters of JSON above which it is packed. What is not is there when the page has loaded, for printing at once."
PACKED = "application/json+gzip+base64"
"Type of the script elements that hold packed JSON."
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
    """The whole page.

    Args:
        report: the run.
        accepted: the accepted reports of its SAEs in one, for what needs their values per document; None leaves those
            pictures out, the table still shows accepted values.
        title: the heading.
    """
    gallery = sections.Gallery()
    results = [result for _, _, result in properties(report)]
    calm = not any(cells.needs_attention(result.verdict, result.exceeds_limit) for result in results)
    parts = [
        f"<h1>{escape(title)}: {escape(verdict_line(report))}</h1>",
        f"<p class=quiet>{escape(context.context_line(report))}</p>",
        "<h2 id=grid>Verdicts</h2>",
        sections.grid(report),
        "<h2 id=changes>What changed, the worst first</h2>",
        sections.changes(report),
        *_without_value(report),
        _accept(report),
    ]
    if len(report.saes) > 1:
        parts += ["<h2 id=compare>Quality against sparsity</h2>", sections.compare(report, gallery)]
    parts.append("<div id=saes>")
    for row, sae in enumerate(sorted(report.saes)):
        parts.append(sections.sae_section(report, sae, accepted, gallery, calm and row < OPEN))
    parts += ["</div><h2 id=all>All metrics</h2>", _filters(), metric_tables.meanings(report)]
    links = {
        "grid": "verdicts",
        "changes": "changes",
        "compare": "compare",
        "saes": "SAEs",
        "all": "all metrics",
        "about": "provenance",
    }
    if len(report.saes) < 2:
        del links["compare"]
    return _page(title, links, "".join(parts), sections.provenance(report), gallery, metric_tables.table_data(report))


def history_page(entries: Sequence[AcceptedAt], *, title: str = "Accepted reports over time") -> str:
    """Each judged metric over the commits at which reports were accepted, a line per SAE; ``entries`` oldest first."""
    gallery = sections.Gallery()
    # By the moment, whatever the time zone; commits of one second stay in the order they came in.
    ordered = sorted(entries, key=lambda entry: datetime.fromisoformat(entry.when))
    labels = [f"{entry.when[:10]} {entry.commit[:7]}" for entry in ordered]
    values: dict[str, dict[str, list[MetricResult | None]]] = {}
    for row, entry in enumerate(ordered):
        for sae, name, result in properties(entry.report):
            for metric, found in result.metrics.items():
                if found.better != "reported" or found.limits or metric == result.primary_metric:
                    column = values.setdefault(f"{name}.{metric}", {}).setdefault(sae, [None] * len(ordered))
                    column[row] = found
    figures = [history.history(metric, labels, values[metric]) for metric in sorted(values)]
    drawn = [gallery.add(figure) for figure in figures if figure is not None]
    body = f'<h1 id=top>{escape(title)}</h1><div class="figures">{"".join(drawn)}</div>'
    if not drawn:
        body += "<p>There is no accepted report with a judged metric yet.</p>"
    reasons = [
        f"<tr><td>{escape(entry.when)}</td><td><code>{escape(entry.commit[:10])}</code></td><td>{escape(sae)}</td>"
        f"<td>{escape(name)}</td><td>{escape(result.acceptance.who)}</td><td>{escape(result.acceptance.reason)}</td></tr>"
        for entry in reversed(ordered)
        for sae, name, result in properties(entry.report)
        if result.acceptance is not None
    ]
    head = "".join(f"<th scope=col>{word}</th>" for word in ("when", "commit", "SAE", "property", "who", "why"))
    foot = f'<h2 id=about>Who accepted what</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>' \
           f'<tbody>{"".join(reasons)}</tbody></table></div>'  # fmt: skip
    return _page(title, {"top": "metrics", "about": "who and why"}, body, foot, gallery, None)


def _without_value(report: Report) -> Iterator[str]:
    for heading, told in undefined(report).items():
        items = "".join(f"<li>{escape(line)}</li>" for line in told)
        yield f"<p class=quiet>{escape(heading.capitalize())}:</p><ul class=quiet>{items}</ul>"


def _accept(report: Report) -> str:
    commands = accept_commands(report)
    lines = "\n".join(commands)
    return f'<p>Accept the new values:</p><pre class="lines">{escape(lines)}</pre>' if commands else ""


def _filters() -> str:
    options = "".join(f"<option>{verdict.value.lower()}</option>" for verdict in sorted(Verdict, key=_worst_first))
    heads = "".join(
        f"<th scope=col aria-sort=none><button type=button>{name}</button></th>"
        for name in ("SAE", "metric", "now", "accepted", "change", "interval", "allowed", "verdict")
    )
    return (
        '<div class="filters"><label>Filter <input id=filter type=search placeholder="words, e.g. topk kl_gap"></label>'
        f"<label>Verdict <select id=verdict><option value=judged>judged</option><option value=''>all</option>{options}"
        '</select></label><span id=shown class=quiet role=status></span></div><div class="scroll tall" tabindex=0 '
        f'role=region aria-label="all metrics"><table id=metrics><thead><tr>{heads}</tr></thead><tbody></tbody></table>'
        "</div><noscript><p>This table and the pictures need JavaScript; metrics.csv holds the rows.</p></noscript>"
    )


def _worst_first(verdict: Verdict) -> int:
    return -SEVERITY[verdict]


def _page(
    title: str, links: dict[str, str], body: str, foot: str, gallery: sections.Gallery, table: dict[str, Any] | None
) -> str:
    menu = "".join(f'<a href="#{target}">{name}</a>' for target, name in links.items())
    keys = (
        "<span class=keys><kbd>j</kbd> <kbd>k</kbd> sections, <kbd>n</kbd> <kbd>p</kbd> what needs attention, "
        "<kbd>g</kbd> verdicts, <kbd>/</kbd> filter</span>"
    )
    return "".join(
        [
            "<!doctype html><html lang=en><head><meta charset=utf-8>",
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name=viewport content="width=device-width, initial-scale=1"><link rel=icon href="data:,">',
            f"<title>{escape(title)}</title><style>{_asset('report.css')}</style></head><body>",
            f'<a class=skip href="#main">Skip to the report</a><nav aria-label="sections"><div>{menu}',
            f"{keys if table is not None else ''}</div></nav><main id=main>{body}</main><footer>{foot}</footer>",
            _data("figures", gallery.specs),
            _data("table", table) if table is not None else "",
            f"<script>{_plotly()}</script>" if gallery.specs else "",
            f"<script>{_asset('report.js')}</script></body></html>\n",
        ]
    )


def _data(name: str, tree: Any) -> str:
    """JSON in a script element; no ``<`` in it, so that no text of a report can end the element. Packed when long."""
    text = json.dumps(tree, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    if len(text) > LONG:
        packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
        return f"<script type={PACKED} id={name}>{packed}</script>"
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f"<script type=application/json id={name}>{text}</script>"


@cache
def _asset(name: str) -> str:
    return files("sae_bench.show.html").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
