"""docs/tutorial.md, followed literally in an empty folder with the wheel: green, and red once the SAE is damaged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.docs_pages import blocks, commands, files

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]
PAGE = "tutorial.md"
GATE = "pytest --pyargs sae_bench.suite"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a shell sees after installing the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("tutorial")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    env = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    python = str(env / "bin" / "python")
    wheel = str(next(folder.glob("*.whl")))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    (site,) = (env / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    runner = env / "bin" / "pytest"
    runner.write_text(f'#!/bin/sh\nexec "{python}" -m pytest "$@"\n')
    runner.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTHONPATH")}
    return {**kept, "PATH": f"{env / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def repository(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder after the last command that the page runs: files first, then every command in order."""
    folder = tmp_path_factory.mktemp("my-saes")
    for name, text in files(PAGE).items():
        (folder / name).write_text(text)
    for command in commands(PAGE):
        done = shell(command, folder, environment)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
        if command == GATE and (folder / "baselines").exists():
            assert "pass" in done.stdout
            (folder / "green").touch()
    return folder


def shell(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_gate_is_green_after_accepting(repository: Path) -> None:
    assert (repository / "green").exists()
    assert (repository / "baselines" / "lab.json").is_file()


def test_the_gate_is_red_after_the_training_was_shortened(repository: Path, environment: dict[str, str]) -> None:
    assert commands(PAGE)[-1] == "python train.py 400"
    assert [block.text.strip() for block in blocks(PAGE) if block.reason and "exit code 1" in block.reason] == [GATE]
    done = shell(GATE, repository, environment)
    assert done.returncode == 1, done.stdout
    told = re.search(r"reconstruction\.fvu of lab is [\d.]+, [\d.]+% above the accepted [\d.]+ \((.*)\)", done.stdout)
    assert told is not None, done.stdout
    assert re.fullmatch(r"\d+(\.\d+)?% interval \+[\d.]+ to \+[\d.]+%; allowed 5%", told[1])
    assert "FAILED" in done.stdout
