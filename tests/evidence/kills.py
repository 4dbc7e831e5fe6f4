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

ENGINE = Path(__file__).parents[1] / "runs" / "toy_engine.py"
CONFTEST = """
import toy_engine
toy_engine.install()
from sae_bench import register_sae
for name in "abc":
    register_sae(f"lab/{name}", path=name)
"""
SUITE = """
from sae_bench.testing import property_test
test_kl_gap = property_test("kl_gap")
test_reconstruction = property_test("reconstruction")
test_sparsity = property_test("sparsity")
"""
MOMENTS, ITEMS, PAUSE = 20, 9, "0.1"


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
        rows = []
        for moment in range(MOMENTS):
            shutil.rmtree(folder / "reports")
            process = _start(folder)
            # Counted in measurements, since a busy machine stretches seconds.
            _until_measuring(folder, process, 1 + moment % ITEMS)
            time.sleep(rng.uniform(0, 1.5 * float(PAUSE)))
            process.kill()
            killed = process.wait() == -9
            records = len(list((folder / "reports").glob("*/records/**/*.json")))
            (folder / "measured.log").unlink(missing_ok=True)
            code = _start(folder).wait()
            again = len((folder / "measured.log").read_text().splitlines())
            rows.append(
                {
                    "killed": killed,
                    "records_left": records,
                    "measured_again": again,
                    "exit_code": code,
                    "same_report": _values(folder) == whole,
                    "unfinished_left": len(list((folder / "reports").glob("*/unfinished"))),
                }
            )
    return {
        "kills": sum(row["killed"] for row in rows),
        "same": sum(row["same_report"] for row in rows),
        "moments": rows,
    }


def _start(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "measured.log").unlink(missing_ok=True)
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(folder), "TOY_PAUSE": PAUSE}
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
