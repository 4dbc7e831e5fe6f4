"""kill -9 at random moments: the run that takes up the rest reports what an undisturbed run does.

The engine is a toy without torch, so that a kill falls as often into the writing of records as into a measurement;
everything around it, processes, records, locks, is what a user runs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ENGINE = Path(__file__).parents[1] / "tests" / "support" / "toy_engine.py"
CONFTEST = """
import toy_engine
toy_engine.install()
from sae_bench import register_sae
for name in "abc":
    register_sae(f"lab/{name}", path=name)
"""
SUITE = """
from sae_bench.frontends.testing import property_test
test_kl_gap = property_test("kl_gap")
test_reconstruction = property_test("reconstruction")
test_sparsity = property_test("sparsity")
"""
MOMENTS, ITEMS, PAUSE = 20, 9, 0.1
"Kills; measurements of a run; seconds that each of them takes."
ATTEMPTS = 10
"Runs that may end before their moment comes: a busy machine stretches seconds."


def measure() -> dict[str, Any]:
    """Twenty kills, each followed by a run to the end."""
    rng = random.Random(20261120)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "toy_engine.py").write_text(ENGINE.read_text())
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "test_sae.py").write_text(SUITE)
        _start(folder).wait()
        whole = _values(folder)
        rows = [_moment(folder, rng, whole) for _ in range(MOMENTS)]
    return {
        "kills": sum(row["killed"] for row in rows),
        "same": sum(row["same_report"] for row in rows),
        "moments": rows,
    }


def _moment(folder: Path, rng: random.Random, whole: Any) -> dict[str, Any]:
    """One kill, and what the run after it finds and leaves."""
    killed = False
    for _ in range(ATTEMPTS):
        shutil.rmtree(folder / "reports")
        # In measurements since the first began, whose number is counted and whose parts are waited for.
        moment = rng.uniform(0, ITEMS)
        process = _start(folder)
        _until_measuring(folder, process, 1 + int(moment))
        time.sleep((moment % 1) * PAUSE)
        process.kill()
        killed = process.wait() == -9
        if killed:
            break
    records = len(list((folder / "reports").glob("*/records/**/*.json")))
    code = _start(folder).wait()
    return {
        "killed": killed,
        "records_left": records,
        "measured_again": len((folder / "measured.log").read_text().splitlines()),
        "exit_code": code,
        "same_report": _values(folder) == whole,
        "unfinished_left": len(list((folder / "reports").glob("*/unfinished"))),
    }


def _start(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "measured.log").unlink(missing_ok=True)
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(folder), "TOY_PAUSE": str(PAUSE)}
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "sae_bench.plugin"],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
    )


def _until_measuring(folder: Path, process: subprocess.Popen[bytes], items: int) -> None:
    log = folder / "measured.log"
    while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < items):
        time.sleep(0.01)


def _values(folder: Path) -> Any:
    latest = folder / "reports" / "latest.json"
    if not latest.exists():
        return None
    saes = json.loads(latest.read_text())["saes"]
    for sae in saes.values():
        for result in sae["properties"].values():
            result.pop("seconds", None)
    return saes
