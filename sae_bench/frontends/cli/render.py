"""Command ``render``: write the pages of a report again, from its JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sae_bench.errors import UsageError
from sae_bench.frontends.cli.parser import Commands
from sae_bench.report.report import load_report, to_csv, write_text


def add(commands: Commands) -> None:
    """Declare the command."""
    render = commands.add_parser("render", help="write a report as HTML, Markdown or CSV")
    render.add_argument("report", type=Path, help="report.json of a run, or an accepted report")
    render.add_argument("--html", type=Path, metavar="OUT", help="write one page with pictures, which opens offline")
    render.add_argument("--markdown", type=Path, metavar="OUT", help="write a summary for pull requests")
    render.add_argument("--csv", type=Path, metavar="OUT", help="write one row per SAE, property and metric")
    render.add_argument(
        "--baselines",
        type=Path,
        default=Path("baselines"),
        help="folder of accepted reports, which pictures show for comparison",
    )
    render.set_defaults(command=_render)


def _render(options: argparse.Namespace) -> int:
    outputs = [path for path in (options.html, options.markdown, options.csv) if path is not None]
    if not outputs:
        raise UsageError("nothing to write: add --html OUT, --markdown OUT or --csv OUT")
    report = load_report(options.report)
    if options.html is not None:
        from sae_bench.show.html.page import report_html
        from sae_bench.show.write_files import accepted_results

        write_text(options.html, report_html(report, accepted=accepted_results(report, options.baselines)))
    if options.markdown is not None:
        from sae_bench.show.markdown import summary

        page = options.html.as_posix() if options.html is not None else None
        write_text(options.markdown, summary(report, report_path=page))
    if options.csv is not None:
        write_text(options.csv, to_csv(report))
    sys.stdout.write("".join(f"{path}\n" for path in outputs))
    return 0
