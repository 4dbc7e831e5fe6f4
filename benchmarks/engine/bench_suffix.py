"""How much an arm costs when it runs on from the site, against a full pass: the engine's reason to be.

Run by ``make bench-engine``. A GPT-2-small-shaped model with random weights, the site at layer 6 of 12, 1,024 tokens;
`ratio` in the benchmark's ``extra_info`` is its median time over that of full passes between its rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
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


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def test_one_arm(benchmark: Any, model: Model, tokens: torch.Tensor, seen: Capture) -> None:
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
