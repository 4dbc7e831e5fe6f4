"""``pytest-sae-bench check``: sound files pass; every kind of unsound one, and an SAE without one, is named."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_bench.frontends import cli

ROOT = Path(__file__).parents[3]
CONFTEST = """
from sae_bench import register_sae
register_sae("demo/topk", path="checkpoints/topk")
register_sae("lab/new", path="checkpoints/new")
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two registered SAEs, one of them accepted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "baselines" / "demo").mkdir(parents=True)
    shutil.copy(ROOT / "baselines" / "demo" / "topk.json", tmp_path / "baselines" / "demo")
    for name in ("topk", "new"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "sae_weights.safetensors").write_text("weights")
    return tmp_path


def edited(checkout: Path, edit: Callable[[Any], None]) -> None:
    path = checkout / "baselines" / "demo" / "topk.json"
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))


def test_sound_files_pass(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    assert cli.main(["check", "checkpoints/topk/sae_weights.safetensors"]) == 0
    assert "1 accepted reports are well formed" in capsys.readouterr().out


def topk(tree: Any) -> Any:
    return tree["saes"]["demo/topk"]["properties"]["reconstruction"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tree: topk(tree)["metrics"]["fvu"].update(value=0.5), "values per cluster come to"),
        (lambda tree: topk(tree)["context"].update(corpus="another"), "context was changed"),
        (lambda tree: topk(tree).pop("acceptance"), "who accepted it and why"),
        (lambda tree: topk(tree)["acceptance"].update(reason=" "), "who accepted it and why"),
        (lambda tree: tree["saes"].update({"x": tree["saes"].pop("demo/topk")}), "holds x instead of demo/topk"),
        (lambda tree: tree.update(schema=99), "schema 99"),
    ],
    ids=["value", "context", "acceptance", "reason", "owner", "schema"],
)
def test_unsound_files_are_named(
    checkout: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[Any], None], said: str
) -> None:
    edited(checkout, edit)
    assert cli.main(["check"]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "topk.json" in error


def test_a_changed_sae_without_an_accepted_report_is_named(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "checkpoints/new/sae_weights.safetensors"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lab/new (")
    assert "pytest --sae 'lab/new' --sae-accept" in error


def test_changes_since_a_commit_are_asked_of_git(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True, cwd=checkout)
    assert cli.main(["check", "--since", "main"]) == 0
    (checkout / "checkpoints" / "new" / "sae_weights.safetensors").write_text("other weights")
    assert cli.main(["check", "--since", "main"]) == 1
    assert cli.main(["check", "--since", "nowhere"]) == 4
    assert "--since nowhere" in capsys.readouterr().err


def test_the_hook_runs_the_command_on_the_files_it_is_about() -> None:
    import re

    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"] == "pytest-sae-bench check"
    for path in ("baselines/demo/topk.json", "checkpoints/v3/sae_weights.safetensors", "checkpoints/v3/cfg.json"):
        assert re.search(hook["files"], path)
    assert not re.search(hook["files"], "README.md")
