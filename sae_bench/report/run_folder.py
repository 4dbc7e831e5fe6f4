"""Read and write records of finished work, and lock the folders of runs that hold them.

A record is a small report of one property of one SAE, written whole by whichever process finished it; the report of a
run is put together from its records, so one process and many give the same one. A run's folder carries a marker until
the run has ended by itself, and a lock while its process lives: a marker without a lock is a run that was killed, and
its records may be taken up by the next one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_bench.errors import StoreError
from sae_bench.report.json import plain
from sae_bench.report.provenance import Provenance, checkout
from sae_bench.report.records import PropertyResult, SAEResult
from sae_bench.report.report import Report, load_report, write_report

if TYPE_CHECKING:
    from filelock import FileLock

RECORD = "sae_bench.record"
"Key under which a pytest item names its record."
MARKER = "unfinished"
"File in a run's folder that a finished run removes."
LOCK = ".alive.lock"
"File that a living run holds locked."


@dataclass(frozen=True)
class Record:
    """One finished property of one SAE, as it is on disk."""

    path: Path
    sae: str
    result: PropertyResult
    key: str | None
    "Digest of everything that its numbers follow from, see `content_key`; None: it is never taken up."
    taken_from: str | None = None
    "The record of an unfinished run that it was restored from."
    about: SAEResult = field(default_factory=lambda: SAEResult({}))
    "Provenance and load checks of the SAE."


@dataclass
class LockedRunFolder:
    """The folder of a run, which no other process writes to or takes records from while this one lives."""

    path: Path
    lock: FileLock = field(repr=False)

    def finish(self) -> None:
        """Mark the run as finished, so that no other takes up its records, and remove a folder without content."""
        (self.path / MARKER).unlink(missing_ok=True)
        self.release()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def release(self) -> None:
        """Leave the folder to others, as it is."""
        self.lock.release()
        (self.path / LOCK).unlink(missing_ok=True)


def run_name(root: Path, now: datetime | None = None) -> str:
    """Return ``<UTC time>-<commit>``, the name of a run's folder."""
    commit, _ = checkout(root)
    return f"{(now or datetime.now(UTC)).strftime('%Y%m%dT%H%M%S')}-{(commit or 'nocommit')[:7]}"


def new_run_folder(reports: Path, name: str) -> LockedRunFolder:
    """Make a new folder under ``reports``, marked unfinished and locked; one that cannot be made is a `StoreError`."""
    try:
        reports.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = reports / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            break
        # The lock first: a marker without one would look like a run that was killed.
        lock = _locked(folder)
        if lock is None:
            raise StoreError(f"{folder} cannot be locked: another process took it")
        (folder / MARKER).touch()
    except OSError as error:
        raise StoreError(f"{reports} cannot hold reports: {error.strerror or error}; check --sae-report-dir") from None
    return LockedRunFolder(folder, lock)


def unfinished(reports: Path) -> list[LockedRunFolder]:
    """Lock and return the folders of runs that were killed or interrupted, oldest first."""
    folders = []
    for marker in sorted(reports.glob(f"*/{MARKER}")):
        try:
            lock = _locked(marker.parent)
        except OSError:
            continue
        if lock is not None and marker.exists():
            folders.append(LockedRunFolder(marker.parent, lock))
    return folders


def _locked(folder: Path) -> FileLock | None:
    """Acquire the folder's lock; None while another process has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, NotImplementedError):
        return None
    return lock


def write_record(
    folder: Path,
    sae: str,
    result: PropertyResult,
    key: str | None = None,
    taken_from: str | None = None,
    about: SAEResult | None = None,
) -> Record:
    """Write the record of one property of one SAE.

    Args:
        folder: of the run.
        sae: the SAE's id.
        result: of the property.
        key: what its numbers follow from; None when no other run may take them.
        taken_from: the record that it was restored from.
        about: provenance and load checks of the SAE; its properties are left alone.
    """
    path = folder / "records" / sae / f"{result.name}.json"
    about = about or SAEResult({})
    options = {name: value for name, value in (("key", key), ("taken_from", taken_from)) if value is not None}
    alone = replace(about, properties={result.name: result})
    write_report(Report(Provenance(None, None, "", options=options), saes={sae: alone}), path)
    return Record(path, sae, result, key, taken_from, about)


def read_record(path: Path) -> Record:
    """Read the record at ``path``; an unreadable one is a `StoreError`."""
    report = load_report(path)
    results = [(sae, about, result) for sae, about in report.saes.items() for result in about.properties.values()]
    if len(results) != 1:
        raise StoreError(f"{path} holds {len(results)} results instead of one; it is no record of a run")
    options = report.run.options
    ((sae, about, result),) = results
    return Record(path, sae, result, options.get("key"), options.get("taken_from"), replace(about, properties={}))


def earlier_records(folders: Iterable[Path]) -> dict[str, Record]:
    """Read the records of unfinished runs by their key; what cannot be read is measured again."""
    records = {}
    for path in (path for folder in folders for path in sorted((folder / "records").rglob("*.json"))):
        try:
            record = read_record(path)
        except StoreError:
            continue
        if record.key is not None:
            records[record.key] = record
    return records


def forget_records(folder: Path, keys: Collection[str | None]) -> None:
    """Remove from an unfinished run the records that a finished one has used; without any left, it is finished, too."""
    remaining = 0
    for path in sorted((folder / "records").rglob("*.json")):
        try:
            used = read_record(path).key in keys
        except StoreError:
            used = True
        if used:
            path.unlink(missing_ok=True)
        remaining += not used
    if not remaining:
        forget_run(folder)


def forget_run(folder: Path) -> None:
    """Mark an unfinished run as one not to be taken up; its folder stays only if it holds a report."""
    (folder / MARKER).unlink(missing_ok=True)
    if not (folder / "report.json").exists():
        shutil.rmtree(folder, ignore_errors=True)


def content_key(content: Mapping[str, Any]) -> str:
    """Return a digest of everything that a measurement's numbers follow from."""
    text = json.dumps(plain(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
