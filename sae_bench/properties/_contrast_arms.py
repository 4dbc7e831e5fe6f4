"""The arms of contrast steering: directions chosen on one half of the questions, slopes on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.contrast import ContrastSet, Pair
from sae_bench.errors import MeasurementError
from sae_bench.measurement import Floats

if TYPE_CHECKING:
    from sae_bench.bench import Bench

ARMS = ("feature", "mean_difference", "random_direction")
CANDIDATES = 8
"Features taken by what they tell and by what they do, to be steered with on the choosing half."
QUESTIONS_A_PROMPT = 4
"Questions that the smoke tier asks, for every prompt of its feature steering; the other tiers ask all."
RANDOM = 8
"Random directions; an arm's numbers are means over them."


@dataclass(frozen=True, eq=False)
class Contrasted:
    """All that contrast steering found on one SAE. N scored questions, D directions."""

    pairs: tuple[Pair, ...]
    "The scored questions."
    slopes: Mapping[str, Floats]
    "By arm, (directions of the arm, N); no `feature` where no feature tells the answers apart."
    shifted: Mapping[str, Floats]
    "By arm, (directions of the arm, shifted questions, half of those there are); empty without a shifted variant."
    all_slopes: Floats
    "(D, N) of every direction tried."
    all_shifted: Floats | None
    "(D, shifted questions)"
    candidates: tuple[int, ...]
    signs: tuple[int, ...]
    "1 where a candidate is stronger at the positive answer; its opposite is steered with where it is -1."
    choosing: Floats
    "Mean slope of each candidate over its spread, on the choosing half."
    chosen: int | None


def contrast_arms(bench: Bench, asked: ContrastSet, shifted: ContrastSet | None) -> Contrasted:
    """Choose the directions on one half and steer the other half and the shifted variant with them."""
    import torch

    from sae_bench.sae import unit_directions
    from sae_bench.steering import LastPosition, random_directions
    from sae_bench.steering import propensity as engine

    if bench.settings.tier.name == "smoke":
        most = QUESTIONS_A_PROMPT * (bench.settings.tier.prompts or 0)
        asked = replace(asked, pairs=engine.first_of_cells(asked.pairs, most))
        shifted = shifted and replace(shifted, pairs=engine.first_of_cells(shifted.pairs, most))
    questions = engine.samples(bench, asked)
    choosing, scored = engine.halves_by_cell(asked.pairs)
    chosen_half, scored_half = ([questions[index] for index in half] for half in (choosing, scored))
    difference = torch.stack([sample.difference.double() for sample in chosen_half]).mean(0)
    size = float(difference.norm())
    if size == 0:
        raise MeasurementError(
            f"at {bench.site} the activations of the positive and the negative answers do not differ on average, so "
            f"{asked.path} has no direction to steer along; choose a later site"
        )
    runner = LastPosition(bench.model, bench.site, bench.settings.memory_bytes)
    slopes = engine.gradient(bench, runner, chosen_half, asked.sha256)
    features, signs = engine.candidate_features(bench, chosen_half, slopes, CANDIDATES)
    own = unit_directions(bench.sae)[features] * signs[:, None].to(bench.settings.device)
    tried = _reliability(engine.propensity_slopes(bench, runner, chosen_half, own, "contrast: choosing"))
    random = random_directions(RANDOM, len(difference), bench.settings.seed)
    directions = torch.cat([own, (difference / size).float()[None].to(own), random.to(own)])
    found = engine.propensity_slopes(bench, runner, scored_half, directions, "contrast: scoring")
    moved = None
    if shifted is not None:
        half = engine.halves_by_cell(shifted.pairs)[1]
        others = engine.samples(bench, replace(shifted, pairs=tuple(shifted.pairs[index] for index in half)))
        moved = engine.propensity_slopes(bench, runner, others, directions, "contrast: shifted")
    best = int(np.argmax(tried)) if len(features) else None
    rows = {"mean_difference": slice(len(features), len(features) + 1), "random_direction": slice(-RANDOM, None)}
    if best is not None:
        rows["feature"] = slice(best, best + 1)
    return Contrasted(
        pairs=tuple(sample.pair for sample in scored_half),
        slopes={arm: found[where] for arm, where in rows.items()},
        shifted={arm: moved[where] for arm, where in rows.items()} if moved is not None else {},
        all_slopes=found,
        all_shifted=moved,
        candidates=tuple(features),
        signs=tuple(int(sign) for sign in signs.tolist()),
        choosing=tried,
        chosen=features[best] if best is not None else None,
    )


def _reliability(slopes: Floats) -> Floats:
    """(candidates,) mean slope over its standard deviation: what is wanted works in every question."""
    spread = slopes.std(1)
    return np.asarray(slopes.mean(1) / np.maximum(spread, 1e-9 + 1e-6 * np.abs(slopes).max(initial=0.0)))
