"""The package stays readable: short modules, small folders, a dozen rooms."""

from __future__ import annotations

import statistics
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "sae_bench"
LONG = 350


def test_modules_are_short() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert statistics.median(lines.values()) <= 120
    long = {str(path.relative_to(PACKAGE)): count for path, count in lines.items() if count > LONG}
    assert len(long) <= 5, f"modules of more than {LONG} lines: {long}"


def test_folders_are_small() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    counts = {str(folder.relative_to(PACKAGE)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in counts.items() if count > 15} == {}


def test_the_package_has_few_rooms() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 16, sorted(entries)
