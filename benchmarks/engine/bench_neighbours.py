"""What exact neighbours cost beside the bare product: all of nn1, nn10, nn100, hubs and the histogram.

Run by ``make bench-engine``. `ratio` in a benchmark's ``extra_info`` is the time over that of the bare, full, blocked
``U @ U.T`` in the same process, with the same blocks; the target is 1.5 at 24,576 x 768 and the symmetry makes less
possible. Only an idle machine tells: the many short steps between products wait for a core that is shared.
`peak_mb` is what the process grew by above the weights; the unit directions alone are as large as the weights.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_bench.measure.geometry import EDGES, gini, nearest_neighbours, neighbour_in_degrees
from sae_bench.measure.geometry.neighbours import BLOCK

SIZES = [(24_576, 768), (65_536, 768), (131_072, 512)]
FLOORS = {(24_576, 768): (0.1461, 0.1209, 0.0954), (131_072, 512): (0.1948, 0.1666, 0.1396)}
"Means of random directions (definitions of the floors), to show that what is timed is right."


def everything(W_dec: Tensor) -> dict[int, float]:
    """What `orthogonality` takes from one pass."""
    found, _ = nearest_neighbours(W_dec, torch.ones(len(W_dec), dtype=torch.bool))
    received = neighbour_in_degrees(found)
    gini(received)
    received.max()
    nearest = {rank: found.cosine[:, rank - 1] for rank in (1, 10, 100)}
    for values in nearest.values():
        np.histogram(values.numpy(), EDGES)
    return {rank: float(values.double().mean()) for rank, values in nearest.items()}


def bare_product(W_dec: Tensor) -> None:
    """Every block of U @ U.T, both halves, each written over the one before."""
    out = torch.empty(BLOCK, BLOCK)
    blocks = W_dec.split(BLOCK)
    for rows in blocks:
        for columns in blocks:
            torch.mm(rows, columns.T, out=out)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    """What the process holds now; its peak may be an earlier size's, which can only make the growth look larger."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_neighbours(n: int, d: int, benchmark: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)
    before = resident_mb()
    rounds = 3 if n <= 24_576 else 1
    found = benchmark.pedantic(everything, args=(W_dec,), rounds=rounds)
    grown = peak_mb() - before
    for rank, expected in zip((1, 10, 100), FLOORS.get((n, d), ()), strict=False):
        assert found[rank] == pytest.approx(expected, abs=5e-4)
    if benchmark.enabled:
        benchmark.extra_info["peak_mb"] = grown
        benchmark.extra_info["threads"] = torch.get_num_threads()
        full = min(seconds(lambda: bare_product(W_dec)) for _ in range(rounds))
        benchmark.extra_info["bare_product_seconds"] = full
        benchmark.extra_info["ratio"] = benchmark.stats.stats.min / full
