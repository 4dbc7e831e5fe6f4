"""Conditions of `contrast`: directions chosen on one half of the questions, slopes on the other."""

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
"Features chosen by activation, and as many by effect, to be steered with on the choosing half."
CHOOSING = 32
"About how many questions of the choosing half are steered, in every tier, so that all choose the same feature."
RANDOM = 8
"Random directions; the condition's numbers are means over them."


@dataclass(frozen=True, eq=False)
class ContrastConditions:
    """Slopes of one SAE under every direction. N scored questions, D directions, K multipliers."""

    pairs: tuple[Pair, ...]
    "The scored questions."
    rows: Mapping[str, slice]
    "Rows of the directions by condition; no `feature` where no feature differs between the answers."
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

    def slopes_of(self, condition: str) -> Floats | None:
        """Return (directions of the condition, N) slopes; None where the condition has no direction."""
        return self.slopes[self.rows[condition]] if condition in self.rows else None


def measure_conditions(bench: Bench, contrast: ContrastSet, shifted: ContrastSet | None) -> ContrastConditions:
    """Choose the directions on one half, and steer the other half and the shifted variant with them."""
    import torch

    from sae_bench.measure.datasets.balanced_sampling import sample_cells, split_cells
    from sae_bench.measure.properties.contrast.propensity import (
        measure_propensities,
        propensity_slopes,
        tokenise_pairs,
    )
    from sae_bench.measure.shared.last_position import LastPositionRunner

    choosing, scored = split_cells(contrast.pairs)
    choosing_pairs = tokenise_pairs(bench, contrast, choosing)
    runner = LastPositionRunner(bench.model, bench.site, bench.settings.memory_bytes)
    tried = _try_candidates(bench, runner, contrast, choosing_pairs)
    controls = torch.stack([_mean_difference(bench, choosing_pairs, contrast.path), *_random_directions(bench)])
    controls = controls.to(tried.directions)

    def steer(dataset: ContrastSet, half: tuple[Pair, ...], label: str) -> tuple[tuple[Pair, ...], Floats]:
        pairs = sample_cells(half, bench.settings.tier.questions)
        questions = tokenise_pairs(bench, dataset, pairs)
        # No control depends on the SAE.
        key = ("contrast floors", contrast.sha256, dataset.sha256, len(pairs), bench.settings.seed)
        of_controls = bench.site_data.shared(
            key, lambda: measure_propensities(bench, runner, questions, controls, label)
        )
        of_features = measure_propensities(bench, runner, questions, tried.directions, label)
        return pairs, np.concatenate([of_features, of_controls])

    pairs, propensity = steer(contrast, scored, "contrast: scoring")
    shifted_slopes = None
    if shifted is not None:
        _, shifted_propensity = steer(shifted, split_cells(shifted.pairs)[1], "contrast: shifted")
        shifted_slopes = propensity_slopes(shifted_propensity)
    count = len(tried.features)
    rows = {"mean_difference": slice(count, count + 1), "random_direction": slice(count + 1, None)}
    chosen = int(np.argmax(tried.reliability)) if count else None
    if chosen is not None:
        rows["feature"] = slice(chosen, chosen + 1)
    return ContrastConditions(
        pairs=pairs,
        rows=rows,
        propensity=propensity,
        slopes=propensity_slopes(propensity),
        shifted=shifted_slopes,
        candidates=tried.features,
        signs=tried.signs,
        choosing=tried.reliability,
        chosen=tried.features[chosen] if chosen is not None else None,
    )


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Features tried on the choosing half, with their directions."""

    features: tuple[int, ...]
    signs: tuple[int, ...]
    directions: Tensor
    "(candidates, d) unit vectors, turned by their sign."
    reliability: Floats


def _try_candidates(
    bench: Bench, runner: LastPositionRunner, contrast: ContrastSet, choosing_pairs: Sequence[TokenisedPair]
) -> _Candidates:
    """Return the features tried, and how reliably each steers some of the choosing half's questions."""
    from sae_bench.measure.datasets.balanced_sampling import sample_cells
    from sae_bench.measure.properties.contrast.candidates import choose_candidates, propensity_gradient
    from sae_bench.measure.properties.contrast.propensity import measure_propensities, propensity_slopes
    from sae_bench.sae import unit_directions

    lines = {pair.line for pair in sample_cells([sample.pair for sample in choosing_pairs], CHOOSING)}
    questions = [sample for sample in choosing_pairs if sample.pair.line in lines]
    gradient = propensity_gradient(bench, runner, questions, contrast.sha256)
    features, signs = choose_candidates(bench, choosing_pairs, gradient, CANDIDATES)
    directions = unit_directions(bench.sae)[features] * signs[:, None].to(bench.settings.device)
    slopes = propensity_slopes(measure_propensities(bench, runner, questions, directions, "contrast: choosing"))
    return _Candidates(tuple(features), tuple(int(sign) for sign in signs.tolist()), directions, _reliability(slopes))


def _random_directions(bench: Bench) -> Tensor:
    """Return (8, d) unit vectors."""
    from sae_bench.measure.shared.keyed_random import random_directions

    return random_directions(RANDOM, bench.site_data.x.shape[-1], bench.settings.seed)


def _mean_difference(bench: Bench, questions: Sequence[TokenisedPair], path: str) -> Tensor:
    """Return (d,) unit difference of the site's means at the positive and at the negative answers."""
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
    """Return (candidates,) mean slope over its standard deviation, which is large when every question agrees."""
    spread = slopes.std(1)
    return np.asarray(slopes.mean(1) / np.maximum(spread, 1e-9 + 1e-6 * np.abs(slopes).max(initial=0.0)))
