"""Commands ``import`` and ``export``: results of other tools as a report, and a report for other dashboards."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sae_bench.errors import UsageError
from sae_bench.frontends.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the commands."""
    read = commands.add_parser("import", help="convert results of SAEBench or of SAELens' evals to a report")
    read.add_argument("results", type=Path, help="results file of the other tool")
    read.add_argument("--out", type=Path, required=True, help="report.json to write")
    read.set_defaults(command=_import)

    export = commands.add_parser("export", help="export a report to github-action-benchmark or Weights & Biases")
    export.add_argument("report", type=Path, help="report.json of a run")
    where = export.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--smaller-is-better", type=Path, metavar="FILE", help="file of metrics for the tool customSmallerIsBetter"
    )
    where.add_argument(
        "--bigger-is-better", type=Path, metavar="FILE", help="file of metrics for the tool customBiggerIsBetter"
    )
    where.add_argument("--wandb", metavar="PROJECT", help="log the metrics to a new run of this project")
    export.set_defaults(command=_export)


def _import(options: argparse.Namespace) -> int:
    from sae_bench.report.import_results import read_results
    from sae_bench.report.report import write_report

    report = read_results(options.results)
    write_report(report, options.out)
    count = sum(len(result.metrics) for sae in report.saes.values() for result in sae.properties.values())
    sys.stdout.write(f"{options.out}: {count} values of {', '.join(report.saes)}, by the formulas of their tool\n")
    return 0


def _export(options: argparse.Namespace) -> int:
    from sae_bench.report.export_results import action_benchmark, log_to_wandb
    from sae_bench.report.report import load_report, write_text

    report = load_report(options.report)
    if options.wandb is None:
        lower = options.smaller_is_better is not None
        path: Path = options.smaller_is_better if lower else options.bigger_is_better
        entries = action_benchmark(report, "lower" if lower else "higher")
        write_text(path, json.dumps(entries, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.write(f"{path}: {len(entries)} values\n")
        return 0
    try:
        import wandb
    except ImportError:
        raise UsageError("--wandb needs Weights & Biases, which is not installed: pip install wandb") from None
    with wandb.init(project=options.wandb) as run:
        logged = log_to_wandb(report, run)
    sys.stdout.write(f"{len(logged)} values logged to {options.wandb}\n")
    return 0
