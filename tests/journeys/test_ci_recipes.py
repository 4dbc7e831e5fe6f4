"""The action's steps and the recipes of docs/ci.md, run by the shell with a pytest that ends as it is told to."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.docs_pages import blocks

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"] if "name" in step}
CODES = (0, 1, 4, 5, 11)
PYTHON = """#!/bin/sh
printf '%s\\n' "$@" > called
mkdir -p reports/1
echo "# SAE quality" > reports/1/summary.md
exit $ENDS_WITH
"""
GH = """#!/bin/sh
printf '%s\\n' "$@" > commented
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder whose ``bin`` has a python, a pytest and a gh that only note how they were called."""
    (tmp_path / "bin").mkdir()
    for name, text in (("python", PYTHON), ("pytest", PYTHON), ("gh", GH)):
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def shell(script: str, machine: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As the service runs a step with ``shell: bash``."""
    path = f"{machine / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=machine,
        env={"PATH": path, "GITHUB_OUTPUT": str(machine / "output"), **environment},
        capture_output=True,
        text=True,
    )


def values(step: dict[str, Any], **given: str) -> dict[str, str]:
    """The environment of a step, with the action's defaults where ``given`` says nothing."""
    found = {}
    for name, text in step["env"].items():
        (key,) = re.findall(r"\$\{\{ (.+?) \}\}", text)
        found[name] = given[key] if key in given else ACTION["inputs"][key.removeprefix("inputs.")]["default"]
    return found


@pytest.mark.parametrize("code", CODES)
def test_the_action_ends_with_the_exit_code_of_pytest(machine: Path, code: int) -> None:
    measure = shell(STEPS["Measure"]["run"], machine, ENDS_WITH=str(code), **values(STEPS["Measure"]))
    assert measure.returncode == 0, "reports must be uploaded whatever pytest said"
    assert (machine / "output").read_text() == f"exit-code={code}\n"
    told = values(STEPS["Verdict"], **{"steps.measure.outputs.exit-code": str(code)})
    verdict = shell(STEPS["Verdict"]["run"], machine, **told)
    assert verdict.returncode == code
    assert ("::error::" in verdict.stdout) == (code != 0)


def test_a_run_that_did_not_finish_is_red(machine: Path) -> None:
    for code in ("", "137"):
        assert shell(STEPS["Verdict"]["run"], machine, CODE=code).returncode == 1


def test_inputs_reach_pytest_unchanged(machine: Path) -> None:
    given = {"inputs.sae": "lab/* !lab/old", "inputs.tier": "full", "inputs.args": "-x -q"}
    (machine / "lab").mkdir()
    (machine / "lab" / "trap").touch()
    shell(STEPS["Measure"]["run"], machine, ENDS_WITH="0", **values(STEPS["Measure"], **given))
    called = (machine / "called").read_text().split("\n")[:-1]
    chosen = ["--sae", "lab/*", "--sae", "!lab/old"]
    assert called == ["-m", "pytest", "--pyargs", "sae_bench.suite", *chosen, "--sae-tier", "full", "-x", "-q"]


def test_the_summary_is_commented_once_and_silence_is_said(machine: Path) -> None:
    told = values(STEPS["Comment"], **{"github.token": "t", "github.event.pull_request.number": "7"})
    assert "nothing was measured" in shell(STEPS["Comment"]["run"], machine, **told).stdout
    shell(STEPS["Measure"]["run"], machine, ENDS_WITH="0", **values(STEPS["Measure"]))
    assert shell(STEPS["Comment"]["run"], machine, **told).returncode == 0
    commented = (machine / "commented").read_text().split("\n")
    assert commented[:3] == ["pr", "comment", "7"]
    assert "reports/1/summary.md" in commented


def test_installing_runs_the_command_that_was_given(machine: Path) -> None:
    given = values(STEPS["Install"], **{"inputs.install": "echo one && echo two > two"})
    assert shell(STEPS["Install"]["run"], machine, **given).stdout == "one\n"
    assert (machine / "two").exists()


def test_every_step_of_the_action_is_known_here() -> None:
    assert set(STEPS) == {"Install", "Measure", "Comment", "Verdict"}
    used = [step["uses"] for step in ACTION["runs"]["steps"] if "uses" in step]
    assert used == ["actions/setup-python@v5", "actions/cache@v4", "actions/upload-artifact@v4"]


@pytest.mark.parametrize("code", CODES)
def test_the_case_of_the_page_ends_with_the_code(machine: Path, code: int) -> None:
    (script,) = [block.text for block in blocks("ci.md") if block.language == "sh" and "case" in block.text]
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=machine,
        env={"PATH": f"{machine / 'bin'}:{os.environ['PATH']}", "ENDS_WITH": str(code)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert (done.stdout == "") == (code == 0)


def test_the_two_jobs_give_the_action_inputs_that_it_has() -> None:
    workflow = yaml.safe_load(next(block.text for block in blocks("ci.md") if "pull_request:" in block.text))
    for job, tier in (("smoke", "smoke"), ("full", "full")):
        given = workflow["jobs"][job]["steps"][-1]["with"]
        assert set(given) <= set(ACTION["inputs"])
        assert given["tier"] == tier


@pytest.mark.parametrize("code", [0, 11])
def test_the_gitlab_script_runs_and_keeps_the_code(machine: Path, code: int) -> None:
    job = yaml.safe_load(next(block.text for block in blocks("ci.md") if "before_script" in block.text))["sae-quality"]
    done = shell("\n".join(job["script"]), machine, TIER=job["variables"]["TIER"], ENDS_WITH=str(code))
    assert done.returncode == code
    assert "--sae-tier\nsmoke\n" in (machine / "called").read_text()
