"""What a whole run tells its surroundings: JUnit shows numbers, and only what was measured in full is accepted."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest


def test_junit_shows_the_failing_test_with_its_numbers(toy: Any) -> None:
    toy.accept("-q")
    toy.say(lab_b__kl_gap=1.2)
    assert toy("--junitxml", "junit.xml").ret == 1
    cases = ElementTree.parse(toy.path / "junit.xml").findall(".//testcase")
    (failed,) = [case for case in cases if case.find("failure") is not None]
    assert "lab/b" in failed.attrib["name"]
    failure = failed.find("failure")
    assert failure is not None
    assert "kl_gap.kl_sae of lab/b" in failure.attrib["message"]
    numbers = {each.attrib["name"]: each.attrib["value"] for each in failed.findall("properties/property")}
    found = toy.report()["saes"]["lab/b"]["properties"]["kl_gap"]["metrics"]["kl_sae"]
    assert numbers["kl_gap.verdict"] == numbers["kl_gap.kl_sae.verdict"] == "FAIL"
    assert float(numbers["kl_gap.kl_sae"]) == pytest.approx(found["value"], rel=1e-5)
    assert float(numbers["kl_gap.kl_sae.accepted"]) == pytest.approx(found["accepted"], rel=1e-5)


@pytest.mark.parametrize(
    ("narrowed", "by"), [(["-m", "fidelity"], "-m"), (["--deselect", "test_sae.py::test_kl_gap"], "--deselect")]
)
def test_a_run_that_left_something_out_is_not_accepted(toy: Any, narrowed: list[str], by: str) -> None:
    result = toy.accept(*narrowed)
    assert result.ret == 4
    assert f"narrowed by {by}" in result.stdout.str() + result.stderr.str()
    assert toy.measured() == []
    assert not (toy.path / "baselines").exists()


def test_a_run_over_some_saes_accepts_those_and_leaves_the_others_as_they_are(toy: Any) -> None:
    toy.accept("-q")
    kept, changed = (toy.path / "baselines" / "lab" / f"{name}.json" for name in "ab")
    before = kept.read_text()
    toy.say(lab_a__kl_gap=1.2, lab_b__kl_gap=1.2)
    toy.accept("-q", "--sae", "lab/b")
    assert kept.read_text() == before
    accepted = json.loads(changed.read_text())["saes"]["lab/b"]["properties"]["kl_gap"]["metrics"]["kl_sae"]["value"]
    found = toy.report()["saes"]["lab/b"]["properties"]["kl_gap"]["metrics"]["kl_sae"]["value"]
    assert accepted == pytest.approx(found, rel=1e-5)
