"""Another distribution's files in place of ours: one line that says whose they are and how to repair it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sae_bench

OURS = Path(sae_bench.__file__).parent
FOREIGN = '"""Somebody else\'s package."""\n'


@pytest.fixture(scope="module")
def overwritten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation whose ``__init__`` another package has overwritten, as pip does without a word."""
    site = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("__pycache__", "demo", "assets")
    shutil.copytree(OURS, site / "sae_bench", ignore=ignored)
    (site / "sae_bench" / "demo").mkdir()
    (site / "sae_bench" / "demo" / "__init__.py").touch()
    (site / "sae_bench" / "__init__.py").write_text(FOREIGN)
    return site


def _run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "conftest"),
    [
        (["-m", "pytest", "-p", "sae_bench.plugin"], "from sae_bench import register_sae"),
        (
            ["-m", "pytest", "-p", "sae_bench.plugin"],
            "from sae_bench.registry.register import register_sae as r\nr('a', path='b')",
        ),
        (["-m", "pytest", "-p", "sae_bench.plugin", "--sae-list"], ""),
        (["-m", "sae_bench", "compare", "a.json", "b.json"], ""),
    ],
    ids=["conftest", "register_sae", "options", "console script"],
)
def test_one_line_and_exit_four(overwritten: Path, tmp_path: Path, arguments: list[str], conftest: str) -> None:
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_it.py").write_text("def test_it(): pass")
    done = _run(overwritten, tmp_path, *arguments)
    output = done.stdout + done.stderr
    assert done.returncode == 4, output
    assert output.count("sae_bench is not that of pytest-sae-bench") == 1
    assert str(overwritten / "sae_bench" / "__init__.py") in output
    assert "pip uninstall -y sae-bench pytest-sae-bench && pip install pytest-sae-bench" in output
    assert "Traceback" not in output


def test_suites_without_saes_are_left_alone(overwritten: Path, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(): pass")
    assert _run(overwritten, tmp_path, "-m", "pytest", "-q", "-p", "sae_bench.plugin").returncode == 0
