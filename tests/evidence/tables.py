"""``python -m tests.evidence.tables``: what was found, as Markdown, into the README between its marks."""

from __future__ import annotations

import re
from typing import Any

from tests.evidence.sources import ROOT, read

README = ROOT / "README.md"
MARKS = {
    "FAIL": "**FAIL**",
    "ERROR": "**ERROR**",
    "MISSING": "**MISSING**",
    "INCOMPARABLE": "**INCOMPARABLE**",
    "INCONCLUSIVE beyond": "**undecided, beyond**",
    "INCONCLUSIVE": "undecided",
    "IMPROVED": "improved",
    "UNDEFINED": "undefined",
    "KNOWN": "known",
    "NEW": "reported",
    "PASS": "pass",
}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def sensitivity() -> str:
    """Defects down, properties across; what a defect is meant for is marked by a star. Then what is not caught."""
    result = read("sensitivity")["result"]
    rows = [[name, *(_cell(row, each) for each in result["properties"])] for name, row in result["matrix"].items()]
    reasons = "".join(f"* `{name}`: {result['reasons'][name]}.\n" for name in result["missed"])
    return f"{_table(['defect', *result['properties']], rows)}\nNot caught:\n\n{reasons}"


def _cell(row: Any, name: str) -> str:
    return MARKS[row["verdicts"][name]["verdict"]] + (" \\*" if name in row["meant_for"] else "")


def error_rates() -> str:
    """Size and power, a row for each kind of change; numbers of documents within a cell."""
    result = read("error_rates")["result"]
    kinds: dict[str, list[Any]] = {}
    for row in result["rows"]:
        kinds.setdefault(row["kind"], []).append(row)
    sizes = " / ".join(str(row["documents"]) for row in next(iter(kinds.values())))
    head = ["change", "FAIL at the limit", "+10% found", "found in 95%", "documents for +10%"]
    rows = [
        [
            kind,
            _joined(f"{100 * row['fails_at_the_limit']:.2f}" for row in found) + "%",
            _joined(f"{100 * row['found_10_percent']:.1f}" for row in found) + "%",
            _joined(_rise(row["found_in_95"]) for row in found),
            str(result["documents_for_10_percent"][kind] or f"over {result['most_documents']}"),
        ]
        for kind, found in kinds.items()
    ]
    counts = result["false_alarms"]["verdicts"]
    alarms = ", ".join(f"{count} {MARKS[verdict].strip('*')}" for verdict, count in counts.items())
    alone = max(row["fails_alone"] for row in result["rows"])
    told = f"Judged by the compared documents alone, up to {100 * alone:.1f}% would FAIL at the limit.\n\n"
    told += f"Unchanged SAEs, {result['false_alarms']['comparisons']} comparisons at `1noise`: {alarms}.\n"
    return f"At {sizes} documents:\n\n{_table(head, rows)}\n{told}"


def _joined(texts: Any) -> str:
    return " / ".join(texts)


def _rise(found: float | None) -> str:
    return "-" if found is None else f"+{100 * found:.1f}%"


TABLES = {"sensitivity": sensitivity, "error_rates": error_rates}


def written(text: str) -> str:
    """``text`` with each table between its marks; a table without marks is a `ValueError`."""
    for name, table in TABLES.items():
        marked = re.compile(f"(<!-- {name} -->\n).*?(<!-- end of {name} -->\n)", re.DOTALL)
        if not marked.search(text):
            raise ValueError(f"README.md has no place for {name}: <!-- {name} --> ... <!-- end of {name} -->")
        body = table()
        text = marked.sub(lambda found, body=body: f"{found[1]}{body}{found[2]}", text)
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
