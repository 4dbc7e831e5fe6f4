"""Write the job summary of GitHub Actions, and annotations at the accepted report's lines; nothing anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sae_bench.report.report import Report
from sae_bench.show import cells, markdown
from sae_bench.show.rows import Row, worth_showing

SUMMARY_BYTES = 900_000
"GitHub drops a step's whole summary when it is larger than 1 MiB."
MOST = 10
"Annotations of one kind that a step shows."


def publish(
    report: Report,
    *,
    environ: Mapping[str, str],
    write: Callable[[str], object],
    report_path: str | None = None,
    baselines: Path = Path("baselines"),
    annotate: bool = True,
) -> None:
    """Append to the job's summary when there is one, and write annotations when this runs on GitHub Actions.

    Args:
        report: the run.
        environ: the environment (``os.environ``).
        write: takes each annotation as a line without its end.
        report_path: the file to name as the full report.
        baselines: folder of accepted reports, as seen from the root of the repository.
        annotate: False where another plugin writes annotations for failed tests already.
    """
    if path := environ.get("GITHUB_STEP_SUMMARY"):
        append_summary(report, Path(path), report_path=report_path)
    if annotate and environ.get("GITHUB_ACTIONS") == "true":
        for line in error_lines(report, baselines):
            write(line)


def append_summary(report: Report, path: Path, *, report_path: str | None = None) -> None:
    """Append the Markdown summary, as much of it as keeps the file within `SUMMARY_BYTES`."""
    room = SUMMARY_BYTES - (path.stat().st_size if path.exists() else 0)
    text = markdown.summary(report, report_path=report_path)
    if len(text.encode()) > room:
        text = markdown.summary(report, report_path=report_path, details=False)
    if len(text.encode()) > room:
        note = "\n\nThe rest is in the report: a job summary may not be longer.\n"
        start = text.encode()[: max(room - len(note.encode()), 0)].decode(errors="ignore")
        text = start.rpartition("\n")[0] + note
    if len(text.encode()) <= room:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)


def error_lines(report: Report, baselines: Path = Path("baselines"), most: int = MOST) -> list[str]:
    """Return ``::error`` lines for what fails, the worst first; the last one counts what was left out."""
    failing = [row for row in worth_showing(report) if cells.needs_attention(row.verdict, row.exceeds_limit)]
    failing.sort(key=lambda row: (*(-each for each in row.rank), row.sae, row.name))
    lines = [_annotation(row, baselines) for row in failing[:most]]
    if len(failing) > most:
        lines[-1] += f" (+ {len(failing) - most} more in the summary)"
    return lines


def _annotation(row: Row, baselines: Path) -> str:
    message = row.result.message if row.result is not None else ""
    title = f"{cells.verdict_word(row.verdict, row.exceeds_limit)} {row.name} of {row.sae}"
    text = message or "; ".join(row.notes) or title
    properties = {"title": title}
    path = baselines / f"{row.sae}.json"
    if path.is_file():
        properties = {"file": path.as_posix(), "line": str(_line_of(path, row)), **properties}
    written = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::error {written}::{_data(text)}"


def _line_of(path: Path, row: Row) -> int:
    """Return the line of an accepted file with the row's metric, else its property, else the first line."""
    wanted = [f'"{row.property_name}": {{', f'"{row.metric}": {{']
    last = 1
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if wanted and line.strip().startswith(wanted[0]):
            last = number
            wanted.pop(0)
    return last


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
