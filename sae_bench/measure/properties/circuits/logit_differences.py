"""A circuit's prompts at work: logit differences when something else stands at a site, at all of their positions.

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
    """Some prompts of a circuit as the model reads them."""

    asked: tuple[CircuitPrompt, ...]
    read: tuple[Prompt, ...]
    answers: Tensor
    "int64 (N, 2) tokens of the right and the wrong answer."
    first: int
    "Positions before this one are left as they are."
    key: Hashable
    "What these prompts are, for results that do not depend on the SAE."

    def groups(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """The prompts ``rows``, those of one length together."""
        for group in equal_length_groups([len(self.read[row].tokens) for row in rows]):
            yield [rows[index] for index in group]


def tokenise_prompts(bench: Bench, circuit: CircuitSet, asked: Sequence[CircuitPrompt]) -> TokenisedPrompts:
    """Some prompts of a dataset, tokenised and captured; the same ones for all SAEs of a site.

    A prompt of the dataset that the model cannot read is a `MeasurementError` with its line, wanted or not.
    """

    def compute() -> TokenisedPrompts:
        ids = bench.site_data.shared(("circuit tokens", circuit.sha256), lambda: _tokenised(bench, circuit))
        texts = [(f"{circuit.path}, line {prompt.line}", ids[prompt.line][0]) for prompt in asked]
        return TokenisedPrompts(
            tuple(asked),
            tuple(capture_prompts(bench, texts, "circuits: prompts")),
            torch.tensor([ids[prompt.line][1] for prompt in asked]),
            first=0 if bench.include_bos else 1,
            key=key,
        )

    key = ("circuit", circuit.sha256, tuple(prompt.line for prompt in asked))
    return bench.site_data.shared(key, compute)


def _tokenised(bench: Bench, circuit: CircuitSet) -> dict[int, tuple[list[int], list[int]]]:
    """By line, the token ids of the prompt, and those of the right and the wrong answer."""
    tokenizer = require_tokenizer(bench, "a circuit's dataset")
    start = document_prefix(bench)
    found = {}
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
        found[prompt.line] = ids, answers
    return found


def patched_differences(bench: Bench, given: TokenisedPrompts, rows: Sequence[int], values: Sequence[Tensor]) -> Floats:
    """(len(rows),) logit differences of the prompts ``rows`` with ``values`` (p, d) in place of their activations."""
    place = {row: at for at, row in enumerate(rows)}
    found = np.zeros(len(rows))
    for group in given.groups(rows):
        logits = bench.model.resume(
            torch.stack([given.read[row].tokens for row in group]),
            torch.stack([given.read[row].block_input for row in group]),
            bench.site,
            torch.stack([values[place[row]] for row in group]),
            select=_last(given, group),
        )
        each = _difference(logits, given.answers[group].to(logits.device)).double().cpu()
        if not bool(torch.isfinite(each).all()):
            bad = group[int((~torch.isfinite(each)).nonzero()[0])]
            raise MeasurementError(f"the model's output is NaN or infinite on {given.read[bad].name}")
        found[[place[row] for row in group]] = each.numpy()
    return found


def _last(given: TokenisedPrompts, group: Sequence[int]) -> Tensor:
    """bool (b, p), true at the last position."""
    select = torch.zeros(len(group), len(given.read[group[0]].tokens), dtype=torch.bool)
    select[:, -1] = True
    return select


def _difference(logits: Tensor, answers: Tensor) -> Tensor:
    """(b,) right minus wrong of logits (b, V)."""
    right, wrong = logits.gather(1, answers).unbind(1)
    return right - wrong


def clean_differences(bench: Bench, given: TokenisedPrompts) -> Floats:
    """(N,) with nothing changed; the same for all SAEs of a site."""
    return _shared(bench, given, "clean", lambda prompt: prompt.x)


def mean_ablation_differences(bench: Bench, given: TokenisedPrompts) -> Floats:
    """(N,) with the corpus' mean activation at every position; the same for all SAEs of a site."""
    mean = bench.site_data.mean.float()

    def ablated(prompt: Prompt) -> Tensor:
        x = prompt.x.clone()
        x[given.first :] = mean.to(x)
        return x

    return _shared(bench, given, "mean ablation", ablated)


