"""What is written beside report.json, and the accepted side of a report."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from sae_bench.errors import StoreError
from sae_bench.report.report import write_report
from sae_bench.show.write_files import accepted_results, write_files


def test_all_three_files_are_written(make: Any, tmp_path: Path) -> None:
    report = make.full(2)
    paths = write_files(report, tmp_path / "run")
    assert [path.name for path in paths] == ["summary.md", "report.html", "metrics.csv"]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert len(rows) == sum(len(p.metrics) for sae in report.saes.values() for p in sae.properties.values())
    assert "report.html" in (tmp_path / "run" / "summary.md").read_text()
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")


def test_a_folder_that_cannot_be_written_is_one_sentence(make: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        write_files(make.full(1), tmp_path / "run")


def test_accepted_files_are_joined_and_broken_ones_left_out(make: Any, tmp_path: Path) -> None:
    report = make.full(3)
    first, second, third = report.saes
    assert accepted_results(report, tmp_path) is None
    for sae in (first, second):
        write_report(make.report({sae: report.saes[sae].properties}), tmp_path / f"{sae}.json")
    (tmp_path / f"{second}.json").write_text("{")
    found = accepted_results(report, tmp_path)
    assert found is not None
    assert list(found.saes) == [first]
    other = accepted_results(report, tmp_path, {third: first})
    assert other is not None
    assert other.saes[third].properties == other.saes[first].properties


def test_one_report_may_stand_for_all(make: Any, tmp_path: Path) -> None:
    report = make.full(2)
    write_report(report, tmp_path / "other.json")
    found = accepted_results(report, tmp_path / "other.json")
    assert found is not None
    assert list(found.saes) == list(report.saes)
