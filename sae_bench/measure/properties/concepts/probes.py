"""Linear probes of a concept, fitted on one half and scored on the other, with every cluster left out in turn.

A probe is a direction; its score is its AUROC, the share of (positive, negative) couples of the other half that it puts
in the right order, ties counting one half. Leaving a cluster out changes the direction if it is in the fitted half, and
the couples if it is in the scored half; both are part of the error of a split-half AUROC. In small samples this error
is too wide rather than too narrow, as the jackknife's is.

Shapes: N rows, d columns, C clusters of a half, S clusters in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from sae_bench.measure.arrays import Bools, Floats, Ints

Fit: TypeAlias = "Callable[[Half], Probe]"


@dataclass(frozen=True, eq=False)
class Half:
    """One half of a concept's positions, in one space."""

    x: Any
    "(N, d) dense or scipy sparse"
    positive: Bools
    "(N,)"
    clusters: Ints
    "(C,) which clusters of the measurement are in this half"
    row: Ints
    "(M,) rows, once for each cluster that they are in"
    of: Ints
    "(M,) which of the C clusters that is"

    def sums(self, values: Floats) -> Floats:
        """Return (C, ...) sums of values (N, ...) over the rows of each cluster."""
        return sums(values[self.row], self.of, len(self.clusters))

    @cached_property
    def couples(self) -> tuple[Ints, Ints, Ints]:
        """Return (positive row, negative row, cluster) of every couple within a cluster."""
        label = self.positive[self.row]
        couples = []
        for cluster in range(len(self.clusters)):
            ones, zeros = (self.row[(self.of == cluster) & (label == side)] for side in (True, False))
            couples.append(np.array([np.repeat(ones, len(zeros)), np.tile(zeros, len(ones)),
                                   np.full(len(ones) * len(zeros), cluster)]))  # fmt: skip
        joined = np.concatenate([np.zeros((3, 0), dtype=np.int64), *couples], axis=1)
        return joined[0], joined[1], joined[2]

    def columns(self, chosen: Ints | None) -> Floats:
        """Return (N, k) dense columns; all of them for None."""
        part = self.x if chosen is None else self.x[:, chosen]
        return np.asarray(part.toarray() if hasattr(part, "toarray") else part, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Probe:
    """Fitted direction, with the directions fitted without each cluster."""

    weights: Floats
    "(k,)"
    without: Floats | None = None
    "(k, C) fitted without each cluster of its half; None where the choice is held fixed."
    clusters: Ints | None = None
    "(C,) those clusters"
    chosen: Ints | None = None
    "(k,) the columns it reads; None for all."


@dataclass(frozen=True, eq=False)
class ProbeScore:
    """Value, and the values without each cluster."""

    value: float
    without: Floats
    "(S,)"

    def __sub__(self, other: ProbeScore) -> ProbeScore:
        return ProbeScore(self.value - other.value, self.without - other.without)


def mean_of(parts: Sequence[ProbeScore]) -> ProbeScore:
    """Return the mean of scores."""
    return ProbeScore(float(np.mean([part.value for part in parts])), np.mean([part.without for part in parts], axis=0))


def worst_of(parts: Sequence[ProbeScore]) -> ProbeScore:
    """Return the smallest of scores."""
    return ProbeScore(min(part.value for part in parts), np.min([part.without for part in parts], axis=0))


def sums(values: Floats, of: Ints, groups: int) -> Floats:
    """Return (groups, ...) sums of values (M, ...) by group."""
    totals = np.zeros((groups, *values.shape[1:]))
    np.add.at(totals, of, values)
    return totals


def auroc(scores: Floats, positive: Bools) -> Floats:
    """Return (...) areas under the curve of scores (N, ...) against labels (N,) or (N, ...); ties count one half.

    Labels that are all alike put nothing in order: one half.
    """
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=0)
    labels = positive.reshape(positive.shape + (1,) * (ranks.ndim - positive.ndim))
    ones = labels.sum(0)
    couples = ones * (len(scores) - ones)
    right = (ranks * labels).sum(0) - ones * (ones + 1) / 2
    areas: Floats = np.where(couples > 0, right / np.maximum(couples, 1), 0.5)
    return areas


def auroc_without(scores: Floats, half: Half) -> Floats:
    """Return (C,) the AUROC of a half's scores (N,) without each cluster's rows, exact."""
    from scipy.stats import rankdata

    positive = half.positive
    ranks = rankdata(scores)
    wins = np.empty(len(scores))
    "Couples that each row wins as a positive or loses as a negative."
    wins[positive] = ranks[positive] - rankdata(scores[positive])
    wins[~positive] = positive.sum() - (ranks[~positive] - rankdata(scores[~positive]))
    ones, zeros, cluster = half.couples
    margin = scores[ones] - scores[zeros]
    # Couples within the cluster go with either of their rows, and were taken away twice.
    counted_twice = sums((margin > 0) + 0.5 * (margin == 0), cluster, len(half.clusters))
    remaining = [label.sum() - half.sums(label.astype(np.float64)) for label in (positive, ~positive)]
    without: Floats = (wins[positive].sum() - half.sums(wins) + counted_twice) / (remaining[0] * remaining[1])
    return without


def score(probe: Probe, half: Half, clusters: int) -> ProbeScore:
    """Return a probe's AUROC on a half on which it was not fitted; ``clusters`` is S."""
    x = half.columns(probe.chosen)
    scores = x @ probe.weights
    value = float(auroc(scores, half.positive))
    without = np.full(clusters, value)
    without[half.clusters] = auroc_without(scores, half)
    if probe.without is not None:
        without[probe.clusters] = auroc(x @ probe.without, half.positive)
    return ProbeScore(value, without)


