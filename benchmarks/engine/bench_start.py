"""How long the commands take that measure nothing: at most 0.7 s for ``--help`` and ``compare``, 3 s to collect.

``make bench-engine`` runs it. Only an idle machine tells.
"""

from __future__ import annotations

import subprocess
import sys
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


@pytest.mark.parametrize("name", COMMANDS)
def test_start(benchmark: Any, name: str) -> None:
    """The fastest of five starts is within what a user should wait."""
    arguments, most = COMMANDS[name]
    codes = []

    def start() -> None:
        codes.append(subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True).returncode)

    benchmark.pedantic(start, rounds=5)
    benchmark.extra_info |= {"at_most": most, "fastest": benchmark.stats.stats.min}
    # An accepted file holds no values per document but those it is compared by: beside itself, the rest is missing.
    assert set(codes) <= {0, 11}
    assert benchmark.stats.stats.min <= most
