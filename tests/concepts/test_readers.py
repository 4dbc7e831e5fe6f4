"""Readers of a concept: scores and errors are those of the definitions, planted truths are found, intervals cover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from sae_bench.measurement import Floats, Influence
from sae_bench.properties._concepts_readers import (
    Half,
    Reader,
    Scored,
    auroc,
    auroc_without,
    best_column,
    cross,
    d_prime,
    mean_difference,
    permuted,
    probe,
)
from sae_bench.stats import interval, leave_one_out

CLUSTERS, EACH, WIDTH = 120, 6, 5
CONFIDENCE, RUNS = 0.9, 120


def halves(seed: int, effect: float, width: int = WIDTH) -> tuple[Half, Half]:
    """Even and odd clusters; the concept is the first axis, and every cluster has a mood of its own."""
    rng = np.random.default_rng(seed)
    made = []
    for half in (0, 1):
        clusters = np.arange(half, CLUSTERS, 2)
        of = np.repeat(np.arange(len(clusters)), EACH)
        positive = rng.random(len(of)) < 0.4
        positive[:2], positive[-2:] = True, False
        x = rng.normal(size=(len(of), width)) + 0.5 * rng.normal(size=(len(clusters), width))[of]
        x[:, 0] += effect * positive
        made.append(Half(x, positive, clusters, np.arange(len(of)), of))
    return made[0], made[1]


def without(half: Half, cluster: int) -> Half:
    """The half with a cluster's rows removed."""
    gone = half.row[half.of == cluster]
    kept = np.setdiff1d(np.arange(len(half.positive)), gone)
    return Half(half.x[kept], half.positive[kept], half.clusters, np.arange(len(kept)), half.of[kept])


def test_auroc_is_scikit_learns_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 5, size=(80, 3)).astype(float), rng.random(80) < 0.3
    assert auroc(scores, positive) == pytest.approx([roc_auc_score(positive, column) for column in scores.T])
    labels = rng.random((80, 3)) < 0.5
    expected = [roc_auc_score(label, column) for label, column in zip(labels.T, scores.T, strict=True)]
    assert auroc(scores, labels) == pytest.approx(expected)


def test_the_auroc_without_a_cluster_is_that_of_the_other_rows() -> None:
    half = halves(1, 1.0)[0]
    scores = np.round(half.x[:, 0])
    expected = [
        float(auroc(scores[half.of != cluster], half.positive[half.of != cluster]))
        for cluster in range(len(half.clusters))
    ]
    assert auroc_without(scores, half) == pytest.approx(expected)


def test_a_row_of_two_clusters_goes_with_either() -> None:
    scores, positive = np.array([3.0, 1.0, 2.0, 2.0, 0.0]), np.array([True, True, True, False, False])
    half = Half(scores[:, None], positive, np.arange(2), np.array([0, 0, 3, 1]), np.array([0, 1, 1, 1]))
    expected = [float(auroc(scores[rest], positive[rest])) for rest in ([1, 2, 3, 4], [2, 4])]
    assert auroc_without(scores, half) == pytest.approx(expected)


def test_a_mean_difference_without_a_cluster_is_fitted_without_it() -> None:
    half = halves(2, 1.0)[0]
    found = mean_difference(half)
    assert found.weights == pytest.approx(half.x[half.positive].mean(0) - half.x[~half.positive].mean(0))
    expected = np.column_stack([mean_difference(without(half, cluster)).weights for cluster in range(60)])
    assert found.without == pytest.approx(expected)


def test_a_probe_is_scikit_learns_and_moves_by_a_newton_step() -> None:
    half = halves(3, 1.5)[0]
    found = probe(half, 2)
    assert found.chosen is not None
    assert 0 in found.chosen
    z = (half.x - half.x.mean(0))[:, found.chosen] / half.x.std(0)[found.chosen]
    fitted = LogisticRegression(class_weight="balanced").fit(z, half.positive)
    scale = half.x.std(0)[found.chosen]
    assert found.weights == pytest.approx(fitted.coef_[0] / scale, rel=1e-3)
    kept = half.of != 4
    again = LogisticRegression(class_weight="balanced").fit(z[kept], half.positive[kept])
    assert found.without is not None
    moved, exact = found.without[:, 4] - found.weights, again.coef_[0] / scale - found.weights
    assert moved == pytest.approx(exact, rel=0.35, abs=0.004)


@pytest.mark.parametrize("sparse", [False, True])
def test_selection_does_not_see_a_columns_scale(sparse: bool) -> None:
    half = halves(4, 1.0)[0]
    scale = np.array([1e-4, 1.0, 100.0, 1.0, 3.0])
    make: Callable[[Floats], object] = csr_array if sparse else np.asarray
    plain, scaled = replace(half, x=make(half.x)), replace(half, x=make(half.x * scale))
    assert d_prime(scaled) == pytest.approx(d_prime(plain))
    assert best_column(scaled).chosen == best_column(plain).chosen == [0]
    for k in (1, 3):
        ours = cross([probe(each, k) for each in (plain, plain)], (plain, plain), CLUSTERS)
        theirs = cross([probe(each, k) for each in (scaled, scaled)], (scaled, scaled), CLUSTERS)
        assert ours.value == pytest.approx(theirs.value, abs=1e-6)


