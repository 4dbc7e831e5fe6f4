"""Propensity under steering: log-probability of a question's positive answer minus that of its negative one.

Steering is added from the prompt's last token on, so also at an answer's tokens but its last, whose prediction is all
that is left (Tan et al. 2024, arXiv 2407.12404). Answers of one token need one run for both and for all directions.

Shapes: m shifts, D directions, K multipliers, d site width, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sae_bench.engine.bench import Bench
from sae_bench.errors import MeasurementError
from sae_bench.measure.arrays import Floats, slope_weights
from sae_bench.measure.datasets.contrast_file import ContrastSet, Pair
from sae_bench.measure.shared.last_position import LastPositionRunner
from sae_bench.measure.shared.prompts import (
    ROWS,
    Prompt,
    capture_prompts,
    document_prefix,
    require_tokenizer,
    token_ids,
)
from sae_bench.measure.shared.unit_strength import unit_strength

_Ids: TypeAlias = tuple[list[int], list[int], list[int]]
"Token ids of a prompt, its positive and its negative answer."

MULTIPLIERS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
"Of the unit strength; 0 adds nothing to a slope, because these are symmetric, but it is the unsteered propensity."


@dataclass(frozen=True, eq=False)
class TokenisedPair:
    """Pair, tokenised and captured."""

    pair: Pair
    prompt: Prompt
    answers: tuple[Tensor, Tensor]
    "int64 token ids of the positive and the negative answer."
    prompts_with_answers: tuple[Prompt, Prompt]
    "The prompt followed by either answer, up to the answer's last token."

    @property
    def difference(self) -> Tensor:
        """Return (d,) the site's activation at the positive answer's last token minus the negative's."""
        return self.prompts_with_answers[0].last - self.prompts_with_answers[1].last


def tokenise_pairs(bench: Bench, contrast: ContrastSet, pairs: Sequence[Pair]) -> list[TokenisedPair]:
    """Return some pairs of a dataset, tokenised and captured; the same for all SAEs of a site.

    A pair of the dataset that the model cannot read is a `MeasurementError` with its line, measured or not.
    """

    def compute() -> list[TokenisedPair]:
        ids = bench.site_data.shared(("contrast tokens", contrast.sha256), lambda: _token_table(bench, contrast))
        texts = [
            (f"{contrast.path}, line {pair.line}", ids[pair.line][0] + answer)
            for pair in pairs
            for answer in ids[pair.line][1:]
        ]
        prompts = capture_prompts(bench, texts, "contrast: questions")
        return [
            _tokenise_pair(pair, ids[pair.line], *prompts[2 * rank : 2 * rank + 2]) for rank, pair in enumerate(pairs)
        ]

    key = ("contrast", contrast.sha256, tuple(pair.line for pair in pairs))
    return bench.site_data.shared(key, compute)


def _tokenise_pair(pair: Pair, ids: _Ids, positive: Prompt, negative: Prompt) -> TokenisedPair:
    last = len(ids[0])
    prompt = Prompt(positive.name, positive.tokens[:last], positive.block_input[:last], positive.x[:last])
    return TokenisedPair(pair, prompt, (torch.tensor(ids[1]), torch.tensor(ids[2])), (positive, negative))


def _token_table(bench: Bench, contrast: ContrastSet) -> dict[int, _Ids]:
    """Return by line the token ids of the prompt and of both answers."""
    tokenizer = require_tokenizer(bench, "contrast steering")
    start = document_prefix(bench)
    token_table = {}
    for pair in contrast.pairs:
        where = f"{contrast.path}, line {pair.line}"
        prompt = start + token_ids(tokenizer, pair.prompt, where)
        positive, negative = (token_ids(tokenizer, text, where) for text in (pair.positive, pair.negative))
        longest = len(prompt) + max(len(positive), len(negative))
        if longest > bench.model.context:
            raise MeasurementError(
                f"{where}: prompt and answer are {longest} tokens, and the model's context is {bench.model.context}; "
                f"shorten or remove the pair"
            )
        if positive == negative:
            raise MeasurementError(f"{where}: both answers have the same tokens, {positive}")
        token_table[pair.line] = prompt, positive, negative
    return token_table


