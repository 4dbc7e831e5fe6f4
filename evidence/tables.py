"""``python -m evidence.tables``: what was found, as Markdown, into the README between its marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from evidence.sources import ROOT, read

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
    """Power for a rise of the mean loss, then size of either metric; numbers of documents within a cell."""
    result = read("error_rates")["result"]
    kinds: dict[str, list[Any]] = {}
    for row in result["rows"]:
        kinds.setdefault(row["kind"], []).append(row)
    sizes = " / ".join(str(row["documents"]) for row in next(iter(kinds.values())))
    needed, most = result["documents_for_10_percent"], f"over {result['most_documents']}"
    head = ["change", "`kl_sae` rises by 10%: found", "by `kl_sae` alone", "if its error were known", "found in 95%"]
    head += ["by `kl_sae` alone", "documents for +10%", "for `kl_sae` alone"]
    rows = [
        [
            kind,
            *(_percent([row["found_10_percent"][who] for row in found]) for who in ("kl_gap", "kl_sae")),
            _percent([row["at_best"] for row in found]),
            *(_joined(_rise(row["found_in_95"][who]) for row in found) for who in ("kl_gap", "kl_sae")),
            *(str(needed[kind][who] or most) for who in ("kl_gap", "kl_sae")),
        ]
        for kind, found in kinds.items()
    ]
    wrong = [
        [kind, *(_percent([row["fails_at_the_limit"][metric] for row in found], 2) for metric in result["limits"])]
        for kind, found in kinds.items()
    ]
    counts = result["false_alarms"]["verdicts"]
    alarms = ", ".join(f"{count} {MARKS[verdict].strip('*')}" for verdict, count in counts.items())
    alone = [
        f"{100 * max(row['fails_alone'][metric] for row in result['rows']):.1f}% for `{metric}`"
        for metric in result["limits"]
    ]
    told = f"Judged by the compared documents alone, up to {' and '.join(alone)} would FAIL at the limit.\n\n"
    told += f"Unchanged SAEs, {result['false_alarms']['comparisons']} comparisons at `1noise`: {alarms}.\n"
    limits = _table(["change", *(f"FAIL at the limit of `{metric}`" for metric in result["limits"])], wrong)
    return f"At {sizes} documents:\n\n{_table(head, rows)}\n{limits}\n{told}"


def _percent(shares: Sequence[float], digits: int = 1) -> str:
    return _joined(f"{100 * share:.{digits}f}" for share in shares) + "%"


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
