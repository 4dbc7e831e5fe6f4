"""Which features steer: more than random directions do on the same target set, several features tested at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_bench.measurement import Floats

if TYPE_CHECKING:
    from sae_bench.properties._steering_arms import Steered

FALSE_DISCOVERIES = 0.05
"Expected share of features among those found that do not steer (Benjamini-Hochberg)."


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


def steers(found: Steered, prompts: NDArray[np.bool_] | slice = slice(None)) -> Verdicts:
    """The verdicts over some of the prompts, (P,) bool."""
    return against_random(found.arms["feature"].slopes[:, prompts].mean(1), found.null[:, prompts].mean(1))


def steers_without(found: Steered, cluster: int) -> Verdicts:
    """The verdicts without the prompts of one cluster."""
    return steers(found, found.cluster_of != cluster)
