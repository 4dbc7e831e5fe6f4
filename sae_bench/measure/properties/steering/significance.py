"""Significance of steering: features whose effect exceeds that of random directions and of other features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.arrays import Bools, Floats, divide_or
from sae_bench.measure.measurement import Estimate, Influence, Undefined
from sae_bench.measure.shared.multiple_testing import benjamini_hochberg

if TYPE_CHECKING:
    from sae_bench.measure.properties.steering.conditions import SteeringConditions

FALSE_DISCOVERIES = 0.1
"Expected share of false ones among the features that count as steering (Benjamini-Hochberg)."

FEWEST_DRAWS = 400
DRAWS_PER_CLUSTER = 10


@dataclass(frozen=True, eq=False)
class SteeringTests:
    """Tests of the features, (F,) each."""

    statistic: Floats
    "Mean slope over the root mean square of other features' mean slopes on the same target set."
    p: Floats
    "One-sided, the larger of those against either control, before the correction for several features."
    significant: Bools


def exceedance(slopes: Floats, null: Floats, counted: Bools | None = None) -> tuple[Floats, Floats]:
    """Return statistics and one-sided p of mean slopes (F,) among other directions' (R, F) on the same targets.

    Both are in units of the others' root mean square on that target set, and p is the share of all others, on all
    target sets, that are at least as large. The others' own distribution and not a normal one: decoder rows move logits
    more than directions drawn on a sphere, seldom but far (kurtosis up to 4 on the demo), and may share a component.

    Args:
        slopes: of the directions that are tested.
        null: of the directions with which they are compared.
        counted: (R, F), False where the two are the same direction; None counts everything.
    """
    counted = np.ones(null.shape, dtype=bool) if counted is None else counted
    size = np.sqrt(np.square(null).sum(0, where=counted) / np.maximum(counted.sum(0), 1))  # (F,)
    statistic = divide_or(slopes, size, np.sign(slopes) * 1e9)
    others = np.sort(divide_or(null, size, 0.0)[counted])
    reaching = len(others) - np.searchsorted(others, statistic, side="left")
    return statistic, np.asarray((1.0 + reaching) / (1.0 + len(others)), dtype=np.float64)


def compare_with_controls(slopes: Floats, random: Floats, others: Floats, counted: Bools) -> SteeringTests:
    """Test mean slopes (F,) against those of random directions and of other features, each (R, F).

    A feature steers when it raises its targets more than both do. Random directions are counted with their opposites,
    which are as likely.
    """
    _, p_random = exceedance(slopes, np.concatenate([random, -random]))
    statistic, p_others = exceedance(slopes, others, counted)
    p = np.maximum(p_random, p_others)
    significant = benjamini_hochberg(p) <= FALSE_DISCOVERIES
    return SteeringTests(statistic, p, significant & (slopes > 0))


def significance_tests(result: SteeringConditions) -> SteeringTests:
    """Test every feature over all prompts."""
    return compare_with_controls(
        result.conditions["feature"].slopes.mean(1), result.random.mean(1), result.others.mean(1), result.counted
    )


def steer_share(result: SteeringConditions, seed: int) -> Estimate:
    """Return the share of features that steer; its errors are by prompts and by features."""
    fewest = math.ceil(1 / FALSE_DISCOVERIES)
    if result.counted.sum() < fewest:
        return Undefined("the SAE has too few other alive features to compare a feature with")
    significant = significance_tests(result).significant.astype(np.float64)
    value = float(significant.mean())
    return Influence(value, _prompt_influence(result, seed), (significant - value) / len(significant))


def _prompt_influence(result: SteeringConditions, seed: int) -> Floats:
    """Return (S,) influence of every cluster of prompts on the share of features that steer.

    The share jumps when a feature passes its threshold, so leaving one cluster out says either nothing or too much. The
    infinitesimal jackknife of the bootstrap is smooth: the covariance, over resampled clusters, of the share and of how
    often a cluster was drawn (Efron 2014, Estimation and accuracy after model selection).
    """
    clusters = len(result.clusters)
    member = (result.cluster_of[:, None] == np.arange(clusters)[None, :]).astype(np.float64)  # (P, S)
    own = result.conditions["feature"].slopes @ member  # (F, S)
    random, others = (np.einsum("rpf,ps->rfs", null, member) for null in (result.random, result.others))
    size = member.sum(0)
    draws = max(FEWEST_DRAWS, DRAWS_PER_CLUSTER * clusters)
    weights = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), draws)  # (B, S)
    shares = np.zeros(draws)
    for draw, weight in enumerate(weights / (weights @ size)[:, None]):
        tests = compare_with_controls(own @ weight, random @ weight, others @ weight, result.counted)
        shares[draw] = tests.significant.mean()
    influence = (shares - shares.mean()) @ (weights - 1.0) / draws
    return np.asarray(influence - influence.mean())
