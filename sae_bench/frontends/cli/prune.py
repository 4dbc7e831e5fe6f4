"""Command ``prune``: remove accepted values whose SAE, property or metric is registered or declared no more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from sae_bench.errors import SAEBenchError, UsageError
from sae_bench.frontends.cli.parser import Commands
from sae_bench.registry.spec import SAESpec
from sae_bench.report import baselines


def add(commands: Commands) -> None:
    """Declare the command."""
    prune = commands.add_parser(
        "prune", help="remove accepted values of SAEs, properties and metrics that no longer exist"
    )
    prune.add_argument(
        "--keep", action="append", default=None, metavar="ID", help="id that is still registered; repeatable"
    )
    prune.add_argument(
        "--conftest", type=Path, default=Path("conftest.py"), help="file that registers SAEs (default conftest.py)"
    )
    prune.add_argument(
        "--property", action="append", default=[], metavar="GLOB", help="also remove these properties; repeatable"
    )
    prune.add_argument("--yes", action="store_true", help="remove the values; without it, they are only listed")
    prune.add_argument("--baselines", type=Path, default=Path("baselines"), help="folder of accepted reports")
    prune.set_defaults(command=_prune)


def _prune(options: argparse.Namespace) -> int:
    from sae_bench.measure.properties import property_names

    registered = options.keep if options.keep is not None else [spec.id for spec in registered_by(options.conftest)]
    declared = {name: _metric_names(name) for name in property_names() if not _named(name, options.property)}
    gone = baselines.prune(options.baselines, registered, declared, write=options.yes)
    if not gone:
        sys.stdout.write("nothing to prune: every accepted value has a registered SAE and a declared metric\n")
        return 0
    verb = "removed" if options.yes else "would be removed (add --yes)"
    sys.stdout.write("\n".join([f"{verb}:", *(f"  {entry}" for entry in gone)]) + "\n")
    return 0


def _metric_names(name: str) -> list[str]:
    from sae_bench.measure.properties import load_property

    return [metric.name for metric in load_property(name).metrics]


def _named(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in globs)


def registered_by(conftest: Path) -> list[SAESpec]:
    """Return the SAEs that a conftest and the installed packages register."""
    import runpy

    from sae_bench.registry.register import SAES, load_entry_points

    if not conftest.is_file():
        raise UsageError(
            f"there is no {conftest} that registers SAEs; name it with --conftest, or list ids with --keep"
        )
    load_entry_points()
    sys.path.insert(0, str(conftest.parent.resolve()))
    try:
        runpy.run_path(str(conftest))
    except (SAEBenchError, ImportError):
        raise
    except Exception as error:
        raise UsageError(f"{conftest} cannot be run: {type(error).__name__}: {error}; list ids with --keep") from error
    return list(SAES.values())
