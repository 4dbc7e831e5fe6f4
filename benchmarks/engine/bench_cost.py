"""What a measurement costs by number of documents and of arms, at four sizes each: it is linear.

``make bench-engine`` runs it, on the bundled model and its TopK SAE. Documents: capture, the clean run, the SAE's arm,
codes and reconstruction, with a budget that the activations outgrow, so that they lie in files. Arms: other values in
the activation's place, over 32 captured documents, and what torch allocates at once. Seconds are the processor's,
medians of rounds that take turns. Memory by documents is what `bench_memory` measures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from sae_bench.demo.paths import CORPUS, MODEL, SAES, SITE
from sae_bench.engine.batch import Batch
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import load_corpus
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import SiteData
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site
from sae_bench.run.speed import peak_mebibytes
from sae_bench.sae.formats import read_sae

DOCUMENTS, ARMS, OF_ARMS = (16, 32, 64, 128), (1, 2, 4, 8), 32
SETTINGS = Settings(memory_bytes=16 << 20)
ROUNDS = 2
LINEAR, FLAT = 1.3, 1.1
"Cost of a unit, and memory, at the largest size over those at the smallest, at most."


def seconds_of(works: dict[int, Callable[[], object]]) -> dict[str, float]:
    """Processor seconds of every size."""
    took: dict[int, list[float]] = {size: [] for size in works}
    for _ in range(ROUNDS + 1):
        for size, work in works.items():
            start = time.process_time()
            work()
            took[size].append(time.process_time() - start)
    # The first round warms up.
    return {str(size): statistics.median(taken[1:]) for size, taken in took.items()}


def judge(benchmark: Any, works: dict[int, Callable[[], object]]) -> None:
    seconds = benchmark.pedantic(lambda: seconds_of(works), rounds=1)
    small, large = min(works), max(works)
    each = {size: seconds[str(size)] / size for size in works}
    benchmark.extra_info["processor_seconds"] = seconds
    benchmark.extra_info["cost_of_one_at_largest_over_smallest"] = each[large] / each[small]
    assert each[large] <= LINEAR * each[small]


def test_documents(benchmark: Any) -> None:
    model, corpus = load_model(str(MODEL)), load_corpus(CORPUS)
    sae = read_sae(str(SAES["topk"]))

    def work(documents: int) -> Callable[[], object]:
        part = corpus.take(documents)

        def measure() -> None:
            data = SiteData(model, parse_site(SITE), part, include_bos=False, memory_bytes=SETTINGS.memory_bytes // 2)
            data.fill()
            bench = Bench(sae, model, part, data, Settings(memory_bytes=SETTINGS.memory_bytes, documents=documents))

            def condition(batch: Batch) -> dict[str, torch.Tensor]:
                found = bench.intervene(batch, bench.reconstruct(batch))
                return {
                    "kl": found.kl,
                    "clean": bench.intervene(batch, None).ce,
                    "l0": (bench.codes(batch) != 0).sum(-1),
                }

            bench.collect(condition)

        return measure

    judge(benchmark, {size: work(size) for size in DOCUMENTS})


def test_arms(benchmark: Any) -> None:
    model, corpus = load_model(str(MODEL)), load_corpus(CORPUS).take(OF_ARMS)
    data = SiteData(model, parse_site(SITE), corpus, include_bos=False, memory_bytes=SETTINGS.memory_bytes // 2)
    data.fill()
    bench = Bench(read_sae(str(SAES["topk"])), model, corpus, data, SETTINGS)

    def work(conditions: int) -> Callable[[], object]:
        def all_arms(batch: Batch) -> dict[str, torch.Tensor]:
            shifted = (batch.x * (1 + 0.01 * (index + 1)) for index in range(conditions))
            return {str(index): bench.intervene(batch, value).kl for index, value in enumerate(shifted)}

        return lambda: bench.collect(all_arms)

    works = {size: work(size) for size in ARMS}
    judge(benchmark, works)
    peak = {str(size): peak_mebibytes(each, "cpu") for size, each in works.items()}
    benchmark.extra_info["peak_mebibytes"] = peak
    assert (peak[str(max(ARMS))] or 0) <= FLAT * (peak[str(min(ARMS))] or 0)
