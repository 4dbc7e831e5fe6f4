"""How long the commands take that measure nothing: at most 0.7 s for ``--help`` and ``compare``, 3 s to collect.

And what the plugin adds to a suite that has nothing to do with SAEs: at most 50 ms. ``make bench-engine`` runs it. Only
an idle machine tells; seconds of the processor tell on a busy one as well. Each finds its modules compiled, as after an
installation and a first start, also where ``PYTHONDONTWRITEBYTECODE`` would have every start compile them again.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ACCEPTED = "baselines/demo/topk.json"
COMMANDS = {
    "help": (["sae_bench", "--help"], 0.7),
    "compare": (["sae_bench", "compare", ACCEPTED, ACCEPTED], 0.7),
    "collect": (["pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "benchmarks/"], 3.0),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose starts share compiled modules, which the first one writes."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("compiled"))}


@pytest.mark.parametrize("name", COMMANDS)
def test_start(benchmark: Any, name: str, compiled: dict[str, str]) -> None:
    """The fastest of five starts is within what a user should wait."""
    arguments, most = COMMANDS[name]
    codes = []

    def start() -> None:
        command = [sys.executable, "-m", *arguments]
        codes.append(subprocess.run(command, cwd=ROOT, capture_output=True, env=compiled).returncode)

    benchmark.pedantic(start, rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {"at_most": most, "fastest": benchmark.stats.stats.min}
    # An accepted file holds no values per document but those it is compared by: beside itself, the rest is missing.
    assert set(codes) <= {0, 11}
    assert benchmark.stats.stats.min <= most


UNRELATED = 0.05
"Seconds that the plugin may add."


def test_unrelated_suite(benchmark: Any, tmp_path: Path, compiled: dict[str, str]) -> None:
    """One empty test, with the plugin and without it in turn; the median difference of the starts."""
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    took: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}

    def start(which: str) -> None:
        more = ["-p", "no:sae_bench.frontends.pytest.plugin"] if which == "without" else []
        clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *more]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, env=compiled)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        took[which].append((time.perf_counter() - clock, processor))

    benchmark.pedantic(lambda: start("with"), setup=lambda: start("without"), rounds=15, warmup_rounds=1)
    clock, processor = (
        statistics.median(there[index] - bare[index] for there, bare in zip(took["with"], took["without"], strict=True))
        for index in (0, 1)
    )
    benchmark.extra_info |= {"at_most": UNRELATED, "added_seconds": clock, "added_processor_seconds": processor}
    assert processor <= UNRELATED
