"""Contrast-consistent search: the truth of pairs without labels, and the conditions under which it fails.

A pair is two activations that differ in the concept. Which of the two has it is the label y = +-1, hidden from the
search; the difference is y v plus noise, with v the concept's direction. Of the ways to search, this is the closed form
of Burns et al. (2022), CRC-TPC: the first principal component of the centred differences. It reaches 97% of the
accuracy of their loss (Emmons 2023), needs no restarts, and its result can be calculated: with share p of y = +1 the
centring removes (2p - 1) v, and v keeps 4 p (1 - p) of its variance |v|^2. A distractor z rho |v| u with z = +-1
balanced and u at right angles to v keeps all of its rho^2 |v|^2, so the search turns from the truth to the distractor
where 4 p (1 - p) = rho^2: at p = .93 for rho = .5, at p = .72 for rho = .9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.properties.concepts.occurrences import ConceptPositions
from sae_bench.measure.properties.concepts.probes import Half, Probe, ProbeScore, auroc, cross_score, mean_of

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"Share of pairs with y = +1 in the half that is searched; the other half is always balanced."
STRENGTHS = (0.0, 0.5, 0.9)
"rho"
FEWEST_PAIRS = 12
"Pairs that either half must have."

_COMPONENTS = 64
"Principal components that are searched: the first one of a changed covariance lies among the first of the unchanged."
_STEPS = 8
"Power steps from the full first component to the one without a cluster."


@dataclass(frozen=True, eq=False)
class CCSResult:
    """Result of the search in one space."""

    auroc: ProbeScore
    "AUROC on balanced pairs at p = .5 without a distractor."
    truth: Floats
    "(rho, p) AUROC of the concept along the result"
    distractor: Floats
    "(rho, p) AUROC of the distractor along it"


def match_pairs(placed: ConceptPositions, half: int) -> Ints:
    """Return (P, 2) rows of the half, positive and negative, matched by their position in the document.

    The position is the largest difference between two activations of many models, and the search would find it.
    Words that the concept pairs are matched with their partners only.
    """
    from scipy.optimize import linear_sum_assignment

    inside = placed.half == half
    position, positive, pair = placed.position[inside], placed.positive[inside], placed.pair[inside]
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for group in np.unique(pair[pair >= 0]):
        ones, zeros = (np.flatnonzero((pair == group) & (positive == side)) for side in (True, False))
        matched = linear_sum_assignment(np.abs(position[ones][:, None] - position[zeros]))
        pairs.append(np.column_stack([ones[matched[0]], zeros[matched[1]]]))
    return np.concatenate(pairs)


def pair_differences(half: Half, pairs: Ints) -> Half:
    """Return the differences of pairs, followed by their opposites: a balanced half."""
    x = half.columns(None)
    difference = x[pairs[:, 0]] - x[pairs[:, 1]]
    cluster = np.empty(len(half.positive), dtype=np.int64)
    cluster[half.row] = half.of
    # A pair goes with the cluster of either of its places; once where it is one.
    pair_clusters = {(pair, int(of)) for pair, clusters in enumerate(cluster[pairs]) for of in clusters}
    row, of = np.array(sorted(pair_clusters)).reshape(-1, 2).T
    positive = np.arange(2 * len(pairs)) < len(pairs)
    x = np.concatenate([difference, -difference])
    return Half(x, positive, half.clusters, np.concatenate([row, row + len(pairs)]), np.concatenate([of, of]))


def search_truth(halves: Sequence[Half], clusters: int, seed: int) -> CCSResult:
    """Search both halves of `pair_differences`, and score each result on the other half."""
    axes = [principal_axes(half.x[: len(half.x) // 2]) for half in halves]
    probes = [first_component(half, each) for half, each in zip(halves, axes, strict=True)]
    curves = np.mean(
        [imbalance_curves(halves[fold], halves[1 - fold], axes[fold], seed + fold) for fold in (0, 1)], axis=0
    )
    return CCSResult(cross_score(probes, halves, clusters), curves[0], curves[1])


def truth_salience(halves: Sequence[Half], clusters: int) -> tuple[ProbeScore, ProbeScore]:
    """Return the salience of the truth among balanced differences, and its rank among principal components.

    Returns:
        Variance along the truth over the largest along any direction, and the rank of the principal component that is
        most like the truth.
    """
    saliences = [_half_salience(half, clusters) for half in halves]
    return mean_of([each[0] for each in saliences]), mean_of([each[1] for each in saliences])


def first_component(half: Half, axes: Floats) -> Probe:
    """Return the first principal component of balanced differences, with the sign of the positives."""
    coordinates = half.x[: len(half.x) // 2] @ axes.T  # (P, r)
    sign = np.sign(coordinates[:, 0].mean()) or 1.0
    weights = np.zeros((len(axes), len(half.clusters)))
    first_half = half.row < len(coordinates)
    weights[0] = sign
    for _ in range(_STEPS):
        along = coordinates @ weights
        along[half.row[first_half], half.of[first_half]] = 0
        weights = coordinates.T @ along
        weights /= np.maximum(np.linalg.norm(weights, axis=0), np.finfo(float).tiny)
    return Probe(sign * axes[0], axes.T @ weights, half.clusters)


def principal_axes(difference: Floats) -> Floats:
    """Return (r, d) first principal axes of balanced differences, by their second moments."""
    from sklearn.utils.extmath import randomized_svd

    r = min(_COMPONENTS, *difference.shape)
    axes: Floats = np.asarray(randomized_svd(difference, r, random_state=0)[2])
    return axes


def _half_salience(half: Half, clusters: int) -> tuple[ProbeScore, ProbeScore]:
    difference = half.x[: len(half.x) // 2]
    count, total = len(difference), difference.sum(0)
    axes = np.linalg.svd(difference, full_matrices=False)[2]  # (r, d)
    square = (difference @ axes.T) ** 2  # (P, r)

    def without_rows(rows: Ints) -> tuple[float, float]:
        remaining = np.ones(count, dtype=bool)
        remaining[rows[rows < count]] = False
        truth = total - difference[~remaining].sum(0)
        truth /= np.linalg.norm(truth) or 1.0
        # The largest variance moves with its component held, to first order, because the component is its maximum.
        along = float(np.mean((difference[remaining] @ truth) ** 2))
        return along / square[remaining].mean(0).max(), 1.0 + float(np.abs(axes @ truth).argmax())

    full = without_rows(np.zeros(0, dtype=np.int64))
    without = np.tile(full, (clusters, 1))
    without[half.clusters] = [without_rows(half.row[half.of == cluster]) for cluster in range(len(half.clusters))]
    return ProbeScore(full[0], without[:, 0]), ProbeScore(full[1], without[:, 1])


def imbalance_curves(
    fit: Half,
    scored: Half,
    axes: Floats,
    seed: int,
    shares: Sequence[float] = SHARES,
    strengths: Sequence[float] = STRENGTHS,
) -> Floats:
    """Return (2, rho, p) AUROC of truth and distractor along the result in ``fit``, on balanced pairs of ``scored``.

    Args:
        fit: a `pair_differences`, searched with a share p of its pairs the right way round.
        scored: the other one.
        axes: (r, d) principal axes of ``fit``; nothing is searched outside of them, the truth and the distractor.
        seed: of the distractor and of which pairs are turned.
        shares: the values of p.
        strengths: the values of rho.
    """
    generator = np.random.default_rng(seed)
    difference, other_difference = fit.x[: len(fit.x) // 2], scored.x[: len(scored.x) // 2]
    truth = difference.mean(0)
    strength = float(np.linalg.norm(truth))
    distractor = _orthogonal_unit(truth, generator)
    basis = np.linalg.qr(np.column_stack([truth / (strength or 1.0), distractor, axes.T]))[0]  # (d, r)
    coordinates, other_coordinates, distractor_coordinates = (
        difference @ basis,
        other_difference @ basis,
        distractor @ basis,
    )
    turn_order, z, z_other = (
        _nested_order(len(coordinates), generator),
        _signs(len(coordinates), generator),
        _signs(len(other_coordinates), generator),
    )
    scores_of = np.empty((len(other_coordinates), 2, len(strengths), len(shares)))
    for row, rho in enumerate(strengths):
        for column, share in enumerate(shares):
            y = np.where(turn_order < share, 1.0, -1.0)
            planted = y[:, None] * coordinates + rho * strength * z[:, None] * distractor_coordinates
            centred = planted - planted.mean(0)
            along = np.linalg.eigh(centred.T @ centred)[1][:, -1]
            scores = (other_coordinates + rho * strength * z_other[:, None] * distractor_coordinates) @ along
            scores_of[:, 0, row, column] = scores * np.sign(truth @ basis @ along)
            scores_of[:, 1, row, column] = scores * z_other * np.sign(distractor_coordinates @ along)
    # Against the same pairs the other way round, so that the scored half is balanced whatever the fitted one is.
    return auroc(np.concatenate([scores_of, -scores_of]), scored.positive)


def _orthogonal_unit(truth: Floats, generator: np.random.Generator) -> Floats:
    """Return a random unit vector at right angles to the truth."""
    vector = generator.normal(size=len(truth))
    vector -= vector @ truth / (truth @ truth or 1.0) * truth
    unit: Floats = vector / np.linalg.norm(vector)
    return unit


def _nested_order(count: int, generator: np.random.Generator) -> Floats:
    """Return (P,) distinct numbers in (0, 1): those below p are a share p of the pairs, nested in larger p."""
    numbers: Floats = (generator.permutation(count) + 0.5) / count
    return numbers


def _signs(count: int, generator: np.random.Generator) -> Floats:
    """Return (P,) as many +1 as -1."""
    return np.where(generator.permutation(count) % 2, 1.0, -1.0)