def cross_score(probes: Sequence[Probe], halves: Sequence[Half], clusters: int) -> ProbeScore:
    """Return the mean score of each half's probe on the other half."""
    return mean_of([score(probe, half, clusters) for probe, half in zip(probes, halves[::-1], strict=True)])


def fit_mean_difference(half: Half) -> Probe:
    """Return the mean of the positives minus the mean of the negatives."""
    x = half.columns(None)
    weights, without = np.zeros(x.shape[1]), np.zeros((len(half.clusters), x.shape[1]))
    for label, sign in ((half.positive, 1), (~half.positive, -1)):
        total, count = x[label].sum(0), label.sum()
        weights += sign * total / count
        cluster_sum, cluster_count = half.sums(x * label[:, None]), half.sums(label.astype(np.float64))
        without += sign * (total - cluster_sum) / (count - cluster_count)[:, None]
    return Probe(weights, without.T, half.clusters)


def d_prime(half: Half) -> Floats:
    """Return (d,) difference of a column's class means over the root mean square of its class deviations.

    It does not change with the column's scale, so a feature is not chosen because its decoder row is short. A column
    that is constant in both classes has 0.
    """
    x, moments = half.x, []
    for rows in (half.positive, ~half.positive):
        part = x[np.flatnonzero(rows)]
        mean = np.asarray(part.mean(0), dtype=np.float64).ravel()
        square = part.multiply(part) if hasattr(part, "multiply") else np.square(part, dtype=np.float64)
        # Below this the variance is rounding, and so is the difference.
        variance = np.asarray(square.mean(0), dtype=np.float64).ravel() - mean**2
        moments.append((mean, np.maximum(variance, 0)))
    spread = np.sqrt((moments[0][1] + moments[1][1]) / 2)
    size = np.maximum(np.abs(moments[0][0]), np.abs(moments[1][0]))
    separation = np.zeros(len(spread))
    varies = spread > 1e-6 * size
    separation[varies] = (moments[0][0] - moments[1][0])[varies] / spread[varies]
    return separation


def fit_best_column(half: Half) -> Probe:
    """Return the column with the largest `d_prime`, with its sign."""
    separation = d_prime(half)
    best = np.argmax(np.abs(separation))
    return Probe(np.array([np.sign(separation[best]) or 1.0]), chosen=np.array([best]))


def fit_probe(half: Half, k: int) -> Probe:
    """Fit logistic regression (L2, C = 1, balanced classes) on the k standardised columns of largest `d_prime`.

    Without a cluster it is taken to move by one Newton step from the full fit, the same columns kept.
    """
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression

    chosen = np.sort(np.argsort(-np.abs(d_prime(half)), kind="stable")[:k])
    x = half.columns(chosen)
    scale = np.maximum(x.std(0), np.finfo(float).tiny)
    scale[x.std(0) == 0] = 1.0
    z = (x - x.mean(0)) / scale  # (N, k)
    model = LogisticRegression(C=1.0, class_weight="balanced", solver="newton-cholesky")
    with config_context(assume_finite=True, skip_parameter_validation=True):
        model.fit(z, half.positive)
    weights = np.asarray(model.coef_[0], dtype=np.float64)
    probability = 1 / (1 + np.exp(-np.clip(z @ weights + model.intercept_[0], -500, 500)))
    balance = np.where(half.positive, 0.5 / half.positive.mean(), 0.5 / (~half.positive).mean())
    full = np.column_stack([z, np.ones(len(z))])
    gradient = (balance * (probability - half.positive))[:, None] * full
    curvature = full.T @ ((balance * probability * (1 - probability))[:, None] * full) + np.diag(
        [*np.ones(x.shape[1]), 1e-9]
    )
    changes = np.linalg.solve(curvature, half.sums(gradient).T)[:-1]
    without = (weights[:, None] + changes) / scale[:, None]
    return Probe(weights / scale, without, half.clusters, chosen)


def permute_labels(
    fitted: Sequence[Half], scored: Sequence[Half], units: Sequence[tuple[Ints, Ints]], times: int, seed: int
) -> tuple[Floats, Floats]:
    """Return AUROCs and directions of mean differences with permuted labels, as if labels meant nothing.

    Both folds have the same permutation, as they have the same labels: chance that helps one helps the other as well.

    Args:
        fitted: both halves that directions come from.
        scored: both halves on which they are scored.
        units: units with one label, in the rows of each fitted half and of each scored half; units of the latter are
            among those of the former.
        times: permutations.
        seed: of the generator.

    Returns:
        (times,) AUROCs, and (d, times) directions of the first half.
    """
    generator = np.random.default_rng(seed)
    weights, labels = [], []
    for half, (unit, scored_unit) in zip(fitted, units, strict=True):
        fitted_units, first, unit_index = np.unique(unit, return_index=True, return_inverse=True)
        permuted = generator.permuted(np.tile(half.positive[first], (times, 1)), axis=1).T  # (units, times)
        rows = permuted[unit_index]
        weights.append(half.columns(None).T @ (rows / rows.sum(0) - ~rows / (~rows).sum(0)))
        labels.append(permuted[np.searchsorted(fitted_units, scored_unit)])
    folds = [auroc(scored[1 - fold].columns(None) @ weights[fold], labels[1 - fold]) for fold in (0, 1)]
    return (folds[0] + folds[1]) / 2, weights[0]
