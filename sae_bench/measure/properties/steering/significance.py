"""Which features steer: more than random directions and other features do, several features tested at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Estimate, Influence, Undefined

if TYPE_CHECKING:
    from sae_bench.measure.properties.steering.conditions import SteeringConditions

FALSE_DISCOVERIES = 0.1
"Expected share of features among those found that do not steer (Benjamini-Hochberg)."

FEWEST_DRAWS = 400
DRAWS_PER_CLUSTER = 10


@dataclass(frozen=True, eq=False)
class SteeringTests:
    """Per feature, (F,)."""

    statistic: Floats
    "Mean slope over the root mean square of other features' mean slopes on the same target set."
    p: Floats
    "One-sided, the larger of those against either floor, before the correction for several features."
    found: NDArray[np.bool_]


def exceedance(slopes: Floats, null: Floats, counted: NDArray[np.bool_] | None = None) -> tuple[Floats, Floats]:
    """Statistics and one-sided p of mean slopes (F,) among those of other directions on the same target sets (R, F).

    Both are read in units of the others' root mean square on that target set, and p is the share of all others, on all
    target sets, that reach as far. Their own distribution and no normal one: decoder rows move logits more than
    directions drawn on a sphere, seldom but far (kurtosis up to 4 on the demo), and may share a component.

    Args:
        slopes: of the directions that are tested.
        null: of the directions that they are held against.
        counted: (R, F), False where the two are the same direction; None counts everything.
    """
    counted = np.ones(null.shape, dtype=bool) if counted is None else counted
    size = np.sqrt(np.square(null).sum(0, where=counted) / np.maximum(counted.sum(0), 1))  # (F,)
    statistic = np.divide(slopes, size, out=np.sign(slopes) * 1e9, where=size > 0)
    others = np.sort(np.divide(null, size, out=np.zeros_like(null), where=size > 0)[counted])
    reaching = len(others) - np.searchsorted(others, statistic, side="left")
    return statistic, (1.0 + reaching) / (1.0 + len(others))


def compare_with_controls(slopes: Floats, random: Floats, others: Floats, counted: NDArray[np.bool_]) -> SteeringTests:
    """Mean slopes (F,) against those of random directions and of other features on the same target sets, each (R, F).

    A feature steers when it raises its targets more than both do. Random directions are counted with their opposites,
    which are as likely.
    """
    from statsmodels.stats.multitest import multipletests

    _, p_random = exceedance(slopes, np.concatenate([random, -random]))
    statistic, p_others = exceedance(slopes, others, counted)
    p = np.maximum(p_random, p_others)
    rejected = np.asarray(multipletests(p, alpha=FALSE_DISCOVERIES, method="fdr_bh")[0], dtype=bool)
    return SteeringTests(statistic, p, rejected & (slopes > 0))


def test_features(found: SteeringConditions) -> SteeringTests:
    """The verdicts over all prompts."""
    return compare_with_controls(
        found.conditions["feature"].slopes.mean(1), found.random.mean(1), found.others.mean(1), found.counted
    )


def steer_share(found: SteeringConditions, seed: int) -> Estimate:
    """Share of features that steer; its errors by prompts and by features."""
    fewest = math.ceil(1 / FALSE_DISCOVERIES)
    if found.counted.sum() < fewest:
        return Undefined("the SAE has too few other live features to hold a feature against")
    steering = test_features(found).found.astype(np.float64)
    value = float(steering.mean())
    return Influence(value, _prompt_influence(found, seed), (steering - value) / len(steering))


def _prompt_influence(found: SteeringConditions, seed: int) -> Floats:
    """(S,) influence of every cluster of prompts on the share of features that steer.

    The share jumps when a feature passes its threshold, so leaving one cluster out says either nothing or too much. The
    infinitesimal jackknife of the bootstrap is smooth: the covariance, over resampled clusters, of the share and of how
    often a cluster was drawn (Efron 2014, Estimation and accuracy after model selection).
    """
    clusters = len(found.clusters)
    member = (found.cluster_of[:, None] == np.arange(clusters)[None, :]).astype(np.float64)  # (P, S)
    own = found.conditions["feature"].slopes @ member  # (F, S)
    random, others = (np.einsum("rpf,ps->rfs", null, member) for null in (found.random, found.others))
    size = member.sum(0)
    draws = max(FEWEST_DRAWS, DRAWS_PER_CLUSTER * clusters)
    weights = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), draws)  # (B, S)
    shares = np.zeros(draws)
    for draw, weight in enumerate(weights / (weights @ size)[:, None]):
        verdicts = compare_with_controls(own @ weight, random @ weight, others @ weight, found.counted)
        shares[draw] = verdicts.found.mean()
    influence = (shares - shares.mean()) @ (weights - 1.0) / draws
    return np.asarray(influence - influence.mean())
