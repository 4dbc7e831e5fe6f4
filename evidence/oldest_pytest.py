"""The tests of whole runs on the oldest pytest that is supported, with xdist: they need no torch, so no other venv."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PYTEST, XDIST = "8.0.0", "3.6.1"
RUNS = "tests/journeys/runs"


def measure() -> dict[str, Any]:
    """Install the two beside what is installed, and run the tests with them in front."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = [f"pytest=={PYTEST}", f"pytest-xdist=={XDIST}"]
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, *wanted]
        subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", RUNS, "-p", "no:cacheprovider", "-p", "no:randomly"],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
        )
    version = re.search(r"pytest-(\d+\.\d+\.\d+)", done.stdout)
    # The output of a test that failed may hold the counts of a run within it; the last line is ours.
    passed = re.search(r"(\d+) passed", (done.stdout.splitlines() or [""])[-1])
    return {
        "pytest": version[1] if version else None,
        "xdist": XDIST,
        "exit_code": done.returncode,
        "passed": int(passed[1]) if passed else 0,
        "failed": re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE),
    }
