"""Linear readers of a concept, fitted on one half and scored on the other, with every cluster left out in turn.

A reader is a direction; what it is worth is its AUROC, the share of (positive, negative) couples of the other half that
it puts in the right order, ties counting one half. Leaving a cluster out moves the direction if it is in the half that
was fitted, and the couples if it is in the half that is scored; both are part of the error of a split-half AUROC. In
small samples this error is on the wide side, as the jackknife's is.

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
    """One half of a concept's places, seen in one space."""

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
        """(C, ...) sums of values (N, ...) over the rows of each cluster."""
        return sums(values[self.row], self.of, len(self.clusters))

    @cached_property
    def couples(self) -> tuple[Ints, Ints, Ints]:
        """(positive row, negative row, cluster) of every couple within a cluster."""
        label = self.positive[self.row]
        found = []
        for cluster in range(len(self.clusters)):
            ones, zeros = (self.row[(self.of == cluster) & (label == side)] for side in (True, False))
            found.append(np.array([np.repeat(ones, len(zeros)), np.tile(zeros, len(ones)),
                                   np.full(len(ones) * len(zeros), cluster)]))  # fmt: skip
        joined = np.concatenate([np.zeros((3, 0), dtype=np.int64), *found], axis=1)
        return joined[0], joined[1], joined[2]

    def columns(self, chosen: Ints | None) -> Floats:
        """(N, k) dense columns; all of them for None."""
        part = self.x if chosen is None else self.x[:, chosen]
        return np.asarray(part.toarray() if hasattr(part, "toarray") else part, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted direction."""

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
    """A value and what it is without each cluster."""

    value: float
    without: Floats
    "(S,)"

    def __sub__(self, other: ProbeScore) -> ProbeScore:
        return ProbeScore(self.value - other.value, self.without - other.without)


def mean_of(parts: Sequence[ProbeScore]) -> ProbeScore:
    """Their mean."""
    return ProbeScore(float(np.mean([part.value for part in parts])), np.mean([part.without for part in parts], axis=0))


def worst_of(parts: Sequence[ProbeScore]) -> ProbeScore:
    """Their smallest."""
    return ProbeScore(min(part.value for part in parts), np.min([part.without for part in parts], axis=0))


def sums(values: Floats, of: Ints, groups: int) -> Floats:
    """(groups, ...) sums of values (M, ...) by group."""
    found = np.zeros((groups, *values.shape[1:]))
    np.add.at(found, of, values)
    return found


def auroc(scores: Floats, positive: Bools) -> Floats:
    """(...) areas under the curve of scores (N, ...) against labels (N,) or (N, ...); ties count one half.

    Labels that are all alike put nothing in order: one half.
    """
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=0)
    labels = positive.reshape(positive.shape + (1,) * (ranks.ndim - positive.ndim))
    ones = labels.sum(0)
    couples = ones * (len(scores) - ones)
    right = (ranks * labels).sum(0) - ones * (ones + 1) / 2
    found: Floats = np.where(couples > 0, right / np.maximum(couples, 1), 0.5)
    return found


def auroc_without(scores: Floats, half: Half) -> Floats:
    """(C,) the AUROC of a half's scores (N,) without each cluster's rows, exact."""
    from scipy.stats import rankdata

    positive = half.positive
    ranks = rankdata(scores)
    right = np.empty(len(scores))
    "Couples that each row wins as a positive or loses as a negative."
    right[positive] = ranks[positive] - rankdata(scores[positive])
    right[~positive] = positive.sum() - (ranks[~positive] - rankdata(scores[~positive]))
    ones, zeros, both = half.couples
    above = scores[ones] - scores[zeros]
    # Couples within the cluster go with either of their rows, and were taken away twice.
    twice = sums((above > 0) + 0.5 * (above == 0), both, len(half.clusters))
    left = [label.sum() - half.sums(label.astype(np.float64)) for label in (positive, ~positive)]
    found: Floats = (right[positive].sum() - half.sums(right) + twice) / (left[0] * left[1])
    return found


def score(reader: Probe, half: Half, clusters: int) -> ProbeScore:
    """A reader's AUROC on a half that it was not fitted on; ``clusters`` is S."""
    x = half.columns(reader.chosen)
    scores = x @ reader.weights
    value = float(auroc(scores, half.positive))
    without = np.full(clusters, value)
    without[half.clusters] = auroc_without(scores, half)
    if reader.without is not None:
        without[reader.clusters] = auroc(x @ reader.without, half.positive)
    return ProbeScore(value, without)


def cross_score(readers: Sequence[Probe], halves: Sequence[Half], clusters: int) -> ProbeScore:
    """Each half's reader on the other half, averaged."""
    return mean_of([score(reader, half, clusters) for reader, half in zip(readers, halves[::-1], strict=True)])


def fit_mean_difference(half: Half) -> Probe:
    """The mean of the positives minus the mean of the negatives."""
    x = half.columns(None)
    weights, without = np.zeros(x.shape[1]), np.zeros((len(half.clusters), x.shape[1]))
    for label, sign in ((half.positive, 1), (~half.positive, -1)):
        total, count = x[label].sum(0), label.sum()
        weights += sign * total / count
        gone, number = half.sums(x * label[:, None]), half.sums(label.astype(np.float64))
        without += sign * (total - gone) / (count - number)[:, None]
    return Probe(weights, without.T, half.clusters)


def d_prime(half: Half) -> Floats:
    """(d,) difference of a column's class means over the root mean square of its class deviations.

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
    found = np.zeros(len(spread))
    varies = spread > 1e-6 * size
    found[varies] = (moments[0][0] - moments[1][0])[varies] / spread[varies]
    return found


def fit_best_column(half: Half) -> Probe:
    """The column with the largest `d_prime`, read with its sign."""
    separation = d_prime(half)
    best = np.argmax(np.abs(separation))
    return Probe(np.array([np.sign(separation[best]) or 1.0]), chosen=np.array([best]))


def fit_probe(half: Half, k: int) -> Probe:
    """Logistic regression (L2, C = 1, balanced classes) on the k standardised columns of largest `d_prime`.

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
    p = 1 / (1 + np.exp(-np.clip(z @ weights + model.intercept_[0], -500, 500)))
    balance = np.where(half.positive, 0.5 / half.positive.mean(), 0.5 / (~half.positive).mean())
    full = np.column_stack([z, np.ones(len(z))])
    gradient = (balance * (p - half.positive))[:, None] * full
    curvature = full.T @ ((balance * p * (1 - p))[:, None] * full) + np.diag([*np.ones(x.shape[1]), 1e-9])
    moved = np.linalg.solve(curvature, half.sums(gradient).T)[:-1]
    without = (weights[:, None] + moved) / scale[:, None]
    return Probe(weights / scale, without, half.clusters, chosen)


def permute_labels(
    fitted: Sequence[Half], scored: Sequence[Half], units: Sequence[tuple[Ints, Ints]], times: int, seed: int
) -> tuple[Floats, Floats]:
    """What `cross_score` of mean differences would be if labels said nothing: AUROCs and directions with labels dealt anew.

    Both folds have the same deal, as they have the same labels: chance that helps one of them helps the other as well.

    Args:
        fitted: both halves that directions come from.
        scored: both halves that they are read on.
        units: what shares a label, in the rows of each fitted half and of each scored half; units of the latter are
            among those of the former.
        times: permutations.
        seed: of the generator.

    Returns:
        (times,) AUROCs, and (d, times) directions of the first half.
    """
    generator = np.random.default_rng(seed)
    weights, labels = [], []
    for half, (unit, read) in zip(fitted, units, strict=True):
        known, first, place = np.unique(unit, return_index=True, return_inverse=True)
        dealt = generator.permuted(np.tile(half.positive[first], (times, 1)), axis=1).T  # (units, times)
        rows = dealt[place]
        weights.append(half.columns(None).T @ (rows / rows.sum(0) - ~rows / (~rows).sum(0)))
        labels.append(dealt[np.searchsorted(known, read)])
    folds = [auroc(scored[1 - fold].columns(None) @ weights[fold], labels[1 - fold]) for fold in (0, 1)]
    return (folds[0] + folds[1]) / 2, weights[0]
