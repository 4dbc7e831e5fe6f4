"""Texts that are no documents of the corpus, as a model reads them: tokenised, and captured up to the site.

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
"Prompts of one length that are run together, at most. Fixed, so that numbers do not depend on anybody's batch size."


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt up to the position whose next token is asked for."""

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
        """(d,) activation at the last position."""
        return self.x[-1]


def first_token(bench: Bench) -> list[int]:
    """What prompts begin with, as the corpus' documents do: BOS or nothing."""
    found: list[int] = bench.corpus.tokens[0, :1].tolist() if bench.corpus.has_bos else []
    return found


def tokenizer_for(bench: Bench, what: str) -> Any:
    """The model's tokenizer; a model without one is a `MeasurementError`, because ``what`` reads text."""
    if bench.model.tokenizer is None:
        raise MeasurementError(
            f"{what} reads text, and model {bench.model.name!r} came without a tokenizer; load it from a "
            f"Hugging Face folder"
        )
    return bench.model.tokenizer


def token_ids(tokenizer: Any, text: str, where: str) -> list[int]:
    """Ids of a text without special tokens; none at all, or an unknown word, is a `MeasurementError`."""
    ids = [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]
    if not ids:
        raise MeasurementError(f"{where}: the tokenizer makes no token of {text!r}")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise MeasurementError(f"{where}: the tokenizer does not know a word of {text!r}; use words of the model's own")
    return ids


def of_one_length(lengths: Sequence[int], most: int = ROWS) -> Iterator[list[int]]:
    """Indices of prompts of one length, at most ``most`` at a time."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    for group in by_length.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


def last_read(bench: Bench, prompts: Sequence[Prompt]) -> Tensor:
    """(prompts, d_in) what the SAE reads at the last positions: the site's activation, unless it is a transcoder."""
    if bench.source is bench.site_data:
        return torch.stack([prompt.last for prompt in prompts])
    found: dict[int, Tensor] = {}
    for rows in of_one_length([len(prompt.tokens) for prompt in prompts]):
        seen = bench.model.capture(torch.stack([prompts[index].tokens for index in rows]), bench.source.site)
        found |= zip(rows, seen.value[:, -1].to(bench.settings.device), strict=True)
    return torch.stack([found[index] for index in range(len(prompts))])


def captured_prompts(bench: Bench, texts: Sequence[tuple[str, list[int]]], label: str) -> list[Prompt]:
    """Named token ids as the model reads them; those of one length are run together."""
    found: dict[int, Prompt] = {}
    for rows in of_one_length([len(ids) for _, ids in texts]):
        tokens = torch.tensor([texts[index][1] for index in rows], device=bench.settings.device)
        seen = bench.model.capture(tokens, bench.site)
        values = (each.to(tokens.device) for each in (seen.block_input, seen.value))
        for index, *parts in zip(rows, tokens, *values, strict=True):
            found[index] = Prompt(texts[index][0], *parts)
        bench.show_progress(label, len(found), len(texts))
    return [found[index] for index in range(len(texts))]
