"""Write the files of a run that are read by people: ``summary.md``, ``report.html`` and ``metrics.csv``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sae_bench.errors import StoreError
from sae_bench.report.baselines import load_accepted
from sae_bench.report.records import SAEResult
from sae_bench.report.report import Report, load_report, to_csv, write_text
from sae_bench.show.html.page import report_html
from sae_bench.show.markdown import summary


def write_files(report: Report, folder: Path, accepted: Report | None = None) -> list[Path]:
    """Write all three into a run's folder, each whole or not at all; a `StoreError` names the one that failed."""
    texts = {
        "summary.md": summary(report, report_path=(folder / "report.html").as_posix()),
        "report.html": report_html(report, accepted=accepted),
        "metrics.csv": to_csv(report),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def accepted_results(report: Report, where: Path, accepted_id: Mapping[str, str] | None = None) -> Report | None:
    """Return the accepted results of a report's SAEs in one report, for pictures; None when there are none.

    Args:
        report: the run.
        where: the folder of accepted reports, or one report to compare with.
        accepted_id: ids under which SAEs were accepted, where they differ from their own.

    A file that cannot be read is left out: the verdicts name what is wrong with it.
    """
    accepted = {sae: _accepted(where, (accepted_id or {}).get(sae, sae)) for sae in report.saes}
    known = {sae: result for sae, result in accepted.items() if result is not None}
    return Report(report.run, known) if known else None


def _accepted(where: Path, sae: str) -> SAEResult | None:
    try:
        if where.is_file():
            return load_report(where).saes.get(sae)
        file = load_accepted(where, sae)
    except StoreError:
        return None
    return file.result if file is not None else None
