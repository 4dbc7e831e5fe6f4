"""``summary.md``: the verdict, what is not as it was accepted, and the rest folded away. Order is stable."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sae_bench.outcome import Verdict
from sae_bench.render import facts, words
from sae_bench.render.rows import Row, accept_commands, all_rows, changed, properties, undefined, verdict_line
from sae_bench.results import Report

_HEAD = ("SAE", "metric", "accepted", "now", "change", "interval", "allowed", "verdict")
_SPECIAL = re.compile(r"[\\`*\[\]{}<>|~#@&]|(?<!\w)_|_(?!\w)")


def summary(report: Report, *, report_path: str | None = None, details: bool = True) -> str:
    """The summary of a run as GitHub's Markdown.

    Args:
        report: the run.
        report_path: the file to name as the full report.
        details: whether every metric and the provenance follow, folded.
    """
    shown = changed(report)
    parts = [f"## SAE quality: {verdict_line(report)}", text(facts.context_line(report))]
    if shown:
        parts += ["\n".join(_table(shown)), "\n".join(_notes(shown))]
    elif any(True for _ in properties(report)):
        parts.append("Everything that was judged is as it was accepted.")
    parts.append("\n".join(f"- {text(sentence)}" for sentence in undefined(report)))
    if commands := accept_commands(report):
        parts.append("Accept the new values:\n\n" + _fenced(commands))
    if report_path:
        parts.append(f"Report: {code(report_path)}")
    if details:
        parts += [_grid(report), _everything(report), _provenance(report)]
    return "\n\n".join(filter(None, parts)) + "\n"


def text(words: str) -> str:
    """Free text, so that nothing in it is markup, a mention or a new line."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};" if found[0] in "@<>&|" else "\\" + found[0], _line(words))


def code(words: str) -> str:
    """A name as a code span, also within a table's cell."""
    name = _line(words).replace("|", "\\|")
    runs = re.findall("`+", name)
    fence = "`" * (1 + max(map(len, runs), default=0))
    return f"{fence} {name} {fence}" if runs else f"`{name}`"


def _line(words: str) -> str:
    return " ".join(words.split())


def _fenced(lines: Iterable[str]) -> str:
    return "```sh\n" + "\n".join(map(_line, lines)) + "\n```"


def _table(rows: Sequence[Row], sae: bool = True) -> list[str]:
    head = _HEAD if sae else _HEAD[1:]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
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
        word = _word(row.verdict, row.beyond) + (f" (+{row.more})" if row.more else "")
        cells = [code(row.sae), code(row.name), *numbers, word]
        lines.append("| " + " | ".join(cell.strip() for cell in (cells if sae else cells[1:])) + " |")
    return lines


def _notes(rows: Sequence[Row]) -> list[str]:
    return [f"- {code(row.name)} of {code(row.sae)}: {text(note)}" for row in rows for note in row.notes]


def _grid(report: Report) -> str:
    """A verdict per SAE and property."""
    names = sorted({name for _, name, _ in properties(report)})
    if not names:
        return ""
    lines = ["| SAE | " + " | ".join(map(code, names)) + " |", "|" + "---|" * (len(names) + 1)]
    for sae in sorted(report.saes):
        held = [report.saes[sae].properties.get(name) for name in names]
        cells = ["not run" if each is None else _word(each.verdict, each.beyond) or "reported" for each in held]
        lines.append(f"| {code(sae)} | " + " | ".join(cells) + " |")
    return "\n\n".join(["<details><summary>Verdicts by property</summary>", "\n".join(lines), "</details>"])


def _word(verdict: Verdict | None, beyond: bool) -> str:
    word = words.verdict_word(verdict, beyond)
    return f"**{word}**" if word.isupper() else word


def _everything(report: Report) -> str:
    rows = list(all_rows(report))
    if not rows:
        return ""
    parts = [f"<details><summary>All {len(rows)} metrics</summary>"]
    for sae in sorted(report.saes):
        mine = [row for row in rows if row.sae == sae]
        parts.append(f"### {code(sae)}\n\n" + "\n".join(_table(mine, sae=False)))
    return "\n\n".join([*parts, "</details>"])


def _provenance(report: Report) -> str:
    rows = [f"- {text(name)}: {text(value)}" for name, value in facts.provenance(report)]
    return "\n\n".join(["<details><summary>Where this comes from</summary>", "\n".join(rows), "</details>"])
