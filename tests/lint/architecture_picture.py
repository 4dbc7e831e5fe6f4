"""Draw the rooms of the package and their imports: ``python -m tests.lint.architecture_picture``."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sae_bench"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
ROOMS = (
    "suite", "frontends", "demo", "run", "show", "report", "judge", "measure", "engine", "model", "sae", "registry",
)  # fmt: skip
"From the top down: imports go to later rooms only."
ROW, LEFT, WIDTH = 44, 16, 640
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2430 }
  .name { font-weight: 600 } .note { font-size: 11px; fill: #5b6270 }
  rect { fill: #f3f5fa; stroke: #b9c1d4 } path { fill: none; stroke: #5a7bd0; opacity: .55 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e9f2 } .note { fill: #a4adc2 } rect { fill: #232936; stroke: #4a5468 } path { stroke: #86a4f2 }
  }
"""


@dataclass(frozen=True)
class Room:
    """One folder of the package."""

    name: str
    question: str
    modules: int


def rooms() -> list[Room]:
    """Return the rooms from the top down, each with the question that its ``__init__`` opens with."""
    return [_room(name) for name in ROOMS]


def _room(name: str) -> Room:
    files = sorted((PACKAGE / name).rglob("*.py"))
    document = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text())) or ""
    return Room(name, document.partition("?")[0] + "?", len(files))


def imports() -> Counter[tuple[str, str]]:
    """Count the modules of one room that import from another, by (importing room, imported room)."""
    pairs = {
        (file, room, target)
        for room in ROOMS
        for file in (PACKAGE / room).rglob("*.py")
        for target in _imported_rooms(file)
        if target in ROOMS and target != room
    }
    return Counter((room, target) for _, room, target in pairs)


def _imported_rooms(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sae_bench."):
            yield str(node.module).split(".")[1]


def draw() -> str:
    """Return the picture as SVG: a row per room, an arc per pair of rooms, as thick as the imports are many."""
    drawn, counts = rooms(), imports()
    height = ROW * len(drawn) + 2 * LEFT
    parts = [_row(room, row) for row, room in enumerate(drawn)]
    parts += [_arc(ROOMS.index(upper), ROOMS.index(lower), count) for (upper, lower), count in sorted(counts.items())]
    size = f'viewBox="0 0 {WIDTH + 260} {height}" width="{WIDTH + 260}" height="{height}"'
    title = "<title>The rooms of sae_bench and the imports between them</title>"
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n{title}\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def _row(room: Room, row: int) -> str:
    top = LEFT + row * ROW
    return (
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT}" height="{ROW - 8}" rx="6"/>'
        f'<text class="name" x="{LEFT + 10}" y="{top + 16}">{escape(room.name)}/</text>'
        f'<text class="note" x="{LEFT + 110}" y="{top + 16}">{room.modules} modules</text>'
        f'<text x="{LEFT + 10}" y="{top + 30}">{escape(room.question)}</text>'
    )


def _arc(upper: int, lower: int, count: int) -> str:
    start, end = (LEFT + row * ROW + (ROW - 8) / 2 for row in (upper, lower))
    reach = WIDTH + 20 + 18 * abs(lower - upper)
    width = round(0.6 + count**0.5 / 2, 1)
    path = f"M{WIDTH} {start:g} C{reach} {start:g} {reach} {end:g} {WIDTH} {end:g}"
    title = f"{ROOMS[upper]} imports {ROOMS[lower]} in {count} modules"
    return f'<path d="{path}" stroke-width="{width}"><title>{title}</title></path>'


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
