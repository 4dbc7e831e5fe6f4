"""Records of finished work: one small report per (SAE, property), written whole by whichever process finished it.

The report of a run is put together from its records, so one process and many give the same one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from sae_bench.provenance import Provenance, checkout
from sae_bench.report import PropertyResult, Report, SAEResult, load_report, write_report

RECORD = "sae_bench.record"
"Key under which a pytest item names its record."


def run_folder(reports: Path, root: Path, now: datetime | None = None) -> Path:
    """A folder of its own for a run: ``<UTC time>-<commit>`` under ``reports``. Nothing is made yet."""
    commit, _ = checkout(root)
    name = f"{(now or datetime.now(UTC)).strftime('%Y%m%dT%H%M%S')}-{(commit or 'nocommit')[:7]}"
    folder, again = reports / name, 2
    while folder.exists():
        folder, again = reports / f"{name}-{again}", again + 1
    return folder


def write_record(folder: Path, sae: str, name: str, result: PropertyResult) -> Path:
    """Write what was found about one property of one SAE; returns the record's path."""
    path = folder / "records" / sae / f"{name}.json"
    write_report(Report(Provenance(None, None, ""), saes={sae: SAEResult({name: result})}), path)
    return path


def gather(records: list[Path]) -> dict[str, dict[str, PropertyResult]]:
    """Results by SAE and property, in the order of the records; an unreadable one is a `StoreError`."""
    found: dict[str, dict[str, PropertyResult]] = {}
    for record in records:
        for sae, result in load_report(record).saes.items():
            found.setdefault(sae, {}).update(result.properties)
    return found
