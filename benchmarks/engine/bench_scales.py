"""Fitting one scale a feature (t*) at GPT-2 small's size, beside encoding and decoding the same tokens once.

``make bench-engine`` runs it. What the fit encodes counts as its time. ``extra_info`` holds ratios and peak memory: the
ratio in processor time holds on a busy machine too; memory is the process's own and only known on Linux.
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

from sae_bench.measure.shared.scales import Scales, fit_scales

FEATURES, WIDTH, TOKENS, ACTIVE = 24_576, 768, 8_192, 64
DOCUMENT = 128
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Dictionary:
    """Unit directions; codes are the ``ACTIVE`` largest projections. ``rate`` (n,): how often features are in x."""

    def __init__(self, rate: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        self.decoder = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH, generator=generator), dim=1)
        # Else chance projections on features that are never in x would take places among the largest.
        self.encoder = (self.decoder.T * (rate > 0)).contiguous()
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


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """On the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


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


@pytest.mark.parametrize("frequent", ["few", "as_many_as_possible"])
def test_per_feature_scales(benchmark: Any, frequent: str) -> None:
    """Only features with 100 firings are fitted; at most one in so many of the codes can belong to such a feature."""
    rank = torch.arange(1, FEATURES + 1).float()
    dictionary = Dictionary(1 / rank if frequent == "few" else (rank <= TOKENS * ACTIVE / 128).float())
    once, once_processor = seconds(dictionary.encode_decode)
    once_peak, fit_peak = peak_mebibytes(dictionary.encode_decode), peak_mebibytes(dictionary.fit)
    processor = time.process_time()
    found = benchmark.pedantic(dictionary.fit, rounds=1)
    processor = time.process_time() - processor
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
        "processor_ratio_to_encode_decode": processor / once_processor,
        "peak_mebibytes": fit_peak,
        "encode_decode_peak_mebibytes": once_peak,
    }
    assert found.tokens == TOKENS
    assert found.products > 0
