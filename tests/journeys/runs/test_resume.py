"""A run that was killed is taken up where it stopped; a finished one decides nothing twice."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest

ALL = [f"lab/{sae} {name}" for sae in "abc" for name in ("kl_gap", "reconstruction", "sparsity")]


@pytest.fixture
def whole(toy: Any) -> Any:
    """The report of a run that nothing disturbed, whose folder is gone."""
    assert toy.alone("-q").returncode == 0
    assert sorted(toy.measured()) == ALL
    values = toy.values()
    shutil.rmtree(toy.path / "reports")
    return values


def test_two_kills_and_the_report_of_an_undisturbed_run(toy: Any, whole: Any) -> None:
    toy.say(lab_b__kl_gap="kill")
    assert toy.alone().returncode == -9
    first = toy.measured()
    assert not (toy.path / "reports" / "latest.json").exists()

    # Half a record is never read: it has another name until it is whole.
    toy.say(lab_c__reconstruction="kill in write")
    assert toy.alone().returncode == -9
    second = toy.measured()
    assert list((toy.path / "reports").rglob("*.tmp"))

    toy.say()
    done = toy.alone()
    assert done.returncode == 0, done.stdout
    third = toy.measured()
    assert toy.values() == whole
    # Only what was being measured or written when the process died was measured again.
    assert sorted({*first, *second, *third}) == ALL
    assert sorted(third) == sorted({*ALL} - {*first, *second} | {"lab/c reconstruction"})
    assert "taken from a run that did not finish" in done.stdout
    assert len(toy.folders()) == 1

    # That run finished: nothing of it is used again.
    toy("-q")
    assert sorted(toy.measured()) == ALL


def test_what_a_killed_run_left_is_for_the_same_contents_only(toy: Any) -> None:
    toy.say(lab_c__sparsity="kill")
    toy.alone("-q")
    toy.measured()
    toy.say(corpus="another")
    toy("-q")
    assert sorted(toy.measured()) == ALL
    toy.say()
    toy("-q", "--sae-seed", "3")
    assert sorted(toy.measured()) == ALL
    toy("-q", "--sae", "lab/a")
    assert toy.measured() == []
    toy("-q", "--sae", "lab/a")
    assert len(toy.measured()) == 3
    toy("-q", "--sae-fresh")
    assert sorted(toy.measured()) == ALL
    toy("-q")
    assert sorted(toy.measured()) == ALL


def test_a_run_that_is_alive_is_not_taken_up(toy: Any) -> None:
    toy.say(lab_c__sparsity="kill")
    toy.alone("-q")
    toy.measured()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys; from sae_bench.report import run_folder\n"
            "held = run_folder.unfinished(pathlib.Path('reports')); print(len(held), flush=True); sys.stdin.read()",
        ],
        cwd=toy.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "1\n"
    toy.say()
    toy("-q")
    assert sorted(toy.measured()) == ALL
    holder.communicate()
    toy("-q")
    assert len(toy.measured()) == 1


def test_an_interrupted_run_reports_cannot_be_accepted_and_is_taken_up(toy: Any) -> None:
    from sae_bench.frontends.cli import main

    toy.say(lab_b__sparsity="interrupt")
    result = toy.alone(*("--sae-accept", "--sae-accept-reason", "x"))
    assert result.returncode == 2
    assert "not accepted: the run was interrupted" in result.stdout
    report = toy.report()
    assert report["run"]["interrupted"] is True
    assert "lab/c" not in report["saes"]
    latest = str(toy.path / "reports" / "latest.json")
    assert main(["accept", latest, "--reason", "x", "--baselines", str(toy.path / "baselines")]) == 4
    assert not (toy.path / "baselines").exists()
    toy.measured()
    toy.say()
    toy("-q")
    assert len(toy.measured()) == 4
    assert "interrupted" not in toy.report()["run"]


def test_judged_anew_with_the_limits_of_now(toy: Any) -> None:
    toy.say(lab_c__sparsity="kill")
    toy.alone("-q")
    toy.say()
    toy.measured()
    result = toy("--sae-limit", "kl_gap.kl_sae:max:0.01")
    assert result.ret == 1
    assert toy.measured() == ["lab/c sparsity"]
    assert "FAIL" in toy.verdicts()


def test_errors_are_tried_again(toy: Any) -> None:
    toy.say(lab_a__kl_gap="raise", lab_c__sparsity="kill")
    toy.alone("-q")
    toy.measured()
    toy.say()
    assert toy("-q").ret == 0
    assert sorted(toy.measured()) == ["lab/a kl_gap", "lab/c sparsity"]
