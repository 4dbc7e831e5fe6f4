"""Code blocks of the pages under docs/, as their readers copy them.

A block is run unless the line above it says why it cannot be: ``<!-- not run: reason -->``. A block under
``<!-- file: NAME -->`` is a file of that name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(
    r"(?:<!-- (?P<kind>file|not run|run by): (?P<said>[^>]+) -->\n)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)```", re.S
)


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str
    file: str | None
    "Its name, when the page shows a file."
    reason: str | None
    "Why it is not run here, or what runs it."


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer((DOCS / page).read_text()):
        kind, said = match["kind"], match["said"]
        file = said if kind == "file" else None
        found.append(Block(page, match["language"], match["text"], file, said if kind not in (None, "file") else None))
    return found


def files(page: str) -> dict[str, str]:
    """The files that a page shows, by name."""
    return {block.file: block.text for block in blocks(page) if block.file is not None}


def commands(page: str) -> list[str]:
    """Shell lines of a page that can be run, without comments."""
    shell = [block.text for block in blocks(page) if block.language == "sh" and not (block.file or block.reason)]
    lines = "".join(shell).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
