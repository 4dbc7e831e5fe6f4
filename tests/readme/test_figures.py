"""Figures of the README are those that ``make bench-engine`` wrote."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "engine" / "results"


@pytest.mark.parametrize(
    ("sentence", "file", "name"),
    [
        (r"takes (\d\.\d\d) of the time of a full pass", "suffix", "test_one_arm"),
        (r"of 24,576 x 768 takes (\d\.\d\d) of the time of the bare", "neighbours", "test_neighbours[24576-768]"),
        (r"of 65,536 x 768 takes (\d\.\d\d)", "neighbours", "test_neighbours[65536-768]"),
    ],
)
def test_ratios_are_those_that_were_measured(sentence: str, file: str, name: str) -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    found = re.search(sentence, text)
    assert found is not None, sentence
    measured = json.loads((RESULTS / f"{file}.json").read_text())[name]["ratio"]
    assert found[1] == f"{measured:.2f}"


def test_tables_are_those_that_were_measured() -> None:
    tables = runpy.run_path(str(ROOT / "benchmarks" / "engine" / "tables.py"))
    text = (ROOT / "README.md").read_text()
    for name in tables["TABLES"]:
        assert f"<!-- {name} -->" in text
    assert tables["written"](text) == text, "run python benchmarks/engine/tables.py"
