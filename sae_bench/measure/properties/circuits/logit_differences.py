"""Logit differences of a circuit's prompts when a site's activations are replaced at all of their positions.

The right answer's logit minus the wrong one's at a prompt's last position, in nats; log-probabilities have the same
difference. The first position (BOS) is not intervened on unless the bench says otherwise.

Shapes: N prompts, b of them run together, p positions, d site width, n features.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sae_bench.engine import noise_floors
from sae_bench.engine.bench import Bench
from sae_bench.engine.noise_pool import SeededDraws
from sae_bench.errors import MeasurementError
from sae_bench.measure.arrays import Floats
from sae_bench.measure.datasets.circuit_file import CircuitPrompt, CircuitSet
from sae_bench.measure.shared.prompts import (
    Prompt,
    capture_prompts,
    document_prefix,
    equal_length_groups,
    require_tokenizer,
    token_ids,
)


@dataclass(frozen=True, eq=False)
class TokenisedPrompts:
    """Prompts of a circuit, tokenised and captured."""

    items: tuple[CircuitPrompt, ...]
    prompts: tuple[Prompt, ...]
    answers: Tensor
    "int64 (N, 2) tokens of the right and the wrong answer."
    first_position: int
    "Positions before this one are not replaced."
    key: Hashable
    "Identity of the prompts, for results that do not depend on the SAE."

    def groups(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Yield the prompts ``rows`` in groups of one length."""
        for group in equal_length_groups([len(self.prompts[row].tokens) for row in rows]):
            yield [rows[index] for index in group]


def tokenise_prompts(bench: Bench, circuit: CircuitSet, items: Sequence[CircuitPrompt]) -> TokenisedPrompts:
    """Return some prompts of a dataset, tokenised and captured; the same for all SAEs of a site.

    A prompt of the dataset that the model cannot read is a `MeasurementError` with its line, measured or not.
    """

    def compute() -> TokenisedPrompts:
        ids = bench.site_data.shared(("circuit tokens", circuit.sha256), lambda: _token_table(bench, circuit))
        texts = [(f"{circuit.path}, line {prompt.line}", ids[prompt.line][0]) for prompt in items]
        return TokenisedPrompts(
            tuple(items),
            tuple(capture_prompts(bench, texts, "circuits: prompts")),
            torch.tensor([ids[prompt.line][1] for prompt in items]),
            first_position=0 if bench.include_bos else 1,
            key=key,
        )

    key = ("circuit", circuit.sha256, tuple(prompt.line for prompt in items))
    return bench.site_data.shared(key, compute)


def _token_table(bench: Bench, circuit: CircuitSet) -> dict[int, tuple[list[int], list[int]]]:
    """Return by line the token ids of the prompt, and those of the right and the wrong answer."""
    tokenizer = require_tokenizer(bench, "a circuit's dataset")
    start = document_prefix(bench)
    token_table = {}
    for prompt in circuit.prompts:
        where = f"{circuit.path}, line {prompt.line}"
        ids = start + token_ids(tokenizer, prompt.prompt, where)
        if len(ids) > bench.model.context:
            raise MeasurementError(
                f"{where}: the prompt is {len(ids)} tokens, and the model's context is {bench.model.context}; shorten "
                f"or remove it"
            )
        answers = []
        for answer in (prompt.answer, prompt.distractor):
            tokens = token_ids(tokenizer, answer, where)
            if len(tokens) > 1:
                raise MeasurementError(f"{where}: {answer!r} is {len(tokens)} tokens; use answers of one token each")
            answers += tokens
        if answers[0] == answers[1]:
            raise MeasurementError(f"{where}: answer and distractor have the same token, {answers[0]}")
        token_table[prompt.line] = ids, answers
    return token_table


def patched_differences(
    bench: Bench, prompts: TokenisedPrompts, rows: Sequence[int], values: Sequence[Tensor]
) -> Floats:
    """Return (len(rows),) logit differences of the prompts ``rows`` with ``values`` (p, d) as activations."""
    rank = {row: at for at, row in enumerate(rows)}
    result = np.zeros(len(rows))
    for group in prompts.groups(rows):
        logits = bench.model.resume(
            torch.stack([prompts.prompts[row].tokens for row in group]),
            torch.stack([prompts.prompts[row].block_input for row in group]),
            bench.site,
            torch.stack([values[rank[row]] for row in group]),
            select=_last_positions(prompts, group),
        )
        group_values = _difference(logits, prompts.answers[group].to(logits.device)).double().cpu()
        if not bool(torch.isfinite(group_values).all()):
            failed = group[int((~torch.isfinite(group_values)).nonzero()[0])]
            raise MeasurementError(f"the model's output is NaN or infinite on {prompts.prompts[failed].name}")
        result[[rank[row] for row in group]] = group_values.numpy()
    return result


def _last_positions(prompts: TokenisedPrompts, group: Sequence[int]) -> Tensor:
    """Return bool (b, p), True at the last position."""
    select = torch.zeros(len(group), len(prompts.prompts[group[0]].tokens), dtype=torch.bool)
    select[:, -1] = True
    return select


