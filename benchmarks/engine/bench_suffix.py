"""How much an arm costs when it runs on from the site, against a full pass: the engine's reason to be.

Run by ``make bench-engine``. A GPT-2-small-shaped model with random weights, the site at layer 6 of 12, 1,024 tokens;
`ratio` in the benchmark's ``extra_info`` is its median time over that of full passes between its rounds.

An arm with its KL is held against the floor: the floating-point operations of the blocks from the site on, their
attention and the unembedding of the kept tokens, at the rate of the bare product (1,024 x 768) @ (768 x 3,072) between
the rounds. `share_of_floor` is the floor over the arm's median time, both in processor seconds, because a machine that
others use stretches the clock; at least 0.7 is wanted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import from_documents
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.model.language_model import Model, SiteCapture
from sae_bench.model.load import load_model
from sae_bench.registry.site import Site

SITE = Site(6, "hook_resid_pre")
ROUNDS = 5


@pytest.fixture(scope="module")
def model(save: Callable[[Any, Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Model:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = GPT2LMHeadModel(GPT2Config())
    return load_model(str(save(weights, tmp_path_factory.mktemp("gpt2-shaped"))))


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(50257, (8, 128), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def seen(model: Model, tokens: torch.Tensor) -> SiteCapture:
    return model.capture(tokens, SITE)


class _Still:
    """An SAE that an arm needs to have, and whose numbers nobody asks for."""

    d_in, d_sae = 768, 8

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :8]

    def decode(self, codes: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
        assert like is not None
        return like


def operations(model: Model, tokens: torch.Tensor, kept: int) -> int:
    """Floating-point operations of an arm: four products a block, both of the attention, and the unembedding."""
    width, (documents, length) = model.d_model, tokens.shape
    a_token = 24 * width**2 + 4 * length * width
    return (model.n_layers - SITE.layer) * a_token * documents * length + 2 * width * model.d_vocab * kept


def _processor_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def test_one_arm(benchmark: Any, model: Model, tokens: torch.Tensor, seen: SiteCapture) -> None:
    value = seen.value + 1
    full: list[float] = []
    unembedding: list[float] = []

    def others() -> None:
        # Between the rounds, so that a machine that slows down slows all of them down.
        full.append(_seconds(lambda: model.logits(tokens)))
        unembedding.append(_seconds(lambda: model.final_logits(seen.value)))

    benchmark.pedantic(
        lambda: model.resume(tokens, seen.block_input, SITE, value), setup=others, rounds=ROUNDS, warmup_rounds=1
    )
    assert torch.equal(model.resume(tokens, seen.block_input, SITE, seen.value), model.logits(tokens))
    if benchmark.enabled:
        whole = statistics.median(full[1:])
        benchmark.extra_info["full_pass_seconds"] = whole
        benchmark.extra_info["unembedding_seconds"] = statistics.median(unembedding[1:])
        benchmark.extra_info["ratio"] = benchmark.stats.stats.median / whole


def test_an_arm_beside_the_floor(benchmark: Any, model: Model, tokens: torch.Tensor) -> None:
    settings = Settings()
    corpus = from_documents(tokens.tolist(), has_bos=True)
    bench = Bench(_Still(), model, corpus, capture_site(model, SITE, corpus, settings), settings)
    batch = bench.batch(tuple(range(len(tokens))))
    value = batch.x + torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(1))
    one, other = (
        torch.randn(shape, generator=torch.Generator().manual_seed(2)) for shape in ((1024, 768), (768, 3072))
    )
    conditions: list[float] = []
    products: list[float] = []

    def product() -> None:
        products.append(_processor_seconds(lambda: [one @ other for _ in range(8)]) / 8)

    benchmark.pedantic(
        lambda: conditions.append(_processor_seconds(lambda: bench.intervene(batch, value))),
        setup=product,
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    if benchmark.enabled:
        rate = 2 * one.numel() * other.shape[1] / statistics.median(products[1:])
        floor = operations(model, tokens, int(batch.keep.sum())) / rate
        benchmark.extra_info |= {
            "operations": operations(model, tokens, int(batch.keep.sum())),
            "product_gflops_a_second": rate / 1e9,
            "floor_processor_seconds": floor,
            "arm_processor_seconds": statistics.median(conditions[1:]),
            "share_of_floor": floor / statistics.median(conditions[1:]),
            "threads": torch.get_num_threads(),
        }
