"""The arms of contrast steering: directions chosen on one half of the questions, slopes on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.errors import MeasurementError
from sae_bench.measure.arrays import Floats
from sae_bench.measure.datasets.contrast_file import ContrastSet, Pair

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.bench import Bench
    from sae_bench.measure.properties.contrast.propensity import TokenisedPair
    from sae_bench.measure.shared.last_position import LastPositionRunner

CONDITIONS = ("feature", "mean_difference", "random_direction")
CANDIDATES = 8
"Features taken by what they tell and by what they do, to be steered with on the choosing half."
CHOOSING = 32
"About how many questions of the choosing half are steered, in every tier, so that every tier chooses the same feature."
RANDOM = 8
"Random directions; an arm's numbers are means over them."


@dataclass(frozen=True, eq=False)
class ContrastConditions:
    """All that contrast steering found on one SAE. N scored questions, D directions, K multipliers."""

    pairs: tuple[Pair, ...]
    "The scored questions."
    rows: Mapping[str, slice]
    "By arm, which of the directions are its own; no `feature` where no feature tells the answers apart."
    propensity: Floats
    "(D, N, K) of every direction tried."
    slopes: Floats
    "(D, N)"
    shifted: Floats | None
    "(D, shifted questions) slopes, half of those questions there are; None without a shifted variant."
    candidates: tuple[int, ...]
    signs: tuple[int, ...]
    "1 where a candidate is stronger at the positive answer; its opposite is steered with where it is -1."
    choosing: Floats
    "Mean slope of each candidate over its spread, on the choosing half."
    chosen: int | None

    def of_arm(self, condition: str) -> Floats | None:
        """(directions of the arm, N) slopes; None where the arm has no direction."""
        return self.slopes[self.rows[condition]] if condition in self.rows else None


def measure_conditions(bench: Bench, asked: ContrastSet, shifted: ContrastSet | None) -> ContrastConditions:
    """Choose the directions on one half and steer the other half and the shifted variant with them."""
    import torch

    from sae_bench.measure.datasets.balanced_sampling import sample_cells, split_cells
    from sae_bench.measure.properties.contrast import propensity as engine
    from sae_bench.measure.shared.last_position import LastPositionRunner

    choosing, scored = split_cells(asked.pairs)
    told = engine.tokenise_pairs(bench, asked, choosing)
    runner = LastPositionRunner(bench.model, bench.site, bench.settings.memory_bytes)
    own = _candidates(bench, runner, asked, told)
    floors = torch.stack([_mean_difference(bench, told, asked.path), *_random(bench)]).to(own.directions)

    def steered(dataset: ContrastSet, half: tuple[Pair, ...], label: str) -> tuple[tuple[Pair, ...], Floats]:
        pairs = sample_cells(half, bench.settings.tier.questions)
        questions = engine.tokenise_pairs(bench, dataset, pairs)
        # Neither floor depends on the SAE.
        key = ("contrast floors", asked.sha256, dataset.sha256, len(pairs), bench.settings.seed)
        floor = bench.site_data.shared(
            key, lambda: engine.measure_propensities(bench, runner, questions, floors, label)
        )
        return pairs, np.concatenate(
            [engine.measure_propensities(bench, runner, questions, own.directions, label), floor]
        )

    pairs, propensity = steered(asked, scored, "contrast: scoring")
    moved = None
    if shifted is not None:
        moved = engine.propensity_slopes(steered(shifted, split_cells(shifted.pairs)[1], "contrast: shifted")[1])
    count = len(own.features)
    rows = {"mean_difference": slice(count, count + 1), "random_direction": slice(count + 1, None)}
    best = int(np.argmax(own.reliability)) if count else None
    if best is not None:
        rows["feature"] = slice(best, best + 1)
    return ContrastConditions(
        pairs=pairs,
        rows=rows,
        propensity=propensity,
        slopes=engine.propensity_slopes(propensity),
        shifted=moved,
        candidates=own.features,
        signs=own.signs,
        choosing=own.reliability,
        chosen=own.features[best] if best is not None else None,
    )


@dataclass(frozen=True, eq=False)
class _Candidates:
    features: tuple[int, ...]
    signs: tuple[int, ...]
    directions: Tensor
    "(candidates, d) unit vectors, turned by their sign."
    reliability: Floats


def _candidates(
    bench: Bench, runner: LastPositionRunner, asked: ContrastSet, told: Sequence[TokenisedPair]
) -> _Candidates:
    """The features tried, and how reliably each steers some of the choosing half's questions."""
    from sae_bench.measure.datasets.balanced_sampling import sample_cells
    from sae_bench.measure.properties.contrast import candidates
    from sae_bench.measure.properties.contrast import propensity as engine
    from sae_bench.sae import unit_directions

    lines = {pair.line for pair in sample_cells([sample.pair for sample in told], CHOOSING)}
    some = [sample for sample in told if sample.pair.line in lines]
    gradient = candidates.propensity_gradient(bench, runner, some, asked.sha256)
    features, signs = candidates.choose_candidates(bench, told, gradient, CANDIDATES)
    directions = unit_directions(bench.sae)[features] * signs[:, None].to(bench.settings.device)
    slopes = engine.propensity_slopes(
        engine.measure_propensities(bench, runner, some, directions, "contrast: choosing")
    )
    return _Candidates(tuple(features), tuple(int(sign) for sign in signs.tolist()), directions, _reliability(slopes))


def _random(bench: Bench) -> Tensor:
    """(8, d) unit vectors."""
    from sae_bench.measure.shared.keyed_random import random_directions

    return random_directions(RANDOM, bench.site_data.x.shape[-1], bench.settings.seed)


def _mean_difference(bench: Bench, questions: Sequence[TokenisedPair], path: str) -> Tensor:
    """(d,) unit difference of the site's means at the positive and at the negative answers."""
    import torch

    difference = torch.stack([sample.difference.double() for sample in questions]).mean(0)
    size = float(difference.norm())
    if size == 0:
        raise MeasurementError(
            f"at {bench.site} the activations of the positive and the negative answers do not differ on average, so "
            f"{path} has no direction to steer along; choose a later site"
        )
    return (difference / size).float().cpu()


def _reliability(slopes: Floats) -> Floats:
    """(candidates,) mean slope over its standard deviation: what is wanted works in every question."""
    spread = slopes.std(1)
    return np.asarray(slopes.mean(1) / np.maximum(spread, 1e-9 + 1e-6 * np.abs(slopes).max(initial=0.0)))
