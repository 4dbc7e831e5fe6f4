"""How long the commands take that measure nothing: at most 0.7 s for ``--help`` and ``compare``, 3 s to collect.

``make bench-engine`` runs it. The clock tells what a user waits; the processor's time holds on a busy machine too.
"""

from __future__ import annotations

import os
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
    """The processor's time of the fastest of five starts, children included, is within what a user should wait."""
    arguments, most = COMMANDS[name]
    codes, processor = [], []

    def start() -> None:
        before = os.times()
        codes.append(subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True).returncode)
        after = os.times()
        processor.append(sum(after[2:4]) - sum(before[2:4]))

    benchmark.pedantic(start, rounds=5)
    benchmark.extra_info |= {"at_most": most, "fastest": benchmark.stats.stats.min, "processor": min(processor)}
    # An accepted file holds no values per document but those it is compared by: beside itself, the rest is missing.
    assert set(codes) <= {0, 11}
    assert min(processor) <= most
