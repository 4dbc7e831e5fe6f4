"""Records of finished work, and the folders of runs that hold them.

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
from dataclasses import dataclass, field
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
    """One finished property of one SAE, as it lies on disk."""

    path: Path
    sae: str
    result: PropertyResult
    key: str | None
    "What its numbers follow from, see `content_key`; None when that is not known, and it is never taken up."
    taken_from: str | None = None
    "The record of an unfinished run that it was restored from."
    provenance: Mapping[str, Any] = field(default_factory=dict)
    "Of the SAE."


@dataclass
class LockedRunFolder:
    """The folder of a run, which no other process writes to or takes records from while this one lives."""

    path: Path
    lock: FileLock = field(repr=False)

    def finish(self) -> None:
        """The run has ended by itself: nothing of it is taken up by another. A folder without content goes."""
        (self.path / MARKER).unlink(missing_ok=True)
        self.release()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def release(self) -> None:
        """Leave the folder to others, as it is."""
        self.lock.release()
        (self.path / LOCK).unlink(missing_ok=True)


def run_name(root: Path, now: datetime | None = None) -> str:
    """``<UTC time>-<commit>``, what a run's folder is called."""
    commit, _ = checkout(root)
    return f"{(now or datetime.now(UTC)).strftime('%Y%m%dT%H%M%S')}-{(commit or 'nocommit')[:7]}"


def claim(reports: Path, name: str) -> LockedRunFolder:
    """A new folder under ``reports``, marked unfinished and locked; one that cannot be made is a `StoreError`."""
    try:
        reports.mkdir(parents=True, exist_ok=True)
        for again in count(1):
            folder = reports / (name if again == 1 else f"{name}-{again}")
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
    """Folders of runs that were killed or interrupted, oldest first, locked for this process."""
    claims = []
    for marker in sorted(reports.glob(f"*/{MARKER}")):
        try:
            lock = _locked(marker.parent)
        except OSError:
            continue
        if lock is not None and marker.exists():
            claims.append(LockedRunFolder(marker.parent, lock))
    return claims


def _locked(folder: Path) -> FileLock | None:
    """The folder's lock, held; None while another process holds it."""
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
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write what was found about one property of one SAE; returns the record's path."""
    path = folder / "records" / sae / f"{result.name}.json"
    about = {name: value for name, value in (("key", key), ("taken_from", taken_from)) if value is not None}
    held = SAEResult({result.name: result}, provenance=provenance or {})
    write_report(Report(Provenance(None, None, "", options=about), saes={sae: held}), path)
    return path


def read_record(path: Path) -> Record:
    """The record at ``path``; an unreadable one is a `StoreError`."""
    report = load_report(path)
    found = [(sae, held, result) for sae, held in report.saes.items() for result in held.properties.values()]
    if len(found) != 1:
        raise StoreError(f"{path} holds {len(found)} results instead of one; it is no record of a run")
    about = report.run.options
    ((sae, held, result),) = found
    return Record(path, sae, result, about.get("key"), about.get("taken_from"), held.provenance)


def earlier_records(folders: Iterable[Path]) -> dict[str, Record]:
    """Records of unfinished runs by their key; what cannot be read is measured again."""
    found = {}
    for path in (path for folder in folders for path in sorted((folder / "records").rglob("*.json"))):
        try:
            record = read_record(path)
        except StoreError:
            continue
        if record.key is not None:
            found[record.key] = record
    return found


def forget_records(folder: Path, keys: Collection[str | None]) -> None:
    """Remove from an unfinished run what a finished one has: no measurement decides twice. Without any, it is over."""
    left = 0
    for path in sorted((folder / "records").rglob("*.json")):
        try:
            known = read_record(path).key in keys
        except StoreError:
            known = True
        if known:
            path.unlink(missing_ok=True)
        left += not known
    if not left:
        forget_run(folder)


def forget_run(folder: Path) -> None:
    """An unfinished run shall not be taken up; its folder stays only if it holds a report."""
    (folder / MARKER).unlink(missing_ok=True)
    if not (folder / "report.json").exists():
        shutil.rmtree(folder, ignore_errors=True)


def content_key(content: Mapping[str, Any]) -> str:
    """A digest of everything that a measurement's numbers follow from."""
    text = json.dumps(plain(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
