"""Write ``summary.md``: the verdict, then what is not as it was accepted, then the rest, folded. Order is stable.

Made to be pasted into a pull request: a line per metric, a column per SAE, and no longer than a comment may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sae_bench.report.records import PropertyResult, Verdict
from sae_bench.report.report import Report
from sae_bench.show import cells as words
from sae_bench.show import context
from sae_bench.show.rows import Row, accept_commands, all_rows, changed, properties, undefined, unmeasured, verdict_line

LONGEST = 60_000
"Largest number of characters; folded parts that exceed it are left out, as GitHub takes 65,536 in a comment."
_HEAD = ("SAE", "metric", "accepted", "now", "change", "interval", "allowed", "verdict")
_SPECIAL = re.compile(r"[\\`*\[\]{}<>|~#@&]|(?<!\w)_|_(?!\w)")


def summary(report: Report, *, report_path: str | None = None, details: bool = True) -> str:
    """Return the summary of a run as GitHub's Markdown.

    Args:
        report: the run.
        report_path: the file to name as the full report.
        details: True to add every metric and the provenance, folded.
    """
    shown = changed(report)
    parts = [f"## SAE quality: {verdict_line(report)}", text(context.context_line(report))]
    if shown:
        parts += ["\n".join(_table(shown)), "\n".join(_notes(shown, len(report.saes)))]
    elif any(True for _ in properties(report)):
        parts.append("Everything that was judged passes.")
    for heading, sentences in undefined(report).items():
        parts += [f"{heading.capitalize()}:", "\n".join(f"- {text(line)}" for line in sentences)]
    if commands := accept_commands(report):
        parts.append("Accept the new values:\n\n" + _fenced(commands))
    if report_path:
        parts.append(f"Report: {code(report_path)}")
    if details:
        parts += _folded(report, LONGEST - sum(map(len, parts)))
    return "\n\n".join(filter(None, parts)) + "\n"


def _folded(report: Report, room: int) -> list[str]:
    """Return the folded parts, as many of them as there is room for."""
    judged = [row for row in all_rows(report) if row.result is not None and row.result.limits]
    others = [row for row in all_rows(report) if row.result is not None and not row.result.limits]
    primary = "Primary metric of each measured property, with the property's verdict where that is not pass"
    parts = {
        "primary metrics": _fold(primary, _primary_metrics(report)),
        "provenance": _fold("Provenance of this run", _provenance(report)),
        "judged metrics": _fold(f"All {len(judged)} judged metrics and their change", _matrix(judged, limits=True)),
        "reported metrics": _fold(f"{len(others)} metrics that are only reported", _matrix(others, limits=False)),
    }
    shown, left_out = [], []
    for name, part in parts.items():
        if len(part) <= room:
            shown.append(part)
            room -= len(part)
        else:
            left_out.append(name)
    if left_out:
        shown.append(f"Left out, so that this fits a comment: {', '.join(left_out)}. The report has everything.")
    return shown


def _fold(title: str, table: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{table}\n\n</details>" if table else ""


def text(words: str) -> str:
    """Escape free text, so that nothing in it is markup, a mention or a new line."""
    return _SPECIAL.sub(lambda match: f"&#{ord(match[0])};" if match[0] in "@<>&|" else "\\" + match[0], _line(words))


def code(words: str) -> str:
    """Write a name as a code span, also within a table's cell."""
    name = _line(words).replace("|", "\\|")
    runs = re.findall("`+", name)
    fence = "`" * (1 + max(map(len, runs), default=0))
    return f"{fence} {name} {fence}" if runs else f"`{name}`"


def _line(words: str) -> str:
    return " ".join(words.split())


def _fenced(lines: Iterable[str]) -> str:
    return "```sh\n" + "\n".join(map(_line, lines)) + "\n```"


def _head(names: Sequence[str], pad: str = " ") -> list[str]:
    return [_cells(names, pad), "|" + "---|" * len(names)]


