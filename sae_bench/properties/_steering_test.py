"""Which features steer: more than random directions do on the same target set, several features tested at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_bench.measurement import Floats

if TYPE_CHECKING:
    from sae_bench.properties._steering_arms import Steered

FALSE_DISCOVERIES = 0.1
"Expected share of features among those found that do not steer (Benjamini-Hochberg)."

FEWEST_DRAWS = 400
DRAWS_PER_CLUSTER = 10


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Per feature, (F,)."""

    statistic: Floats
    "Mean slope over the root mean square of the random directions' mean slopes."
    p: Floats
    "One-sided, before the correction for several features."
    found: NDArray[np.bool_]


def against_random(slopes: Floats, null: Floats) -> Verdicts:
    """Mean slopes (F,) against those of random directions on the same target sets (R, F).

    To first order a slope is the inner product of a direction with a fixed gradient, so over uniformly random
    directions it is close to normal with mean 0, and a feature's slope over their root mean square is Student's t with
    R degrees of freedom.
    """
    from scipy.special import stdtr
    from statsmodels.stats.multitest import multipletests

    size = np.sqrt(np.square(null).mean(0))
    statistic = np.divide(slopes, size, out=np.sign(slopes) * 1e9, where=size > 0)
    p = np.asarray(stdtr(len(null), -statistic), dtype=np.float64)
    found = np.asarray(multipletests(p, alpha=FALSE_DISCOVERIES, method="fdr_bh")[0], dtype=bool)
    return Verdicts(statistic, p, found)


def steers(found: Steered) -> Verdicts:
    """The verdicts over all prompts."""
    return against_random(found.arms["feature"].slopes.mean(1), found.null.mean(1))


def prompt_influence(found: Steered, seed: int) -> Floats:
    """(S,) influence of every cluster of prompts on the share of features that steer.

    The share jumps when a feature passes its threshold, so leaving one cluster out says either nothing or too much. The
    infinitesimal jackknife of the bootstrap is smooth: the covariance, over resampled clusters, of the share and of how
    often a cluster was drawn (Efron 2014, Estimation and accuracy after model selection).
    """
    clusters = len(found.clusters)
    member = (found.cluster_of[:, None] == np.arange(clusters)[None, :]).astype(np.float64)  # (P, S)
    own = found.arms["feature"].slopes @ member  # (F, S)
    null = np.einsum("rpf,ps->rfs", found.null, member)
    size = member.sum(0)
    draws = max(FEWEST_DRAWS, DRAWS_PER_CLUSTER * clusters)
    weights = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), draws)  # (B, S)
    drawn = [weight / (size @ weight) for weight in weights]
    shares = np.array([against_random(own @ weight, null @ weight).found.mean() for weight in drawn])
    influence = (shares - shares.mean()) @ (weights - 1.0) / draws
    return np.asarray(influence - influence.mean())
