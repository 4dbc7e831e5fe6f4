"""Readers of a concept: scores and errors are those of the definitions, planted truths are found, intervals cover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import binom, kstest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.measurement import Influence
from sae_bench.measure.properties.concepts.probes import (
    Half,
    Probe,
    ProbeScore,
    auroc,
    auroc_without,
    cross_score,
    d_prime,
    fit_best_column,
    fit_mean_difference,
    fit_probe,
    permute_labels,
)
from sae_bench.measure.properties.concepts.series import p_value
from sae_bench.measure.uncertainty import interval, leave_one_out

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


def test_labels_that_are_all_alike_order_nothing() -> None:
    assert auroc(np.arange(3.0), np.ones(3, dtype=bool)) == 0.5


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
    found = fit_mean_difference(half)
    assert found.weights == pytest.approx(half.x[half.positive].mean(0) - half.x[~half.positive].mean(0))
    expected = np.column_stack([fit_mean_difference(without(half, cluster)).weights for cluster in range(60)])
    assert found.without == pytest.approx(expected)


def test_a_probe_is_scikit_learns_and_moves_by_a_newton_step() -> None:
    half = halves(3, 1.5)[0]
    found = fit_probe(half, 2)
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
    assert fit_best_column(scaled).chosen == fit_best_column(plain).chosen == [0]
    for k in (1, 3):
        ours = cross_score([fit_probe(each, k) for each in (plain, plain)], (plain, plain), CLUSTERS)
        theirs = cross_score([fit_probe(each, k) for each in (scaled, scaled)], (scaled, scaled), CLUSTERS)
        assert ours.value == pytest.approx(theirs.value, abs=1e-6)


def test_a_constant_column_separates_nothing() -> None:
    half = halves(5, 1.0)[0]
    x = half.x.copy()
    x[:, 1] = 0.1
    assert d_prime(replace(half, x=x))[1] == 0


FITS: dict[str, Callable[[Half], Probe]] = {
    "mean difference": fit_mean_difference,
    "best column": fit_best_column,
    "probe": lambda half: fit_probe(half, 2),
}


def read(fit: Callable[[Half], Probe], seen: Sequence[Half]) -> ProbeScore:
    return cross_score([fit(half) for half in seen], seen, CLUSTERS)


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_a_planted_concept_is_found_and_an_absent_one_is_chance(fit: Callable[[Half], Probe]) -> None:
    present = [read(fit, halves(seed, 2.5)).value for seed in range(20)]
    assert np.mean(present) > 0.9
    absent = [read(fit, halves(seed, 0.0)).value for seed in range(100)]
    assert np.mean(absent) == pytest.approx(0.5, abs=3 * np.std(absent) / 10)


def test_in_sample_the_absent_concept_would_look_present() -> None:
    """Why nothing is scored where it was fitted."""
    half = halves(0, 0.0, width=60)[0]
    assert auroc(half.x @ fit_mean_difference(half).weights, half.positive) > 0.7
    assert abs(read(fit_mean_difference, halves(0, 0.0, width=60)).value - 0.5) < 0.15


def words(seed: int, effect: float) -> tuple[list[Half], list[Ints]]:
    """Halves whose labels are those of 40 words each, every word with a meaning of its own; and the words."""
    rng = np.random.default_rng(seed)
    made, units = [], []
    for half in halves(seed, 0.0):
        unit = rng.integers(0, 40, len(half.positive))
        label, meaning = np.arange(40) % 3 == 0, rng.normal(size=(40, WIDTH))
        meaning[:, 0] += effect * label
        made.append(replace(half, x=half.x + meaning[unit], positive=label[unit]))
        units.append(unit)
    return made, units


def p_of(seed: int, effect: float) -> float:
    seen, unit = words(seed, effect)
    null, directions = permute_labels(seen, seen, [(each, each) for each in unit], 99, seed)
    assert directions.shape == (WIDTH, 99)
    return p_value(read(fit_mean_difference, seen).value, null)


def test_dealt_labels_are_what_chance_would_give() -> None:
    """p is uniform where words have meanings but the concept is none, and small where it is one."""
    absent = np.array([p_of(seed, 0.0) for seed in range(200)])
    assert kstest(absent, "uniform").pvalue > 0.001
    assert np.mean(absent <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert max(p_of(seed, 2.0) for seed in range(10)) == 0.01


def test_dealt_labels_are_those_of_the_words_in_both_parts_of_a_half() -> None:
    """A scored place of a word has the label that its word was dealt, although fewer places are scored."""
    seen, unit = words(3, 0.0)
    part = [slice(None, None, 2), slice(None, None, 2)]
    same = [replace(half, x=np.eye(40)[each]) for half, each in zip(seen, unit, strict=True)]
    fewer = [
        Half(half.x[rows], half.positive[rows], half.clusters, half.row[rows], half.of[rows])
        for half, rows in zip(same, part, strict=True)
    ]
    units = [(each, each[rows]) for each, rows in zip(unit, part, strict=True)]
    null, directions = permute_labels(same, fewer, units, 50, 0)
    positive = directions > 0
    assert (positive.sum(0) == (np.arange(40) % 3 == 0).sum()).all()
    assert null.std() > 0


def covered(values: Sequence[ProbeScore]) -> tuple[int, float]:
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


def change(seed: int) -> ProbeScore:
    seen = halves(seed, 1.0)
    readers = [fit_mean_difference(half) for half in seen]
    kept = [replace(half, x=worse(half.x, 2 * seed + row)) for row, half in enumerate(seen)]
    return cross_score(readers, kept, CLUSTERS) - cross_score(readers, seen, CLUSTERS)


def best_of_two(seed: int) -> ProbeScore:
    """A concept that is the second axis by far: which column is best does not change from sample to sample."""
    return read(fit_best_column, halves(seed, 1.5))


RUN: dict[str, Callable[[int], ProbeScore]] = {
    "mean difference": lambda seed: read(fit_mean_difference, halves(seed, 1.0)),
    "change": change,
    "best column": best_of_two,
    "probe": lambda seed: read(lambda half: fit_probe(half, 2), halves(seed, 1.5)),
}


@pytest.mark.parametrize("run", RUN.values(), ids=RUN)
def test_intervals_cover_at_their_nominal_rate(run: Callable[[int], ProbeScore]) -> None:
    """Of 120 simulations as many intervals miss as should, within what chance allows in one of a thousand tests.

    In smaller samples the error of a change is on the wide side: the jackknife counts what is of second order.
    """
    hits, width = covered([run(seed) for seed in range(RUNS)])
    low, high = binom.ppf([0.0005, 0.9995], RUNS, CONFIDENCE)
    assert low <= hits <= high
    assert width == pytest.approx(1, abs=0.15)