def measure_propensities(
    bench: Bench,
    runner: LastPositionRunner,
    questions: Sequence[TokenisedPair],
    directions: Tensor,
    label: str,
    multipliers: Sequence[float] = MULTIPLIERS,
) -> Floats:
    """Return (D, N, K) propensity under every multiplier of the unit strength of unit directions (D, d).

    A multiplier of 0 is run once for all directions.
    """
    moving = [multiplier for multiplier in multipliers if multiplier != 0]
    steps = torch.tensor(moving, device=directions.device)
    shifts = (unit_strength(bench) * steps[None, :, None] * directions[:, None, :]).flatten(0, 1)
    still = torch.zeros_like(shifts[:1] if len(moving) < len(multipliers) else shifts[:0])
    propensity = np.zeros((len(directions), len(questions), len(multipliers)))
    steered = np.array([multiplier != 0 for multiplier in multipliers])
    if not len(directions):
        return propensity
    for done, (index, values) in enumerate(_propensities(runner, questions, torch.cat([still, shifts])), 1):
        propensity[:, index, ~steered] = values[: len(still)]
        propensity[:, index, steered] = values[len(still) :].reshape(len(directions), len(moving))
        bench.show_progress(label, done, len(questions))
    return propensity


def propensity_slopes(propensity: Floats, multipliers: Sequence[float] = MULTIPLIERS) -> Floats:
    """Return (...) least-squares slope of propensities (..., K) on multipliers that sum to 0.

    In nats per unit strength, the unit of feature steering.
    """
    return np.asarray(propensity @ slope_weights(np.array(multipliers)))


def _propensities(
    runner: LastPositionRunner, questions: Sequence[TokenisedPair], shifts: Tensor
) -> Iterator[tuple[int, Floats]]:
    """Yield every question's index and (m,) log-probabilities of its positive answer minus the negative one."""
    single_token = [
        index for index, sample in enumerate(questions) if all(len(answer) == 1 for answer in sample.answers)
    ]
    for rank, log_probs in runner.shifted([questions[index].prompt for index in single_token], shifts):
        positive, negative = (int(answer) for answer in questions[single_token[rank]].answers)
        yield single_token[rank], (log_probs[:, positive] - log_probs[:, negative]).double().cpu().numpy()
    for index in sorted(set(range(len(questions))) - set(single_token)):
        start = len(questions[index].prompt.tokens) - 1
        first, second = (
            _answer_log_prob(runner, answered, start, shifts) for answered in questions[index].prompts_with_answers
        )
        yield index, first - second


def _answer_log_prob(runner: LastPositionRunner, prompt: Prompt, start: int, shifts: Tensor) -> Floats:
    """Return (m,) log-probability of the tokens after ``start``, steered at every position that predicts one."""
    tokens, answer = prompt.tokens[:-1], prompt.tokens[start + 1 :]
    select = (torch.arange(len(tokens)) >= start)[None]
    parts = []
    for part in torch.split(shifts, ROWS):
        rows = len(part)
        x = prompt.x[:-1].expand(rows, -1, -1).clone()
        x[:, start:] += part[:, None]
        logits = runner.model.resume(
            tokens.expand(rows, -1),
            prompt.block_input[:-1].expand(rows, -1, -1),
            runner.site,
            x,
            select=select.expand(rows, -1),
        )
        log_probs = functional.log_softmax(logits, dim=-1).view(rows, len(answer), -1)
        each = log_probs.gather(-1, answer.expand(rows, -1)[..., None])
        if not bool(torch.isfinite(each).all()):
            raise MeasurementError(f"the model's output is NaN or infinite when it is steered on {prompt.name}")
        parts.append(each.sum((1, 2)))
    return torch.cat(parts).double().cpu().numpy()
