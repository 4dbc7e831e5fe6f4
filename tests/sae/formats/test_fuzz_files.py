"""A few hundred of the mutated files of `evidence.fuzz`, which runs thousands."""

from __future__ import annotations

import resource
from pathlib import Path

from evidence.fuzz import FAMILIES, MOST_MEMORY, _read, run_case

CASES = 360


def test_every_family_is_read_as_it_stands(tmp_path: Path) -> None:
    for family in FAMILIES:
        folder = tmp_path / family.__name__
        folder.mkdir()
        assert _read(family(folder), folder, family.__name__) == "read"


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = [run_case(number, tmp_path) for number in range(CASES)]
    assert outcomes.count("read") > CASES / 10
    assert outcomes.count("refused") > CASES / 3
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY
