"""Console script: compare, accept, show and check reports between runs, without torch or a GPU.

Exit codes are those of a run: 0 acceptable, 1 worse or broken, 4 usage, 11 could not be judged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from sae_bench.errors import SAEBenchError
from sae_bench.frontends.cli import (
    check_accepted,
    corpus,
    history,
    metrics,
    other_tools,
    prune,
    render,
    reports,
    rescale,
)
from sae_bench.frontends.cli.parser import USAGE_EXIT, Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one sentence on stderr and exit code 4."""
    from sae_bench.registry.package_clash import PackageClash, verify_identity

    options = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        verify_identity()
        return command(options)
    except (SAEBenchError, PackageClash) as error:
        sys.stderr.write(f"pytest-sae-bench: {error}\n")
        return USAGE_EXIT


def parser() -> Parser:
    """Return the parser with all commands and their options."""
    top = Parser(prog="pytest-sae-bench", description="Reports, accepted values and corpora of pytest-sae-bench.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (reports, prune, render, history, metrics, corpus, rescale, check_accepted, other_tools):
        module.add(commands)
    return top
