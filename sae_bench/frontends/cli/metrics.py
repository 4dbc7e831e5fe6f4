"""Command ``metrics``: every property with its question, metrics and default limits, as Markdown."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from sae_bench.frontends.cli.parser import Commands
from sae_bench.measure.measurement import Metric

if TYPE_CHECKING:
    from sae_bench.measure.properties import Property

ARROWS = {"lower": "↓", "higher": "↑", "target": "→", "reported": "·"}


def add(commands: Commands) -> None:
    """Declare the command."""
    metrics = commands.add_parser("metrics", help="list every property, its metrics and its limits, as Markdown")
    metrics.set_defaults(command=_metrics)


def _metrics(options: argparse.Namespace) -> int:
    sys.stdout.write(reference())
    return 0


def reference() -> str:
    """Return the whole list; ``docs/metrics.md`` is this text."""
    from sae_bench.measure.properties import load_property, property_names

    head = [
        "# Metrics",
        "",
        "Written by `pytest-sae-bench metrics`. ↓ lower is better, ↑ higher is better, → a target, · reported, never "
        "judged unless a limit names it. **Bold**: the property's primary metric.",
    ]
    return "\n".join([*head, *(line for name in property_names() for line in _section(load_property(name)))]) + "\n"


def _section(declared: Property) -> list[str]:
    limits: dict[str, list[str]] = {}
    for limit in declared.limits:
        metric, _, rule = limit.partition(":")
        limits.setdefault(metric, []).append(f"`{rule}`")
    rows = [
        _row(metric, limits.get(metric.name, []), metric.name == declared.primary_metric) for metric in declared.metrics
    ]
    head = ["", f"## {declared.name}", "", declared.question, "", "| metric | | unit | meaning | limit |"]
    return [*head, "|---|---|---|---|---|", *rows]


def _row(metric: Metric, limits: list[str], primary_metric: bool) -> str:
    name = f"**`{metric.name}`**" if primary_metric else f"`{metric.name}`"
    arrow = ARROWS[metric.better] + (f" {metric.target:g}" if metric.target is not None else "")
    cells = [name, arrow, metric.unit, metric.meaning.replace("|", "\\|"), ", ".join(limits)]
    return "| " + " | ".join(cells) + " |"