def _difference(logits: Tensor, answers: Tensor) -> Tensor:
    """Return (b,) right minus wrong of logits (b, V)."""
    right, wrong = logits.gather(1, answers).unbind(1)
    return right - wrong


def clean_differences(bench: Bench, prompts: TokenisedPrompts) -> Floats:
    """Return (N,) logit differences with nothing changed; the same for all SAEs of a site."""
    return _shared_differences(bench, prompts, "clean", lambda prompt: prompt.x)


def mean_ablation_differences(bench: Bench, prompts: TokenisedPrompts) -> Floats:
    """Return (N,) logit differences with the corpus's mean activation at every position."""
    mean = bench.site_data.mean.float()

    def ablate(prompt: Prompt) -> Tensor:
        x = prompt.x.clone()
        x[prompts.first_position :] = mean.to(x)
        return x

    return _shared_differences(bench, prompts, "mean ablation", ablate)


def _shared_differences(
    bench: Bench, prompts: TokenisedPrompts, condition: str, value: Callable[[Prompt], Tensor]
) -> Floats:
    rows = range(len(prompts.prompts))
    return bench.site_data.shared(
        (prompts.key, condition),
        lambda: patched_differences(bench, prompts, rows, [value(prompt) for prompt in prompts.prompts]),
    )


@dataclass(frozen=True, eq=False)
class EncodedPrompts:
    """Codes and reconstructions of the prompts."""

    codes: list[Tensor]
    "(p - first_position, n) of every prompt, at the positions that are replaced."
    xhat: list[Tensor]
    "(p, d); x where nothing is replaced."


def encode_prompts(bench: Bench, prompts: TokenisedPrompts) -> EncodedPrompts:
    """Return codes and reconstructions, one prompt at a time, so that they depend on nothing else."""
    encoded = EncodedPrompts([], [])
    for prompt in prompts.prompts:
        x = prompt.x[prompts.first_position :]
        with torch.no_grad():
            codes = bench.sae.encode(x)
            xhat = prompt.x.clone()
            xhat[prompts.first_position :] = bench.sae.decode(codes, like=x).to(xhat)
        if not bool(torch.isfinite(xhat).all()):
            raise MeasurementError(f"the SAE's reconstruction is NaN or infinite on {prompt.name}")
        encoded.codes.append(codes)
        encoded.xhat.append(xhat)
    return encoded


def isotropic_noise(bench: Bench, prompts: TokenisedPrompts, encoded: EncodedPrompts) -> list[Tensor]:
    """Return (p, d) each: x plus isotropic noise of the error's own norm."""
    noise = []
    for item, prompt, xhat in zip(prompts.items, prompts.prompts, encoded.xhat, strict=True):
        draw = SeededDraws(bench.settings.seed, (item.line,), (len(prompt.tokens),), "circuit isotropic", 0)
        x = prompt.x[None]
        noise.append(noise_floors.isotropic(x, xhat[None] - x, bench.noise_pool(), draw)[0])
    return noise


def feature_contribution(
    bench: Bench, prompts: TokenisedPrompts, encoded: EncodedPrompts, row: int, feature: int
) -> Tensor | None:
    """Return (p, d) the contribution of one feature to a prompt; None where it does not fire."""
    codes = encoded.codes[row]
    fires = (codes[:, feature] != 0).nonzero().flatten()
    if not len(fires):
        return None
    x, codes = prompts.prompts[row].x, codes[fires]
    positions = prompts.first_position + fires
    without = codes.clone()
    without[:, feature] = 0
    contribution = torch.zeros_like(x)
    with torch.no_grad():
        decoded = bench.sae.decode(torch.cat([codes, without]), like=x[positions].repeat(2, 1)).to(x)
    contribution[positions] = decoded[: len(positions)] - decoded[len(positions) :]
    return contribution


def difference_gradients(bench: Bench, prompts: TokenisedPrompts) -> list[Tensor]:
    """Return (p, d) float32 derivative of each prompt's logit difference by its activations, for all SAEs."""

    def compute() -> list[Tensor]:
        gradients: dict[int, Tensor] = {}
        for group in prompts.groups(range(len(prompts.prompts))):
            answers = prompts.answers[group].to(bench.settings.device)
            slopes = bench.model.gradient(
                torch.stack([prompts.prompts[row].tokens for row in group]),
                torch.stack([prompts.prompts[row].block_input for row in group]),
                bench.site,
                torch.stack([prompts.prompts[row].x for row in group]),
                partial(_difference, answers=answers),
                select=_last_positions(prompts, group),
            )
            gradients |= dict(zip(group, slopes, strict=True))
        return [gradients[row] for row in range(len(prompts.prompts))]

    return bench.site_data.shared((prompts.key, "gradients"), compute)


def first_order_effects(bench: Bench, prompts: TokenisedPrompts, encoded: EncodedPrompts) -> Tensor:
    """Return float64 (N, n) the first-order cost of removing each feature: its codes times its slope, summed."""
    W_dec = bench.sae.W_dec.float()
    rows = [
        (codes.float() * (slope[prompts.first_position :] @ W_dec.T)).sum(0, dtype=torch.float64).cpu()
        for codes, slope in zip(encoded.codes, difference_gradients(bench, prompts), strict=True)
    ]
    return torch.stack(rows)
