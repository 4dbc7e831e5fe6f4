"""Texts outside the corpus, tokenised and captured up to the site.

Shapes: p positions of a prompt, d site width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.errors import MeasurementError

ROWS = 64
"Most prompts of one length in one run. Fixed, so that numbers do not depend on the batch size."


@dataclass(frozen=True, eq=False)
class Prompt:
    """Prompt up to the position whose next token is predicted."""

    name: str
    "For messages, such as ``document 17``."
    tokens: Tensor
    "int64 (p,)"
    block_input: Tensor
    "(p, d_model) float32"
    x: Tensor
    "(p, d) float32, the site's activation"

    @property
    def last(self) -> Tensor:
        """Return (d,) the activation at the last position."""
        return self.x[-1]


def document_prefix(bench: Bench) -> list[int]:
    """Return the token ids that prompts begin with, as the corpus's documents do: BOS or nothing."""
    prefix: list[int] = bench.corpus.tokens[0, :1].tolist() if bench.corpus.has_bos else []
    return prefix


def require_tokenizer(bench: Bench, reader: str) -> Any:
    """Return the model's tokenizer; a model without one is a `MeasurementError` that names ``reader``."""
    if bench.model.tokenizer is None:
        raise MeasurementError(
            f"{reader} reads text, and model {bench.model.name!r} came without a tokenizer; load it from a "
            f"Hugging Face folder"
        )
    return bench.model.tokenizer


def token_ids(tokenizer: Any, text: str, where: str) -> list[int]:
    """Return the ids of a text without special tokens; no token or an unknown word is a `MeasurementError`."""
    ids = [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]
    if not ids:
        raise MeasurementError(f"{where}: the tokenizer makes no token of {text!r}")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise MeasurementError(f"{where}: the tokenizer does not know a word of {text!r}; use words of the model's own")
    return ids


def equal_length_groups(lengths: Sequence[int], most: int = ROWS) -> Iterator[list[int]]:
    """Yield indices of prompts of one length, at most ``most`` at a time."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    for group in by_length.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


def last_sae_inputs(bench: Bench, prompts: Sequence[Prompt]) -> Tensor:
    """Return (prompts, d_in) the SAE's input at the last positions: the site's activation unless it is a transcoder."""
    if bench.source is bench.site_data:
        return torch.stack([prompt.last for prompt in prompts])
    inputs: dict[int, Tensor] = {}
    for rows in equal_length_groups([len(prompt.tokens) for prompt in prompts]):
        captured = bench.model.capture(torch.stack([prompts[index].tokens for index in rows]), bench.source.site)
        inputs |= zip(rows, captured.value[:, -1].to(bench.settings.device), strict=True)
    return torch.stack([inputs[index] for index in range(len(prompts))])


def capture_prompts(bench: Bench, texts: Sequence[tuple[str, list[int]]], label: str) -> list[Prompt]:
    """Run named token ids up to the site; those of one length run together."""
    prompts: dict[int, Prompt] = {}
    for rows in equal_length_groups([len(ids) for _, ids in texts]):
        tokens = torch.tensor([texts[index][1] for index in rows], device=bench.settings.device)
        captured = bench.model.capture(tokens, bench.site)
        values = (each.to(tokens.device) for each in (captured.block_input, captured.value))
        for index, *parts in zip(rows, tokens, *values, strict=True):
            prompts[index] = Prompt(texts[index][0], *parts)
        bench.show_progress(label, len(prompts), len(texts))
    return [prompts[index] for index in range(len(texts))]