def _cells(cells: Iterable[str], pad: str = " ") -> str:
    return "|" + "|".join(f"{pad}{cell.strip()}{pad}" for cell in cells) + "|"


def _table(rows: Sequence[Row]) -> list[str]:
    lines = _head(_HEAD)
    for row in rows:
        metric = row.result
        numbers = [""] * 5
        if metric is not None:
            numbers = [
                words.accepted(metric),
                f"{words.value(metric)} {words.unit(metric) if metric.value is not None else ''}",
                words.change(metric).replace("~", "\\~"),
                words.interval(metric),
                words.allowed(metric),
            ]
        word = _word(row.verdict, row.exceeds_limit) + (f" (+{row.more})" if row.more else "")
        lines.append(_cells([code(row.sae), code(row.name), *numbers, word]))
    return lines


def _notes(rows: Sequence[Row], saes: int) -> list[str]:
    """Return the notes of rows; SAEs with the same note share a line."""
    notes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for note in row.notes:
            notes.setdefault((row.name, note), []).append(row.sae)
    return [
        f"- {code(name)} of {f'all {saes} SAEs' if len(of) == saes > 1 else ', '.join(map(code, of))}: {text(note)}"
        for (name, note), of in notes.items()
    ]


def _primary_metrics(report: Report) -> str:
    """Return the primary metric of each property of each SAE, with the property's verdict where that is not PASS.

    Properties that no SAE has a value of are left out.
    """
    names = sorted({name for _, name, result in properties(report) if not unmeasured(result)})
    if not names:
        return ""
    spelled = {
        name: f"{name}.{result.primary_metric}" if result.metrics else name for _, name, result in properties(report)
    }
    lines = _head(["SAE", *(code(spelled[name]) for name in names)])
    for sae in sorted(report.saes):
        results = [report.saes[sae].properties.get(name) for name in names]
        lines.append(_cells([code(sae), *("not run" if each is None else _primary_metric(each) for each in results)]))
    return "\n".join(lines)


def _primary_metric(result: PropertyResult) -> str:
    metric = result.metrics.get(result.primary_metric)
    number = words.value(metric) if metric is not None and metric.value is not None else ""
    word = "" if result.verdict is Verdict.PASS else _word(result.verdict, result.exceeds_limit)
    return f"{number} {word}".strip() or "-"


def _word(verdict: Verdict | None, exceeds_limit: bool) -> str:
    word = words.verdict_word(verdict, exceeds_limit)
    return f"**{word}**" if word.isupper() else word


def _matrix(rows: Sequence[Row], *, limits: bool) -> str:
    """Return a line per metric and a column per SAE, without spaces; metrics without any value are left out."""
    by_metric: dict[tuple[str, bool, str], dict[str, Row]] = {}
    for row in rows:
        by_metric.setdefault((row.property_name, not row.primary_metric, row.name), {})[row.sae] = row
    saes = sorted({row.sae for row in rows})
    lines = _head(["metric", *(["allowed"] if limits else []), *map(code, saes)], pad="")
    start = len(lines)
    for (_, _, name), by_sae in sorted(by_metric.items()):
        cells = [_brief(by_sae.get(sae)) for sae in saes]
        allowed = " / ".join(dict.fromkeys(words.allowed(row.result) for row in by_sae.values() if row.result))
        if any(cells):
            lines.append(_cells([code(name), *([allowed] if limits else []), *cells], pad=""))
    return "\n".join(lines) if len(lines) > start else ""


def _brief(row: Row | None) -> str:
    """Return ``0.0449 (+9.0%) **FAIL**``: a value, its change where one was judged, and a verdict other than PASS."""
    if row is None or row.result is None or row.result.value is None:
        return ""
    change = words.change(row.result).replace("~", "\\~")
    word = "" if row.verdict is Verdict.PASS else _word(row.verdict, row.exceeds_limit)
    return " ".join(filter(None, [words.plain(row.result), f"({change})" if change else "", word]))


def _provenance(report: Report) -> str:
    return "\n".join(f"- {text(name)}: {text(value)}" for name, value in context.provenance(report))
