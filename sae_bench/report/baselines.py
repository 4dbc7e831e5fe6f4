"""Accepted reports: one file an SAE, ``baselines/<sae id>.json``, of the same schema as a run's report.

They are written by `accept` with a reason, read here to compare, and reviewed in pull requests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from sae_bench.errors import StoreError
from sae_bench.judge.verdicts import AcceptedProperty
from sae_bench.report.convert import accepted_from
from sae_bench.report.json import dumps, plain, rounded
from sae_bench.report.records import SAEResult
from sae_bench.report.report import Report, load_report, write_text


@dataclass(frozen=True)
class AcceptedFile:
    """One accepted report."""

    path: Path
    sae: str
    report: Report

    @property
    def result(self) -> SAEResult:
        """The accepted results of the SAE."""
        return self.report.saes[self.sae]


def accepted_path(folder: Path, sae: str) -> Path:
    """Return the path of the accepted report of ``sae``."""
    return folder / f"{sae}.json"


def load_accepted(folder: Path, sae: str) -> AcceptedFile | None:
    """Read the accepted report of ``sae``; None without one.

    A file that is broken or of another SAE is a `StoreError`.
    """
    path = accepted_path(folder, sae)
    if not path.is_file():
        return None
    report = _load(path)
    if set(report.saes) != {sae}:
        others = ", ".join(sorted(report.saes)) or "no SAE"
        raise StoreError(f"{path} holds {others} instead of {sae}; restore it from git, or accept {sae} again")
    return AcceptedFile(path, sae, report)


def _load(path: Path) -> Report:
    state = path.stat()
    return _load_once(path, (state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=64)
def _load_once(path: Path, state: tuple[int, int, int]) -> Report:
    return load_report(path)


def accepted_property(where: Path, sae: str, name: str) -> AcceptedProperty | None:
    """Return the accepted values of one property of one SAE; None when there are none.

    Args:
        where: the folder of accepted reports, or the file of any report.
        sae: whose values.
        name: of the property.
    """
    if where.suffix == ".json" and not where.is_dir():
        if not where.is_file():
            raise StoreError(f"there is no report at {where} to compare with; name a report.json of an earlier run")
        results = _load(where).saes.get(sae)
        if results is None or name not in results.properties:
            return None
        accepted = accepted_from(results.properties[name])
        # Drift is a matter of accepted values; a report shows the anchor of the day it was made.
        metrics = {metric: replace(each, anchor=None) for metric, each in accepted.metrics.items()}
        return replace(accepted, metrics=metrics)
    file = load_accepted(where, sae)
    if file is None or name not in file.result.properties:
        return None
    return accepted_from(file.result.properties[name])


def accepted_ids(folder: Path) -> tuple[str, ...]:
    """Return the ids of all SAEs with an accepted report under ``folder``, sorted."""
    if not folder.is_dir():
        return ()
    paths = (path.relative_to(folder) for path in folder.rglob("*.json") if not path.name.startswith("."))
    return tuple(sorted(path.with_suffix("").as_posix() for path in paths))


def vanished(folder: Path, registered: Iterable[str]) -> tuple[str, ...]:
    """Return the ids that have an accepted report and are registered no more."""
    return tuple(sorted(set(accepted_ids(folder)) - set(registered)))


def accepted_text(report: Report) -> str:
    """Return the text of an accepted file: canonical JSON, metrics at six significant digits, contexts as they are."""
    tree = plain(report)
    for sae in tree["saes"].values():
        for result in sae["properties"].values():
            result["metrics"] = rounded(result["metrics"])
    return dumps(tree) + "\n"


@dataclass(frozen=True)
class StaleEntry:
    """An accepted entry whose SAE, property or metric is registered or declared no more."""

    sae: str
    property: str | None = None
    "None: the whole file."
    metric: str | None = None
    "None: the whole property."

    def __str__(self) -> str:
        what = ".".join(part for part in (self.property, self.metric) if part)
        return f"{what} of {self.sae}" if what else f"{self.sae} (the whole file)"


def prune(
    folder: Path,
    registered: Iterable[str],
    declared: Mapping[str, Collection[str]] | None = None,
    *,
    write: bool = False,
) -> tuple[StaleEntry, ...]:
    """List accepted entries whose SAE, property or metric is gone; remove them when ``write`` is true.

    Args:
        folder: of accepted reports.
        registered: ids of all registered SAEs.
        declared: metric names by property name; None leaves properties and metrics alone.
        write: False lists only.
    """
    gone = vanished(folder, registered)
    entries = [StaleEntry(sae) for sae in gone]
    for sae in sorted(set(accepted_ids(folder)) - set(gone)) if declared is not None else ():
        file = load_accepted(folder, sae)
        if file is not None and declared is not None:
            stale = _stale(file, declared)
            entries += stale
            if write and stale:
                _rewrite_without(file, stale)
    if write:
        for sae in gone:
            accepted_path(folder, sae).unlink(missing_ok=True)
    return tuple(entries)


def _stale(file: AcceptedFile, declared: Mapping[str, Collection[str]]) -> list[StaleEntry]:
    entries = []
    for name, result in file.result.properties.items():
        if name not in declared:
            entries.append(StaleEntry(file.sae, name))
        else:
            entries += [StaleEntry(file.sae, name, metric) for metric in result.metrics if metric not in declared[name]]
    return entries


def _rewrite_without(file: AcceptedFile, stale: Collection[StaleEntry]) -> None:
    gone = {(entry.property, entry.metric) for entry in stale}
    remaining = {
        name: replace(
            result, metrics={metric: each for metric, each in result.metrics.items() if (name, metric) not in gone}
        )
        for name, result in file.result.properties.items()
        if (name, None) not in gone
    }
    if remaining:
        report = replace(file.report, saes={file.sae: replace(file.result, properties=remaining)})
        write_text(file.path, accepted_text(report))
    else:
        file.path.unlink()
