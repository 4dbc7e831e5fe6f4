"""Command ``check``: accepted files are sound, and every SAE that a change touches has one. It measures nothing."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sae_bench.errors import StoreError, UsageError
from sae_bench.frontends.cli.parser import Commands
from sae_bench.frontends.cli.prune import registered_by
from sae_bench.registry.spec import SAESpec
from sae_bench.report import baselines
from sae_bench.report.provenance import run_git
from sae_bench.report.records import PropertyResult
from sae_bench.report.rerun_commands import quoted

UNSOUND_EXIT = 1


def add(commands: Commands) -> None:
    """Declare the command."""
    check = commands.add_parser(
        "check", help="check that accepted files are well formed and changed SAEs have one (for pre-commit)"
    )
    check.add_argument("files", nargs="*", type=Path, help="changed files; pre-commit passes them")
    check.add_argument("--baselines", type=Path, default=Path("baselines"), help="folder of accepted reports")
    check.add_argument(
        "--conftest", type=Path, default=Path("conftest.py"), help="file that registers SAEs (default conftest.py)"
    )
    check.add_argument(
        "--since", metavar="REF", help="also check files that differ from this commit, such as origin/main"
    )
    check.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    known = baselines.accepted_ids(options.baselines)
    changed = [*options.files, *(_changed(options.since) if options.since else ())]
    wrong = [sentence for sae in known for sentence in _unsound(options.baselines, sae)]
    if changed:
        wrong += _unaccepted(registered_by(options.conftest), changed, options.baselines)
    if wrong:
        sys.stderr.write("".join(f"{sentence}\n" for sentence in wrong))
        return UNSOUND_EXIT
    sys.stdout.write(f"{len(known)} accepted reports are well formed; every SAE that was changed has one\n")
    return 0


def _unsound(folder: Path, sae: str) -> Iterator[str]:
    """Yield what is wrong with one accepted file."""
    path = baselines.accepted_path(folder, sae)
    try:
        file = baselines.load_accepted(folder, sae)
    except StoreError as error:
        yield str(error)
        return
    assert file is not None
    for name, result in file.result.properties.items():
        if result.acceptance is None or not result.acceptance.reason.strip():
            yield f"{path}: {name} does not say who accepted it and why; accept it with pytest-sae-bench accept"
        if broken := _not_finite(result):
            yield f"{path}: {name}.{broken} is not a finite number; measure and accept again"


def _not_finite(result: PropertyResult) -> str | None:
    values = ((name, metric.value) for name, metric in result.metrics.items())
    return next((name for name, value in values if value is not None and not math.isfinite(value)), None)


def _unaccepted(specs: Sequence[SAESpec], changed: Sequence[Path], folder: Path) -> Iterator[str]:
    """Yield a sentence for each SAE whose files are among the changed ones and that has no accepted report."""
    touched = {path.resolve() for path in changed}
    for spec in specs:
        if spec.path is None or baselines.accepted_path(folder, spec.accepted_id).is_file():
            continue
        weights = Path(spec.path).resolve()
        if any(path == weights or path.is_relative_to(weights) for path in touched):
            yield (
                f"{spec.id} ({spec.path}) was changed and has no accepted report; measure and accept it: "
                f'pytest --sae {quoted(spec.id)} --sae-accept --sae-accept-reason "..."'
            )


def _changed(ref: str) -> list[Path]:
    """List the files that differ between ``ref`` and the working tree, from their common ancestor on."""
    try:
        here = Path.cwd()
        top = run_git(here, "rev-parse", "--show-toplevel").strip()
        base = run_git(here, "merge-base", ref, "HEAD").strip()
        return [Path(top) / name for name in run_git(here, "diff", "--name-only", "-z", base).split("\0") if name]
    except UsageError as error:
        raise UsageError(f"--since {ref}: {error}") from None
