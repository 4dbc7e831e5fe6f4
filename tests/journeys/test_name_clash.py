"""Another distribution's ``sae_bench`` in front of ours: suites without SAEs run as ever, others end with one line.

What pip makes of the two distributions, in every order, is in ``evidence/name_clash.py``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "evidence"


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    """A path on which somebody else's ``sae_bench`` comes first, and a repository beside it."""
    (tmp_path / "theirs" / "sae_bench").mkdir(parents=True)
    (tmp_path / "theirs" / "sae_bench" / "__init__.py").write_text('"""SAEBench."""\n')
    (tmp_path / "repository").mkdir()
    return tmp_path


def run(hidden: Path, conftest: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    repository = hidden / "repository"
    (repository / "conftest.py").write_text(conftest)
    (repository / "test_it.py").write_text("def test_it(): pass")
    path = f"{hidden / 'theirs'}:{ROOT}"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pytest_sae_bench", *arguments],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("conftest", "arguments"),
    [("from sae_bench import register_sae", []), ("import sae_bench.registry.spec", []), ("", ["--sae", "lab/*"])],
    ids=["register_sae", "a module", "an option"],
)
@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_one_line_says_whose_files_were_found_and_how_to_repair(
    hidden: Path, conftest: str, arguments: list[str], mode: str
) -> None:
    done = run(hidden, conftest, f"--import-mode={mode}", *arguments)
    text = done.stdout + done.stderr
    assert done.returncode == 4, text
    assert text.count("sae_bench is not that of pytest-sae-bench") == 1
    assert str(hidden / "theirs" / "sae_bench" / "__init__.py") in text
    assert "pip uninstall -y sae-bench pytest-sae-bench && pip install pytest-sae-bench" in text
    assert "Traceback" not in text


def test_suites_without_saes_run_as_ever(hidden: Path) -> None:
    assert run(hidden, "").returncode == 0


def test_another_error_of_a_conftest_stays_what_it_is(hidden: Path) -> None:
    done = run(hidden, "import not_there")
    assert done.returncode == 4
    assert "sae_bench is not that of" not in done.stdout + done.stderr
    assert "not_there" in done.stdout + done.stderr


def test_every_state_of_an_environment_was_tried_and_ends_as_it_should() -> None:
    spec = importlib.util.spec_from_file_location("evidence_sources_of_clash", EVIDENCE / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    sources: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sources)
    found = json.loads((EVIDENCE / "results" / "name_clash.json").read_text())
    assert found["sources"] == sources.sources_hash("name_clash"), (
        "what name_clash speaks of has changed: run python -m evidence name_clash, and read what it says"
    )
    states = found["result"]["states"]
    assert len(states) == found["result"]["right"] == 12
    assert {row["wanted"] for row in states} == {"works", "clash", "broken", "absent"}
