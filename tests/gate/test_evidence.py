"""The heavy proofs speak of the sources as they are, and say what was promised."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

EVIDENCE = Path(__file__).parents[1] / "evidence"


@pytest.fixture(scope="module")
def sources() -> Any:
    spec = importlib.util.spec_from_file_location("evidence_sources", EVIDENCE / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["sensitivity", "error_rates", "kills", "oldest_pytest"])
def test_evidence_is_about_these_sources(sources: Any, name: str) -> None:
    assert sources.read(name)["sources"] == sources.sources_hash(name), (
        f"what {name} speaks of has changed: run python -m tests.evidence {name}, and read what it says"
    )


def test_every_defect_is_caught_by_a_property_meant_for_it(sources: Any) -> None:
    result = sources.read("sensitivity")["result"]
    assert set(result["missed"]) <= set(result["reasons"])
    assert len(result["matrix"]) >= 18
    assert result["matrix"]["bfloat16"]["caught_by"] == []


def test_size_false_alarms_and_power(sources: Any) -> None:
    result = sources.read("error_rates")["result"]
    concentrated = {row["kind"] for row in result["concentration"] if row["share_of_top_percent"] > 0.1}
    for row in result["size"]:
        # 2,000 draws at alpha .0025 have a standard deviation of 0.11%. Where a few documents hold much of the KL, a
        # draw without them is judged by an error that is too small, and nothing in the draw can tell.
        assert row["failing"] <= (0.06 if row["kind"] in concentrated else result["alpha"] + 0.0035), row
    assert "scaled decoder of standard" not in concentrated
    assert result["false_alarms"]["comparisons"] >= 3000
    assert result["false_alarms"]["fails"] <= result["alpha"] * result["false_alarms"]["comparisons"]
    found = {(row["kind"], row["documents"]): row for row in result["power"]}
    assert found["scaled decoder of standard", 128]["found_10_percent"] >= 0.95


def test_killed_runs_report_what_an_undisturbed_run_does(sources: Any) -> None:
    result = sources.read("kills")["result"]
    assert len(result["moments"]) == 20
    assert result["kills"] >= 19
    assert result["same"] == 20
    assert all(row["unfinished_left"] == 0 and row["exit_code"] == 0 for row in result["moments"])


def test_the_oldest_supported_pytest_runs_the_suite_with_and_without_xdist(sources: Any) -> None:
    result = sources.read("oldest_pytest")["result"]
    assert result["pytest"] == "8.0.0"
    assert result["exit_code"] == 0
    assert result["passed"] > 50
