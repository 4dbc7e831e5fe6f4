"""Variance between questions that declared factors explain: omega squared and its permutation test. numpy only.

With k levels of a factor and SS sums of squares,

    omega^2 = (SS_between - (k - 1) MS_within) / (SS_total + MS_within)

which has no upward bias, unlike SS_between / SS_total. Marginal: one factor alone. In order: the part that a factor
adds to those declared before it, with the variance within from the additive model of all of them. Only declared factors
count, because the best of many undeclared ones explains a fifth of anything.

Shapes: R directions, N questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from sae_bench.measure.arrays import Floats, Ints, divide_or

PERMUTATIONS = 999


def level_numbers(values: Sequence[str]) -> Ints:
    """Return (N,) each question's level as a number, levels sorted by name."""
    names = sorted(set(values))
    return np.array([names.index(value) for value in values])


def _columns(level: Ints) -> Floats:
    """Return (N, k - 1) indicator columns of all levels but the first."""
    return np.asarray(level[:, None] == np.arange(1, int(level.max()) + 1)[None, :], dtype=np.float64)


def _residual(values: Floats, columns: Sequence[Floats]) -> tuple[Floats, int]:
    """Return (R,) squares of values (R, N) left by least squares on the columns and a constant; the rank."""
    design = np.concatenate([np.ones((values.shape[1], 1)), *columns], axis=1)
    fitted, _, rank, _ = np.linalg.lstsq(design, values.T, rcond=None)
    return np.asarray(np.square(values.T - design @ fitted).sum(0)), int(rank)


def omega_squared(values: Floats, factors: Sequence[Ints]) -> Floats:
    """Return (factors, R) omega squared of each factor after those before it, for values (R, N).

    With one factor, its marginal one. NaN where nothing varies or no question is left to estimate the variance within.
    """
    count = values.shape[1]
    fits = [_residual(values, [_columns(factor) for factor in factors[:used]]) for used in range(len(factors) + 1)]
    total, (residual_all, rank) = fits[0][0], fits[-1]
    within = residual_all / (count - rank) if count > rank else np.full_like(total, math.nan)
    whole = total + within
    gained = np.stack(
        [
            before - residual - (rank_now - rank_before) * within
            for (before, rank_before), (residual, rank_now) in pairwise(fits)
        ]
    )
    return divide_or(gained, whole, math.nan)


def permutation_p(values: Floats, factor: Ints, strata: Ints, seed: int) -> Floats:
    """Return (R,) permutation p of a factor shuffled within strata, for values (R, N): (1 + hits) / (1 + shuffles).

    All rows are compared with the same shuffles.
    """
    values = values - values.mean(1, keepdims=True)
    plain = np.argsort(strata, kind="stable")
    keys = np.random.default_rng(seed).random((PERMUTATIONS, len(factor)))
    # Sorting by stratum and then by a random key puts a random member of the stratum into each of its places.
    order = np.lexsort((keys, np.broadcast_to(strata, keys.shape)), axis=-1)
    shuffled = np.empty_like(order)
    shuffled[:, plain] = factor[order]
    observed = _between(values, factor[None])
    hits = (_between(values, shuffled) >= observed * (1 - 1e-12)).sum(1)
    return np.asarray((1 + hits) / (1 + PERMUTATIONS))


def _between(values: Floats, assigned: Ints) -> Floats:
    """Return (R, B) sums over levels of squared sums over their count, of values (R, N) per assignment (B, N)."""
    between = np.zeros((len(values), len(assigned)))
    for level in np.unique(assigned[0]):
        member = assigned == level
        between += np.square(values @ member.T) / member[0].sum()
    return between


def worst_level_share(values: Floats, factors: Mapping[str, Ints]) -> float:
    """Return the smallest share of rising slopes among all levels with two questions or more of all factors."""
    shares = [
        float((values[factor == level] > 0).mean())
        for factor in factors.values()
        for level in np.unique(factor)
        if (factor == level).sum() >= 2
    ]
    return min(shares, default=math.nan)
