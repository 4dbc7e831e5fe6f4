"""The noise arms of `kl_gap` on a GPU at the shape of Gemma-2-2B with random weights, beside the floor of that GPU.

Run by ``make bench-engine``; without a GPU only a small shape is run, on the CPU, so that this file itself is tried.
A JumpReLU SAE of 16,384 latents before block 12 of 26, 32 documents of 128 tokens, 16 in a batch; the SAE's arm and one
draw of every kind of noise. ``extra_info`` holds tokens a second (each arm's count), and the floor: the floating-point
operations of the suffixes (blocks from the site on, attention, unembedding) at the rate of a bare product of the
model's precision, (2,048 x 2,304) @ (2,304 x 9,216), measured between the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import from_documents
from sae_bench.engine.noise_floors import noise_floors
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.model.load import load_model
from sae_bench.registry.site import Site
from sae_bench.sae import JumpReLU, LinearDecoderSAE, SAEInfo

NOISE = {floor.name: floor.replacement for floor in noise_floors() if floor.draws}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DOCUMENTS, POSITIONS, ROUNDS = 32, 128, 3


@dataclass(frozen=True)
class Shape:
    """Of a Gemma 2 and an SAE of it."""

    width: int
    layers: int
    heads: int
    head: int
    inner: int
    vocabulary: int
    site: int
    features: int

    def operations(self, kept: int) -> int:
        """Floating-point operations of one arm over all documents: products, attention, unembedding of kept tokens."""
        queries, keys = self.heads * self.head, self.heads // 2 * self.head
        block = 2 * self.width * (2 * queries + 2 * keys + 3 * self.inner) + 4 * POSITIONS * queries
        return DOCUMENTS * POSITIONS * (self.layers - self.site) * block + 2 * self.width * self.vocabulary * kept


GEMMA_2_2B = Shape(2304, 26, heads=8, head=256, inner=9216, vocabulary=256_000, site=12, features=16_384)
SMALL = Shape(64, 2, heads=4, head=16, inner=128, vocabulary=4000, site=1, features=256)


def random_weights(shape: Shape, dtype: str) -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads // 2, head_dim=shape.head,
        intermediate_size=shape.inner,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.device(DEVICE):
        torch.manual_seed(0)
        return Gemma2ForCausalLM(config).to(getattr(torch, dtype))


def random_sae(shape: Shape) -> LinearDecoderSAE:
    """Fires on a few features in a hundred of what comes, whatever its scale: thresholds are in deviations."""
    generator = torch.Generator().manual_seed(1)
    decoder = torch.nn.functional.normalize(torch.randn(shape.features, shape.width, generator=generator), dim=1)
    info = SAEInfo("random", "jumprelu", shape.width, shape.features)
    zeros = torch.zeros(shape.features)
    sae = LinearDecoderSAE(
        info=info, W_enc=decoder.T.contiguous(), activation=JumpReLU(zeros, zeros + 2.0), W_dec=decoder,
        b_dec=torch.zeros(shape.width), pre_bias=torch.zeros(shape.width),
    )  # fmt: skip
    return sae.to(DEVICE)


def seconds(run: Callable[[], Any]) -> float:
    """Of work that a GPU may still be at when the call returns."""
    start = time.perf_counter()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def conditions(bench: Bench) -> Tensor:
    """Mean KL of the SAE's arm and of one draw of every noise."""
    found = []
    for batch in bench.batches():
        error = bench.error(batch)
        values = [batch.x + error]
        values += [make(batch.x, error, bench.noise_pool(), bench.draw(batch, name, 0)) for name, make in NOISE.items()]
        found.append(torch.stack([bench.intervene(batch, value).kl.mean() for value in values]))
    return torch.stack(found).mean(0).cpu()


@pytest.fixture
def make(save: Callable[[Any, Path], Path], tmp_path: Path) -> Callable[[Shape, str], Bench]:
    """The SAE of a shape on its model, of a precision."""

    def made(shape: Shape, dtype: str) -> Bench:
        model = load_model(str(save(random_weights(shape, dtype), tmp_path)), device=DEVICE, dtype=dtype)
        tokens = torch.randint(1, shape.vocabulary, (DOCUMENTS, POSITIONS), generator=torch.Generator().manual_seed(0))
        settings = Settings(device=DEVICE, dtype=dtype, memory_bytes=32 << 30)
        corpus = from_documents(tokens.tolist(), has_bos=False)
        site = Site(shape.site, "hook_resid_pre")
        return Bench(random_sae(shape), model, corpus, capture_site(model, site, corpus, settings), settings)

    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small(dtype: str, make: Callable[[Shape, str], Bench]) -> None:
    """Timed nowhere."""
    found = conditions(make(SMALL, dtype))
    assert bool((found > 0).all())
    assert bool(torch.isfinite(found).all())


@pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arms(dtype: str, benchmark: Any, make: Callable[[Shape, str], Bench]) -> None:
    bench = make(GEMMA_2_2B, dtype)
    precision = getattr(torch, dtype)
    one = torch.randn(2048, GEMMA_2_2B.width, device=DEVICE, dtype=precision)
    other = torch.randn(GEMMA_2_2B.width, GEMMA_2_2B.inner, device=DEVICE, dtype=precision)
    products: list[float] = []
    took: list[float] = []
    benchmark.pedantic(
        lambda: took.append(seconds(lambda: conditions(bench))),
        setup=lambda: products.append(seconds(lambda: [one @ other for _ in range(32)]) / 32),
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    if benchmark.enabled:
        count, median = 1 + len(NOISE), statistics.median(took[1:])
        rate = 2 * one.numel() * other.shape[1] / statistics.median(products[1:])
        floor = count * GEMMA_2_2B.operations(len(bench.site_data.kept_positions)) / rate
        benchmark.extra_info |= {
            "device": torch.cuda.get_device_name(),
            "arms": count,
            "tokens_per_second": count * DOCUMENTS * POSITIONS / median,
            "product_teraflops_a_second": rate / 1e12,
            "floor_seconds": floor,
            "share_of_floor": floor / median,
        }