def _shared(bench: Bench, given: TokenisedPrompts, condition: str, value: Callable[[Prompt], Tensor]) -> Floats:
    rows = range(len(given.read))
    return bench.site_data.shared(
        (given.key, condition),
        lambda: patched_differences(bench, given, rows, [value(prompt) for prompt in given.read]),
    )


@dataclass(frozen=True, eq=False)
class EncodedPrompts:
    """What an SAE makes of the prompts."""

    codes: list[Tensor]
    "(p - first, n) of every prompt, at the positions that are intervened on."
    xhat: list[Tensor]
    "(p, d); x where nothing is intervened on."


def encode_prompts(bench: Bench, given: TokenisedPrompts) -> EncodedPrompts:
    """Codes and reconstructions, one prompt at a time, so that they depend on nothing else."""
    found = EncodedPrompts([], [])
    for prompt in given.read:
        x = prompt.x[given.first :]
        with torch.no_grad():
            codes = bench.sae.encode(x)
            xhat = prompt.x.clone()
            xhat[given.first :] = bench.sae.decode(codes, like=x).to(xhat)
        if not bool(torch.isfinite(xhat).all()):
            raise MeasurementError(f"the SAE's reconstruction is NaN or infinite on {prompt.name}")
        found.codes.append(codes)
        found.xhat.append(xhat)
    return found


def isotropic_noise(bench: Bench, given: TokenisedPrompts, seen: EncodedPrompts) -> list[Tensor]:
    """(p, d) each: isotropic noise of the error's own norm in place of the error."""
    found = []
    for asked, prompt, xhat in zip(given.asked, given.read, seen.xhat, strict=True):
        draw = SeededDraws(bench.settings.seed, (asked.line,), (len(prompt.tokens),), "circuit isotropic", 0)
        x = prompt.x[None]
        found.append(noise_floors.isotropic(x, xhat[None] - x, bench.noise_pool(), draw)[0])
    return found


def feature_contribution(
    bench: Bench, given: TokenisedPrompts, seen: EncodedPrompts, row: int, feature: int
) -> Tensor | None:
    """(p, d) what one feature writes into a prompt; None where it does not fire."""
    codes = seen.codes[row]
    fires = (codes[:, feature] != 0).nonzero().flatten()
    if not len(fires):
        return None
    x, codes = given.read[row].x, codes[fires]
    at = given.first + fires
    lacking = codes.clone()
    lacking[:, feature] = 0
    found = torch.zeros_like(x)
    with torch.no_grad():
        both = bench.sae.decode(torch.cat([codes, lacking]), like=x[at].repeat(2, 1)).to(x)
    found[at] = both[: len(at)] - both[len(at) :]
    return found


def difference_gradients(bench: Bench, given: TokenisedPrompts) -> list[Tensor]:
    """(p, d) float32 derivative of each prompt's logit difference by its activations; the same for all SAEs."""

    def compute() -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for group in given.groups(range(len(given.read))):
            answers = given.answers[group].to(bench.settings.device)
            slopes = bench.model.gradient(
                torch.stack([given.read[row].tokens for row in group]),
                torch.stack([given.read[row].block_input for row in group]),
                bench.site,
                torch.stack([given.read[row].x for row in group]),
                partial(_difference, answers=answers),
                select=_last(given, group),
            )
            found |= dict(zip(group, slopes, strict=True))
        return [found[row] for row in range(len(given.read))]

    return bench.site_data.shared((given.key, "gradients"), compute)


def first_order_effects(bench: Bench, given: TokenisedPrompts, seen: EncodedPrompts) -> Tensor:
    """float64 (N, n) what removing each feature costs each prompt to first order: its codes times its slope, summed."""
    W_dec = bench.sae.W_dec.float()
    rows = [
        (codes.float() * (slope[given.first :] @ W_dec.T)).sum(0, dtype=torch.float64).cpu()
        for codes, slope in zip(seen.codes, difference_gradients(bench, given), strict=True)
    ]
    return torch.stack(rows)
