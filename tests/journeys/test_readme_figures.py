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


def test_memory_and_start_are_those_that_were_measured() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    memory = json.loads((RESULTS / "memory.json").read_text())["test_memory[1048576]"]
    assert f"has {memory['activation_bytes'] / 1e9:.1f} GB of activations" in text
    assert f"took {memory['anonymous_bytes'] / 1e9:.1f} GB of memory" in text
    assert f"process that may hold {memory['limit_bytes'] // 10**9}." in text
    start = json.loads((RESULTS / "start.json").read_text())["test_unrelated_suite"]
    assert f"the plugin takes {1000 * start['added_seconds']:.0f} ms" in text


def test_tables_are_those_that_were_measured() -> None:
    tables = runpy.run_path(str(ROOT / "benchmarks" / "engine" / "tables.py"))
    text = (ROOT / "README.md").read_text()
    for name in tables["TABLES"]:
        assert f"<!-- {name} -->" in text
    assert tables["written"](text) == text, "run python benchmarks/engine/tables.py"
