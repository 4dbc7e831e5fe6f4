"""Propensity: how much more likely a question's positive answer is than its negative one, under steering.

Steering is added from the prompt's last token on, so also at an answer's tokens but its last, whose prediction is all
that is left (Tan et al. 2024, arXiv 2407.12404). Answers of one token need one run for both and for all directions.

Shapes: m shifts, d site width, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sae_bench.bench import Bench
from sae_bench.contrast import ContrastSet, Pair
from sae_bench.errors import MeasurementError
from sae_bench.sae import unit_directions
from sae_bench.steering.choice import seeded
from sae_bench.steering.last_position import LastPosition, Prompt
from sae_bench.steering.responses import unit_strength

Floats = NDArray[np.float64]

MULTIPLIERS = (-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)
"Of the unit strength; 0 adds nothing to a slope, because these are symmetric."
SCREENED = 32
"Questions that rank features by their first-order effect."
ACTIVE = 0.1
"Share of the questions on which a feature must be active to be told by its activation."
_ROWS = 64


@dataclass(frozen=True, eq=False)
class Sample:
    """A pair as the model reads it."""

    pair: Pair
    prompt: Prompt
    answers: tuple[Tensor, Tensor]
    "int64 token ids of the positive and the negative answer."
    answered: tuple[Prompt, Prompt]
    "The prompt with either answer behind it, to the answer's last token."

    @property
    def difference(self) -> Tensor:
        """(d,) site's activation at the positive answer's last token minus that at the negative's."""
        return self.answered[0].last - self.answered[1].last


def samples(bench: Bench, contrast: ContrastSet) -> list[Sample]:
    """The pairs of a dataset, tokenised and captured; the same ones for all SAEs of a site."""
    return bench.site_data.shared(("contrast", contrast.sha256, len(contrast.pairs)), lambda: _samples(bench, contrast))


def _samples(bench: Bench, contrast: ContrastSet) -> list[Sample]:
    tokenizer = bench.model.tokenizer
    if tokenizer is None:
        raise MeasurementError(
            f"contrast steering reads text, and model {bench.model.name!r} came without a tokenizer; load it from a "
            f"Hugging Face folder"
        )
    start = bench.corpus.tokens[0, :1].tolist() if bench.corpus.has_bos else []
    found = []
    for done, pair in enumerate(contrast.pairs, 1):
        where = f"{contrast.path}, line {pair.line}"
        prompt = start + _ids(tokenizer, pair.prompt, where)
        answers = [_ids(tokenizer, text, where) for text in (pair.positive, pair.negative)]
        longest = len(prompt) + max(map(len, answers))
        if longest > bench.model.context:
            raise MeasurementError(
                f"{where}: prompt and answer are {longest} tokens, and the model's context is {bench.model.context}; "
                f"shorten or remove the pair"
            )
        if answers[0] == answers[1]:
            raise MeasurementError(f"{where}: both answers have the same tokens, {answers[0]}")
        answered = [_captured(bench, where, torch.tensor(prompt + answer)) for answer in answers]
        whole, last = answered[0], len(prompt)
        found.append(
            Sample(
                pair,
                Prompt(where, whole.tokens[:last], whole.block_input[:last], whole.x[:last]),
                (torch.tensor(answers[0]), torch.tensor(answers[1])),
                (answered[0], answered[1]),
            )
        )
        bench.advance("contrast: questions", done, len(contrast.pairs))
    return found


def _ids(tokenizer: Any, text: str, where: str) -> list[int]:
    ids = [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]
    if not ids:
        raise MeasurementError(f"{where}: the tokenizer makes no token of {text!r}")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise MeasurementError(f"{where}: the tokenizer does not know a word of {text!r}; use words of the model's own")
    return ids


def _captured(bench: Bench, where: str, tokens: Tensor) -> Prompt:
    seen = bench.model.capture(tokens[None], bench.site)
    device = bench.settings.device
    return Prompt(where, tokens.to(device), seen.block_input[0].to(device), seen.value[0].to(device))


