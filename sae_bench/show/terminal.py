"""Write the table at the end of a run and the list of ``--sae-list``. Plain text reads the same without colours."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from sae_bench.errors import StoreError
from sae_bench.registry.spec import SAESpec
from sae_bench.report.records import Verdict
from sae_bench.report.report import Report, load_report
from sae_bench.show import cells as words
from sae_bench.show import context
from sae_bench.show.rows import (
    Row,
    accept_commands,
    count_line,
    counts,
    needs_attention,
    properties,
    undefined,
    verdict_line,
    worth_showing,
)

__all__ = ["listing", "summary", "verdict_line"]

NARROWEST = 60
_STYLE = {
    Verdict.FAIL: "bold red",
    Verdict.ERROR: "bold red",
    Verdict.MISSING: "bold red",
    Verdict.INCOMPARABLE: "bold yellow",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.NEW: "cyan",
    Verdict.IMPROVED: "green",
    Verdict.KNOWN: "blue",
}
_HEAD = ("", "", "", "", "accepted", "now", "change", "interval", "allowed", "verdict")
_SAE, _NAME, _MARK, _UNIT, _ACCEPTED, _NOW, _CHANGE, _INTERVAL, _ALLOWED, _VERDICT = range(len(_HEAD))
_RIGHT = {_ACCEPTED, _CHANGE}
_DISPENSABLE = (_SAE, _UNIT, _ACCEPTED, _INTERVAL, _ALLOWED, _CHANGE)
"Columns that are left out, in this order, where lines are too narrow; the SAE's name then has a line of its own."


@dataclass(frozen=True)
class _Line:
    """One line of output; a style colours it from column `start` on."""

    text: str
    style: str = ""
    start: int = 0


def summary(
    report: Report,
    *,
    width: int = 100,
    color: bool = False,
    report_path: str | None = None,
    baselines: str = "baselines",
) -> str:
    """Return the whole summary of a run.

    Args:
        report: the run.
        width: columns to fill; fewer than 60 are taken as 60.
        color: whether ANSI colours are used.
        report_path: the file to name as the full report.
        baselines: folder of the accepted reports.
    """
    width = max(width, NARROWEST)
    lines = [*_header(report, width, baselines), _Line("")]
    shown = worth_showing(report)
    lines += [*_table(shown, width), _Line("")] if shown else []
    for heading, sentences in undefined(report).items():
        lines += [_Line(f"{heading}:"), *_wrapped(sentences, width, "  ", "      ")]
    lines += _footer(report, width, report_path)
    return _painted(lines, color)


def _header(report: Report, width: int, baselines: str) -> list[_Line]:
    names = {name for _, name, _ in properties(report)}
    judged = counts(report).total()
    title = (
        f" SAE quality: {_count(len(report.saes), 'SAE')}, {_count(len(names), 'property', 'properties')}, "
        f"{_count(judged, 'metric')} judged "
    )
    where = f"accepted reports: {baselines}/" if context.compared(report) else f"nothing compared with {baselines}/"
    lines = [_Line(title.center(width, "─"), "bold")]
    return lines + _wrapped(
        [context.context(report), " · ".join(filter(None, [where, context.evidence(report)]))], width
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _table(shown: Sequence[Row], width: int) -> list[_Line]:
    cells = [_cells(row) for row in shown]
    columns = _fitting(cells, width)
    widths = {column: max(len(_HEAD[column]), *(len(row[column]) for row in cells)) for column in columns}
    blocks = _SAE not in columns
    if blocks:
        widths[_NAME] = min(widths[_NAME], _spare(widths, columns, width))
    lines = [_Line(("  " if blocks else "") + _joined(_HEAD, columns, widths), "bold")]
    before = None
    for row, texts in zip(shown, cells, strict=True):
        new, before = row.sae != before, row.sae
        if blocks and new:
            lines.append(_Line(row.sae, "bold"))
        named = texts if new or blocks else ("", *texts[1:])
        text = ("  " if blocks else "") + _joined(named, columns, widths)
        lines.append(_Line(text, _STYLE.get(row.verdict, "") if row.verdict else "", len(text) - len(texts[_VERDICT])))
        indent = 6 if blocks else widths[_SAE] + 4
        for note in row.notes:
            lines += _wrapped([note], width, " " * indent, " " * indent)
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    word = words.verdict_word(row.verdict, row.exceeds_limit) or words.unjudged_word(row.result)
    if row.more:
        word += f" (+{row.more})"
    if row.result is None:
        return (row.sae, row.name, *[""] * (_VERDICT - _MARK), word)
    metric = row.result
    return (
        row.sae,
        row.name,
        words.direction(metric),
        words.unit(metric),
        words.accepted(metric),
        words.value(metric),
        words.change(metric),
        words.interval(metric),
        words.allowed(metric),
        word,
    )


def _fitting(cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the columns that are not empty and fit; the least needed ones are left out first."""
    columns = [c for c in range(len(_HEAD)) if any(row[c] for row in cells)]
    for gone in (None, *_DISPENSABLE):
        columns = [column for column in columns if column != gone]
        natural = sum(max(len(_HEAD[column]), *(len(row[column]) for row in cells)) for column in columns)
        if natural + 2 * (len(columns) - (_SAE in columns)) <= width:
            break
    return columns


