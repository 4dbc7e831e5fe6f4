"""Command ``history``: accepted values over time, read from git's log of the accepted files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from sae_bench.errors import StoreError, UsageError, near
from sae_bench.frontends.cli.parser import Commands
from sae_bench.report import baselines
from sae_bench.report.provenance import Provenance, run_git
from sae_bench.report.records import SAEResult, number
from sae_bench.report.report import Report, from_json


@dataclass(frozen=True)
class Entry:
    """An accepted file at one commit."""

    commit: str
    when: str
    "Of the commit, ISO 8601."
    subject: str
    result: SAEResult | None
    "None where the commit removed the file, or where it cannot be read."

    @property
    def day(self) -> str:
        """Return the date without the time."""
        return self.when[:10]

    def value(self, property: str, metric: str) -> float | None:
        """Return an accepted value; None where it was not accepted then, or was undefined."""
        results = self.result.properties.get(property) if self.result is not None else None
        entry = results.metrics.get(metric) if results is not None else None
        return entry.value if entry is not None else None


def add(commands: Commands) -> None:
    """Declare the command."""
    history = commands.add_parser(
        "history", help="print accepted values over time, from git's log of the accepted files"
    )
    history.add_argument(
        "saes", nargs="*", metavar="SAE", help="ids or globs, or the folder (default: all with an accepted report)"
    )
    history.add_argument("--baselines", type=Path, default=Path("baselines"), help="folder of accepted reports")
    history.add_argument(
        "--metric",
        action="append",
        default=None,
        metavar="GLOB",
        help="show only these, as property.metric; repeatable",
    )
    history.add_argument("--last", type=int, default=8, metavar="N", help="commits to show, at most (default 8)")
    history.add_argument(
        "--html", type=Path, metavar="OUT", help="write a page with a picture of each metric, and print nothing else"
    )
    history.set_defaults(command=_history)


def _history(options: argparse.Namespace) -> int:
    folders = [each for each in options.saes if each.endswith("/") or Path(each) == options.baselines]
    if folders:
        options.baselines = Path(folders[-1])
        options.saes = [each for each in options.saes if each not in folders]
    chosen = {
        sae: entries_of(baselines.accepted_path(options.baselines, sae), sae)[-max(options.last, 1) :]
        for sae in _chosen(options.saes, options.baselines)
    }
    if options.html is not None:
        _write_page(chosen, options)
        return 0
    blocks = [_block(sae, entries, options) for sae, entries in chosen.items()]
    sys.stdout.write("\n".join("\n".join(block) + "\n" for block in blocks))
    return 0


def _write_page(chosen: Mapping[str, Sequence[Entry]], options: argparse.Namespace) -> None:
    from sae_bench.report.report import write_text
    from sae_bench.show.html.page import AcceptedAt, history_page

    commits: dict[tuple[str, str], dict[str, SAEResult]] = {}
    for sae, entries in chosen.items():
        for entry in entries:
            if entry.result is not None:
                results = entry.result if not options.metric else _narrowed(entry.result, options.metric)
                commits.setdefault((entry.when, entry.commit), {})[sae] = results
    accepted = [
        AcceptedAt(commit, when, Report(Provenance(commit, None, when), saes))
        for (when, commit), saes in commits.items()
    ]
    write_text(options.html, history_page(accepted))
    sys.stdout.write(f"{options.html}\n")


def _narrowed(result: SAEResult, globs: Sequence[str]) -> SAEResult:
    """Return a result with the chosen metrics only."""
    properties = {
        name: replace(each, metrics={m: one for m, one in each.metrics.items() if _is_chosen((name, m), globs)})
        for name, each in result.properties.items()
    }
    return replace(result, properties=properties)


def _chosen(globs: Sequence[str], folder: Path) -> list[str]:
    known = baselines.accepted_ids(folder)
    if not known:
        raise UsageError(f"there is no accepted report under {folder}; accept one first, or name another --baselines")
    for pattern in globs:
        if not any(fnmatchcase(sae, pattern) for sae in known):
            raise UsageError(f"{pattern!r} matches no accepted report under {folder}{near(pattern, known)}")
    return [sae for sae in known if not globs or any(fnmatchcase(sae, pattern) for pattern in globs)]


def _block(sae: str, entries: Sequence[Entry], options: argparse.Namespace) -> list[str]:
    """Return a heading, a row per metric, a column per commit, and the subjects of the commits."""
    if not entries:
        return [f"{sae}: its accepted report was never committed"]
    names = [name for name in judged(entries) if not options.metric or _is_chosen(name, options.metric)]
    head = ["", *(f"{entry.day} {entry.commit}" for entry in entries)]
    rows = [[f"{property}.{metric}", *_cells(entries, property, metric)] for property, metric in names]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    table = ["  ".join(_aligned(row, widths)).rstrip() for row in [head, *rows]]
    return [sae, *table, *(f"  {entry.commit}  {entry.subject}" for entry in entries)]


def _is_chosen(name: tuple[str, str], globs: Sequence[str]) -> bool:
    return any(fnmatchcase(".".join(name), pattern) for pattern in globs)


def _cells(entries: Sequence[Entry], property: str, metric: str) -> list[str]:
    values = [entry.value(property, metric) for entry in entries]
    return ["-" if value is None else number(value, 4) for value in values]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [f"  {row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]


def judged(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Return property and metric of everything with a limit on change in any of the commits."""
    names = {
        (name, metric)
        for entry in entries
        if entry.result is not None
        for name, result in entry.result.properties.items()
        for metric, each in result.metrics.items()
        if each.anchor is not None
    }
    return sorted(names)


def entries_of(path: Path, sae: str) -> list[Entry]:
    """Return an accepted file at each commit that changed it, the oldest first."""
    log = run_git(path.parent, "log", "--reverse", "--format=%H%x09%cI%x09%s", "--", path.name)
    entries = []
    for line in log.splitlines():
        commit, when, subject = line.split("\t", 2)
        entries.append(Entry(commit[:7], when, subject, _at(path, commit, sae)))
    return entries


def _at(path: Path, commit: str, sae: str) -> SAEResult | None:
    try:
        text = run_git(path.parent, "show", f"{commit}:./{path.name}")
        return from_json(text, f"{path} at {commit[:7]}").saes.get(sae)
    except (StoreError, UsageError):
        return None
