"""``python -m tests.evidence.tables``: what was found, as the Markdown tables of the README."""

from __future__ import annotations

import sys
from typing import Any

from tests.evidence.sources import read

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
    """Defects down, properties across; what a defect is meant for is marked by a star."""
    result = read("sensitivity")["result"]
    rows = [[name, *(_cell(row, each) for each in result["properties"])] for name, row in result["matrix"].items()]
    return _table(["defect", *result["properties"]], rows)


def _cell(row: Any, name: str) -> str:
    return MARKS[row["verdicts"][name]["verdict"]] + (" \\*" if name in row["meant_for"] else "")


def error_rates() -> str:
    """Size and power, a row for each kind of change and number of documents."""
    result = read("error_rates")["result"]
    sizes = {(row["kind"], row["documents"]): row["failing"] for row in result["size"]}
    rows = [
        [
            row["kind"],
            str(row["documents"]),
            f"{100 * sizes[row['kind'], row['documents']]:.2f}%",
            f"{100 * row['found_10_percent']:.1f}%",
            "more than +60%" if row["found_in_95"] is None else f"+{100 * row['found_in_95']:.1f}%",
        ]
        for row in result["power"]
    ]
    return _table(["change", "documents", "FAIL when it equals the limit", "+10% found", "found in 95%"], rows)


if __name__ == "__main__":
    sys.stdout.write(sensitivity() + "\n" + error_rates())
