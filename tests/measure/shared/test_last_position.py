"""One prompt serves many directions where the attention allows it, and the numbers are those of whole prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from sae_bench.measure.shared.last_position import LastPositionRunner
from sae_bench.measure.shared.prompts import Prompt
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT2": {"vocab_size": 61, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 24, "initializer_range": 0.3},
    "Llama": SIZES,
    "Qwen3": SIZES | {"head_dim": 6},
    "Gemma2": SIZES | {"head_dim": 6, "query_pre_attn_scalar": 6, "sliding_window": 4},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {"<s>": 0, "</s>": 1} | {f"w{index}": index for index in range(2, 61)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="</s>")), bos_token="<s>", eos_token="</s>"
    )
    found = {}
    for name, options in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        config = getattr(transformers, f"{name}Config")(**options)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            class_name = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
            getattr(transformers, class_name)(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = load_model(str(folder))
    return found


def prompt_of(model: Model, site: Any, length: int) -> Prompt:
    tokens = torch.randint(2, 61, (length,), generator=torch.Generator().manual_seed(length))
    seen = model.capture(tokens[None], site)
    return Prompt(f"prompt of {length}", tokens, seen.block_input[0], seen.value[0])


def full_passes(model: Model, site: Any, prompt: Prompt, values: torch.Tensor) -> torch.Tensor:
    rows = []
    for value in values:
        x = prompt.x.clone()
        x[-1] = value
        logits = model.resume(prompt.tokens[None], prompt.block_input[None], site, x[None])
        rows.append(functional.log_softmax(logits[0, -1], dim=-1))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"])
@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_it_gives_what_whole_prompts_give(models: dict[str, Model], architecture: str, name: str) -> None:
    model, site = models[architecture], parse_site(name)
    runner = LastPositionRunner(model, site, 1 << 30)
    for length in (2, 9, 12):
        prompt = prompt_of(model, site, length)
        generator = torch.Generator().manual_seed(1)
        values = prompt.last + torch.randn(30, prompt.x.shape[1], generator=generator) * prompt.last.std()
        found = torch.cat([rows for rows, _ in runner.log_probs(prompt, values)])
        torch.testing.assert_close(found, full_passes(model, site, prompt, values), atol=1e-4, rtol=0)
        assert (found - found[:1]).abs().max() > 0.01
    # A window of 4 is shorter than the longer prompts, so there whole prompts must have been run.
    assert runner.packed == (architecture != "Gemma2")


@pytest.mark.parametrize("memory", [1 << 30, 16 * 61 * 4 * 7])
@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_prompts_that_are_run_together_give_what_each_gives(
    models: dict[str, Model], architecture: str, memory: int
) -> None:
    model, site = models[architecture], parse_site("blocks.1.hook_mlp_out")
    prompts = []
    for seed, length in enumerate((9, 12, 9, 2, 9, 12, 9)):
        tokens = torch.randint(2, 61, (length,), generator=torch.Generator().manual_seed(seed))
        seen = model.capture(tokens[None], site)
        prompts.append(Prompt(f"prompt {seed}", tokens, seen.block_input[0], seen.value[0]))
    shifts = torch.randn(5, 16, generator=torch.Generator().manual_seed(3)) * prompts[0].x.std()
    found = dict(LastPositionRunner(model, site, memory).shifted(prompts, shifts))
    assert sorted(found) == list(range(7))
    for index, prompt in enumerate(prompts):
        wanted = full_passes(model, site, prompt, prompt.last + shifts)
        torch.testing.assert_close(found[index], wanted, atol=1e-4, rtol=0)
    assert (found[0] - found[2]).abs().max() > 0.01


def test_parts_are_handed_out_in_order_and_within_memory(models: dict[str, Model]) -> None:
    model, site = models["GPT2"], parse_site("blocks.1.hook_resid_pre")
    prompt = prompt_of(model, site, 9)
    values = prompt.last + torch.randn(40, 16, generator=torch.Generator().manual_seed(2))
    little = LastPositionRunner(model, site, 16 * 61 * 4 * 7)
    parts = list(little.log_probs(prompt, values))
    assert [len(rows) for rows, _ in parts] == [7] * 5 + [5]
    assert [(where.start, where.stop) for _, where in parts][:2] == [(0, 7), (7, 14)]
    whole = torch.cat([rows for rows, _ in LastPositionRunner(model, site, 1 << 30).log_probs(prompt, values)])
    torch.testing.assert_close(torch.cat([rows for rows, _ in parts]), whole, atol=1e-5, rtol=0)


def test_an_attention_that_takes_no_mask_runs_whole_prompts(solved: Any) -> None:
    class Stubborn(solved):  # type: ignore[misc, valid-type]
        def resume(self, *args: Any, options: Any = None, **kwargs: Any) -> torch.Tensor:
            if options is not None:
                raise TypeError("no mask, please")
            return super().resume(*args, **kwargs)

    weights = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    model = Stubborn(lambda tokens: weights.T[tokens], lambda x: x @ weights, [str(index) for index in range(11)], 5)
    x = weights.T[torch.tensor([1, 2, 3])]
    runner = LastPositionRunner(model, parse_site("blocks.0.hook_resid_pre"), 1 << 20)
    values = torch.randn(3, 5)
    found = torch.cat([rows for rows, _ in runner.log_probs(Prompt("p", torch.tensor([1, 2, 3]), x, x), values)])
    torch.testing.assert_close(found, functional.log_softmax(values @ weights, dim=-1))
    assert not runner.packed


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"])
@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_gradients_are_slopes_in_every_architecture(models: dict[str, Model], architecture: str, name: str) -> None:
    model, site = models[architecture], parse_site(name)
    prompt = prompt_of(model, site, 9)
    tokens, block_input, x = prompt.tokens[None], prompt.block_input[None], prompt.x[None]
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 3] - logits[:, -1, 5]

    slope = float((model.gradient(tokens, block_input, site, x, difference) * direction).sum())
    ends = [difference(model.resume(tokens, block_input, site, x + step * direction)).item() for step in (1e-2, -1e-2)]
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.02, abs=1e-4)
    assert not torch.is_grad_enabled() or not model.resume(tokens, block_input, site, x).requires_grad