def test_a_constant_column_separates_nothing() -> None:
    half = halves(5, 1.0)[0]
    x = half.x.copy()
    x[:, 1] = 0.1
    assert d_prime(replace(half, x=x))[1] == 0


FITS: dict[str, Callable[[Half], Reader]] = {
    "mean difference": mean_difference,
    "best column": best_column,
    "probe": lambda half: probe(half, 2),
}


def read(fit: Callable[[Half], Reader], seen: Sequence[Half]) -> Scored:
    return cross([fit(half) for half in seen], seen, CLUSTERS)


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_a_planted_concept_is_found_and_an_absent_one_is_chance(fit: Callable[[Half], Reader]) -> None:
    present = [read(fit, halves(seed, 2.5)).value for seed in range(20)]
    assert np.mean(present) > 0.9
    absent = [read(fit, halves(seed, 0.0)).value for seed in range(100)]
    assert np.mean(absent) == pytest.approx(0.5, abs=3 * np.std(absent) / 10)


def test_in_sample_the_absent_concept_would_look_present() -> None:
    """Why nothing is scored where it was fitted."""
    half = halves(0, 0.0, width=60)[0]
    assert auroc(half.x @ mean_difference(half).weights, half.positive) > 0.7
    assert abs(read(mean_difference, halves(0, 0.0, width=60)).value - 0.5) < 0.15


def test_dealt_labels_are_chance_and_a_planted_concept_is_beyond_them() -> None:
    seen = halves(6, 2.0)
    unit = seen[0].row % 45, seen[1].row % 45
    labels = [half.positive.copy() for half in seen]
    for label, each in zip(labels, unit, strict=True):
        label[:] = each % 3 == 0
    planted = []
    for half, label in zip(seen, labels, strict=True):
        x = half.x.copy()
        x[:, 0] += 2.0 * label - 2.0 * half.positive
        planted.append(Half(x, label, half.clusters, half.row, half.of))
    null, directions = permuted(planted[0], planted[1], unit, 200, seed=0)
    assert directions.shape == (WIDTH, 200)
    assert null.mean() == pytest.approx(0.5, abs=0.03)
    assert read(mean_difference, planted).value > np.quantile(null, 0.99)


def covered(values: Sequence[Scored]) -> tuple[int, float]:
    """How many intervals hold the mean of all values, and the mean standard error over the spread."""
    truth, spread = np.mean([each.value for each in values]), np.std([each.value for each in values])
    hits, errors = 0, []
    for each in values:
        estimate = Influence(each.value, leave_one_out(each.without, each.value))
        span = interval(estimate, 1 - CONFIDENCE)
        assert span is not None
        hits += span[0] <= truth <= span[1]
        errors.append((span[1] - span[0]) / 2)
    return hits, float(np.mean(errors) / (1.67 * spread))


def worse(x: Floats, seed: int) -> Floats:
    """What an SAE might make of x: the concept's axis at half its size, and noise."""
    return x * np.array([0.5, 1, 1, 1, 1]) + 0.5 * np.random.default_rng(seed + 10_000).normal(size=x.shape)


def change(seed: int) -> Scored:
    seen = halves(seed, 1.0)
    readers = [mean_difference(half) for half in seen]
    kept = [replace(half, x=worse(half.x, 2 * seed + row)) for row, half in enumerate(seen)]
    return cross(readers, kept, CLUSTERS) - cross(readers, seen, CLUSTERS)


def best_of_two(seed: int) -> Scored:
    """A concept that is the second axis by far: which column is best does not change from sample to sample."""
    return read(best_column, halves(seed, 1.5))


RUN: dict[str, Callable[[int], Scored]] = {
    "mean difference": lambda seed: read(mean_difference, halves(seed, 1.0)),
    "change": change,
    "best column": best_of_two,
    "probe": lambda seed: read(lambda half: probe(half, 2), halves(seed, 1.5)),
}


@pytest.mark.parametrize("run", RUN.values(), ids=RUN)
def test_intervals_cover_at_their_nominal_rate(run: Callable[[int], Scored]) -> None:
    """Of 120 simulations as many intervals miss as should, within what chance allows in one of a thousand tests.

    In smaller samples the error of a change is on the wide side: the jackknife counts what is of second order.
    """
    hits, width = covered([run(seed) for seed in range(RUNS)])
    low, high = binom.ppf([0.0005, 0.9995], RUNS, CONFIDENCE)
    assert low <= hits <= high
    assert width == pytest.approx(1, abs=0.15)