def _spare(widths: Mapping[int, int], columns: Sequence[int], width: int) -> int:
    others = sum(widths[column] for column in columns if column != _NAME)
    return max(width - 2 - others - 2 * (len(columns) - 1), 12)


def _joined(row: Sequence[str], columns: Sequence[int], widths: Mapping[int, int]) -> str:
    parts = []
    for column in columns:
        text = textwrap.shorten(row[column], widths[column], placeholder="…") if column == _NAME else row[column]
        parts.append(text.rjust(widths[column]) if column in _RIGHT else text.ljust(widths[column]))
    return "  ".join(parts).rstrip()


def _footer(report: Report, width: int, report_path: str | None) -> list[_Line]:
    style = "bold red" if needs_attention(report) else "bold green"
    where = f"report: {report_path}" if report_path else ""
    line = count_line(report) if any(True for _ in properties(report)) else verdict_line(report)
    if len(line) + len(where) + 2 <= width:
        lines = [_Line(line + where.rjust(width - len(line)) if where else line, style)]
    else:
        lines = [_Line(line, style), *_wrapped([where], width)]
    timed = [(result.seconds, name, sae) for sae, name, result in properties(report) if result.seconds is not None]
    if timed:
        seconds, name, sae = max(timed)
        # Workers measure at the same time: one property may take longer than the whole run.
        whole = report.run.seconds
        took = f" of {whole:.0f} s" if whole is not None and seconds <= whole else ""
        lines.append(_Line(f"slowest: {name} of {sae}, {seconds:.1f} s{took}"))
    lines += [_Line(f"accept the new values:  {command}") for command in accept_commands(report)]
    return lines


def _wrapped(sentences: Iterable[str], width: int, indent: str = "", later: str = "") -> list[_Line]:
    return [
        _Line(line)
        for sentence in sentences
        if sentence
        for line in textwrap.wrap(
            sentence, width, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False
        )
    ]


def _painted(lines: Sequence[_Line], color: bool) -> str:
    # A report's texts may hold escape sequences; none of them reaches the terminal.
    texts = ["".join(each if each.isprintable() else "�" for each in line.text) for line in lines]
    if not color:
        return "".join(text.rstrip() + "\n" for text in texts)
    from rich.console import Console
    from rich.text import Text

    out = StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", no_color=False, width=10_000)
    for line, plain in zip(lines, texts, strict=True):
        text = Text(plain)
        if line.style:
            text.stylize(line.style, line.start)
        console.print(text, soft_wrap=True)
    return out.getvalue()


def listing(specs: Sequence[SAESpec], properties: Sequence[str], baselines: Path) -> str:
    """Return the text of ``--sae-list``: each SAE with its registration, weights, model, site and accepted report."""
    lines = [f"{_count(len(specs), 'SAE')}, {_count(len(properties), 'property', 'properties')}", ""]
    if not specs:
        lines.append("no SAE is registered or chosen; register one with register_sae(...) in conftest.py")
    for spec in specs:
        path = spec.baseline_path(baselines)
        known = {
            "registered": spec.origin,
            "weights": spec.path or "load=...",
            "model": spec.model or "as its config says",
            "site": spec.site or "as its config says",
            "corpus": spec.corpus or "as its config says",
            "accepted": _accepted(path, properties),
            "tags": ", ".join(spec.tags),
            "known failures": "; ".join(f"{name} ({why})" for name, why in spec.known_failures.items()),
            "limits": ", ".join(spec.limits),
        }
        lines += [spec.id, *(f"  {name + ':':16}{fact}" for name, fact in known.items() if fact), ""]
    lines.append(f"properties: {', '.join(properties) or 'none chosen'}")
    return _painted([_Line(line) for line in lines], color=False)


def _accepted(path: Path, properties: Sequence[str]) -> str:
    """Return the path of an accepted file, and the properties that it lacks."""
    if not path.is_file():
        return f"no report ({path})"
    try:
        accepted = {name for each in load_report(path).saes.values() for name in each.properties}
    except StoreError as error:
        return str(error)
    lacking = [name for name in properties if name not in accepted]
    return str(path) + (f", without {', '.join(lacking)}" if lacking else "")
