"""Fitting one scale a feature (t*) at GPT-2 small's size, beside encoding and decoding the same tokens once.

``pytest benchmarks/engine/bench_scales.py`` (bench_*.py is not collected by default). What the fit encodes is part of its
time. Ratios and peak memory go to ``extra_info``; memory is the process's own and only known on Linux.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.scales import Scales, fit_scales

FEATURES, WIDTH, TOKENS, ACTIVE = 24_576, 768, 8_192, 64
DOCUMENT = 128
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Dictionary:
    """Unit directions and the ``ACTIVE`` largest projections of every token; features fire with very unequal rates."""

    def __init__(self, skew: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.decoder = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH, generator=generator), dim=1)
        self.encoder = self.decoder.T.contiguous()
        rate = torch.arange(1, FEATURES + 1).float().pow(-skew)
        fires = torch.multinomial(rate.expand(TOKENS, -1), ACTIVE, generator=generator)  # (tokens, active)
        strength = 0.5 + torch.rand(TOKENS, ACTIVE, generator=generator)
        self.x = torch.nn.functional.embedding_bag(fires, self.decoder, per_sample_weights=strength, mode="sum")

    def encode(self, x: Tensor) -> Tensor:
        pre = x @ self.encoder
        values, index = pre.topk(ACTIVE, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, index, values.relu())

    def stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.encode(x), x) for x in self.x.split(DOCUMENT))

    def encode_decode(self) -> None:
        for codes, _ in self.stream():
            codes @ self.decoder

    def fit(self) -> Scales:
        return fit_scales(self.stream, self.decoder)


def peak_mebibytes(work: Callable[[], object]) -> float | None:
    """How far the process's memory rises above what it holds before ``work``."""
    try:
        CLEAR.write_text("5")
        before = _status("VmRSS")
        work()
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return None


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("skew", [1.0, 0.5], ids=["few_frequent_features", "many_frequent_features"])
def bench_per_feature_scales(benchmark: Any, skew: float) -> None:
    dictionary = Dictionary(skew)
    started = time.perf_counter()
    dictionary.encode_decode()
    once = time.perf_counter() - started
    found = benchmark.pedantic(dictionary.fit, rounds=1)
    benchmark.extra_info |= {
        "features": FEATURES,
        "width": WIDTH,
        "tokens": TOKENS,
        "active": ACTIVE,
        "free_features": int(found.free.sum()),
        "products": found.products,
        "threads": torch.get_num_threads(),
        "encode_decode_seconds": once,
        "ratio_to_encode_decode": benchmark.stats.stats.mean / once,
        "peak_mebibytes": peak_mebibytes(dictionary.fit),
        "encode_decode_peak_mebibytes": peak_mebibytes(dictionary.encode_decode),
    }
    assert found.tokens == TOKENS
    assert found.products > 0