def first_of_cells(pairs: Sequence[Pair], most: int) -> tuple[Pair, ...]:
    """About ``most`` questions, the first of every combination of factors, as many of each."""
    cells: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        cells.setdefault(tuple(sorted((name, str(level)) for name, level in pair.factors.items())), []).append(index)
    each = max(2, -(-most // len(cells)))
    return tuple(pairs[index] for index in sorted(index for cell in cells.values() for index in cell[:each]))


def halves_by_cell(pairs: Sequence[Pair]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices of the choosing and of the scored half: within every combination of factor levels, by turns.

    Taking every second line instead would hand all "yes" questions to one half of a file that alternates.
    """
    halves: tuple[list[int], list[int]] = ([], [])
    seen: dict[tuple[str, ...], int] = {}
    starts: dict[tuple[str, ...], int] = {}
    for index, pair in enumerate(pairs):
        cell = tuple(pair.factors.values())
        # A cell of odd size gives its extra pair to one half or the other by turns.
        start = starts.setdefault(cell, len(starts))
        turn = seen.setdefault(cell, 0)
        halves[(start + turn) % 2].append(index)
        seen[cell] += 1
    return tuple(halves[0]), tuple(halves[1])


def propensity_slopes(
    bench: Bench,
    runner: LastPosition,
    questions: Sequence[Sample],
    directions: Tensor,
    label: str,
    multipliers: Sequence[float] = MULTIPLIERS,
) -> Floats:
    """(directions, N) least-squares slope of propensity on the multiplier, for unit directions (directions, d).

    In nats per unit strength, which is feature steering's.
    """
    if not len(directions):
        return np.zeros((0, len(questions)))
    strength = unit_strength(bench)
    steps = torch.tensor(multipliers, device=directions.device)
    shifts = (strength * steps[None, :, None] * directions[:, None, :]).flatten(0, 1)
    weights = np.array(multipliers) / np.square(multipliers).sum()
    found = np.zeros((len(directions), len(questions)))
    for at, sample in enumerate(questions):
        values = _propensities(runner, sample, shifts).reshape(len(directions), len(multipliers))
        found[:, at] = values @ weights
        bench.advance(label, at + 1, len(questions))
    return found


def _propensities(runner: LastPosition, sample: Sample, shifts: Tensor) -> Floats:
    """(m,) log-probability of the positive answer minus that of the negative one."""
    positive, negative = sample.answers
    if len(positive) == len(negative) == 1:
        parts = [
            found[:, int(positive)] - found[:, int(negative)]
            for found, _ in runner.log_probs(sample.prompt, sample.prompt.last + shifts)
        ]
        return torch.cat(parts).double().cpu().numpy()
    start = len(sample.prompt.tokens) - 1
    first, second = (_answer_log_prob(runner, answered, start, shifts) for answered in sample.answered)
    return first - second


def _answer_log_prob(runner: LastPosition, answered: Prompt, start: int, shifts: Tensor) -> Floats:
    """(m,) log-probability of the tokens behind ``start``, steered at every position that predicts one of them."""
    tokens, answer = answered.tokens[:-1], answered.tokens[start + 1 :]
    select = (torch.arange(len(tokens)) >= start)[None]
    parts = []
    for part in torch.split(shifts, _ROWS):
        rows = len(part)
        x = answered.x[:-1].expand(rows, -1, -1).clone()
        x[:, start:] += part[:, None]
        logits = runner.model.resume(
            tokens.expand(rows, -1),
            answered.block_input[:-1].expand(rows, -1, -1),
            runner.site,
            x,
            select=select.expand(rows, -1),
        )
        log_probs = functional.log_softmax(logits, dim=-1).view(rows, len(answer), -1)
        each = log_probs.gather(-1, answer.expand(rows, -1)[..., None])
        if not bool(torch.isfinite(each).all()):
            raise MeasurementError(f"the model's output is NaN or infinite when it is steered on {answered.name}")
        parts.append(each.sum((1, 2)))
    return torch.cat(parts).double().cpu().numpy()


def gradient(bench: Bench, runner: LastPosition, questions: Sequence[Sample], dataset: str) -> Tensor:
    """float64 (d,) mean slope of propensity along each coordinate of the site, by central differences.

    To first order the mean slope of any direction is its inner product with this, so one pass ranks every feature of
    every SAE; `SCREENED` questions are looked at. The same for all SAEs of a site.
    """

    def slopes() -> Tensor:
        axes = torch.eye(bench.site_data.x.shape[-1], device=bench.settings.device)
        # Drawn, because a file may be sorted by a factor or walk through its levels in a fixed step.
        drawn = torch.randperm(len(questions), generator=seeded(bench.settings.seed, "screening"))[:SCREENED]
        some = [questions[index] for index in sorted(drawn.tolist())]
        found = propensity_slopes(bench, runner, some, axes, "contrast: screening", multipliers=(-0.5, 0.5))
        return torch.from_numpy(found.mean(1))

    return bench.site_data.shared(("contrast gradient", dataset, bench.settings.seed), slopes)


def candidate_features(
    bench: Bench, questions: Sequence[Sample], slopes: Tensor, count: int
) -> tuple[list[int], Tensor]:
    """Features worth steering with, and the sign with which: (at most 2 * count,) indices and signs.

    Half by what they mean: their activation differs most steadily between the answers (mean over its own spread, so
    that rescaling a feature changes nothing; active on a tenth of the questions). Half by what they do: largest
    first-order ``slopes`` (d,) of those that fire on the corpus.
    """
    stacked = torch.stack([torch.stack([each.last for each in sample.answered]) for sample in questions])
    with torch.no_grad():
        codes = bench.sae.encode(stacked.flatten(0, 1)).double().cpu().view(len(questions), 2, -1)
    difference = codes[:, 0] - codes[:, 1]  # (N, n)
    mean, spread = difference.mean(0), difference.std(0)
    written = bench.decoder_norms.cpu() > 0
    telling = ((codes != 0).any(1).double().mean(0) >= ACTIVE) & (mean != 0) & written
    steadiness = torch.where(telling, mean.abs() / (spread + 1e-6 * codes.abs().amax((0, 1))), 0.0)
    doing = unit_directions(bench.sae).double().cpu() @ slopes * (bench.firing.alive & written)
    signs: dict[int, float] = {}
    for score, sign in ((steadiness, mean.sign()), (doing.abs(), doing.sign())):
        for index in score.topk(min(count, len(score))).indices.tolist():
            if score[index] > 0:
                signs.setdefault(index, float(sign[index]))
    return list(signs), torch.tensor(list(signs.values()))
