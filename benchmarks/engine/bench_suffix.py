"""How much an arm costs when it runs on from the site, against a full pass: the engine's reason to be.

Run by ``make bench-engine``. A GPT-2-small-shaped model with random weights, the site at layer 6 of 12, 1,024 tokens;
`ratio` in a benchmark's ``extra_info`` is its median time over that of a full pass measured beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench.model import Capture, Model, wrap_model
from sae_bench.site import Site

SITE = Site(6, "hook_resid_pre")
ROUNDS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gpt2-shaped")
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>").save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = GPT2LMHeadModel(GPT2Config.from_pretrained(folder, attn_implementation="eager"))
    bridge = TransformerBridge.boot_transformers(str(folder), hf_model=weights.eval(), device="cpu")
    return wrap_model(bridge, name="gpt2-shaped")


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(50257, (8, 128), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def seen(model: Model, tokens: torch.Tensor) -> Capture:
    return model.capture(tokens, SITE)


@pytest.fixture(scope="module")
def full_seconds(model: Model, tokens: torch.Tensor) -> float:
    return statistics.median(_seconds(lambda: model.logits(tokens)) for _ in range(ROUNDS))


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _measure(benchmark: Any, run: Callable[[], Any], full_seconds: float) -> None:
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["full_pass_seconds"] = full_seconds
        benchmark.extra_info["ratio"] = benchmark.stats.stats.median / full_seconds


def bench_full_pass(benchmark: Any, model: Model, tokens: torch.Tensor, full_seconds: float) -> None:
    _measure(benchmark, lambda: model.logits(tokens), full_seconds)


def bench_one_arm(benchmark: Any, model: Model, tokens: torch.Tensor, seen: Capture, full_seconds: float) -> None:
    value = seen.value + 1
    _measure(benchmark, lambda: model.resume(tokens, seen.block_input, SITE, value), full_seconds)
    assert torch.equal(model.resume(tokens, seen.block_input, SITE, seen.value), model.logits(tokens))


def bench_unembedding_alone(
    benchmark: Any, model: Model, tokens: torch.Tensor, seen: Capture, full_seconds: float
) -> None:
    _measure(benchmark, lambda: model.final_logits(seen.value), full_seconds)
