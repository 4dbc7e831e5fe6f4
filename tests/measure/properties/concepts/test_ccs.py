"""Contrast-consistent search: a planted truth is found, imbalance hardly hurts, a distractor wins where it must."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binom

from sae_bench.measure.arrays import Floats
from sae_bench.measure.properties.concepts.ccs import (
    first_component,
    imbalance_curves,
    match_pairs,
    pair_differences,
    principal_axes,
    search_truth,
    truth_salience,
)
from sae_bench.measure.properties.concepts.probes import Half, ProbeScore, cross_score
from tests.measure.properties.concepts.test_probes import CONFIDENCE, covered

CLUSTERS, WIDTH = 120, 6


def pairs(seed: int, strength: float, other: float = 0.0, noise: float = 1.0, each: int = 4) -> tuple[Half, Half]:
    """Pairs whose difference has the truth on the first axis, and natural variance ``other`` on the second."""
    rng = np.random.default_rng(seed)
    made = []
    for half in (0, 1):
        clusters = np.arange(half, CLUSTERS, 2)
        of = np.tile(np.arange(len(clusters)), each)
        difference = noise * rng.normal(size=(len(of), WIDTH))
        difference[:, 0] += strength
        difference[:, 1] += other * rng.normal(size=len(of))
        row = np.arange(len(of))
        made.append(
            Half(
                np.concatenate([difference, -difference]),
                np.arange(2 * len(of)) < len(of),
                clusters,
                np.concatenate([row, row + len(of)]),
                np.concatenate([of, of]),
            )
        )
    return made[0], made[1]


def alone(seen: tuple[Half, Half]) -> ProbeScore:
    """The search without its curves."""
    axes = [principal_axes(half.x[: len(half.x) // 2]) for half in seen]
    return cross_score([first_component(half, each) for half, each in zip(seen, axes, strict=True)], seen, CLUSTERS)


def curves(seen: tuple[Half, Half], shares: list[float], strengths: list[float], seed: int = 0) -> Floats:
    axes = principal_axes(seen[0].x[: len(seen[0].x) // 2])
    return imbalance_curves(seen[0], seen[1], axes, seed, shares, strengths)


def test_a_planted_truth_is_found_and_stands_out() -> None:
    seen = pairs(0, strength=3.0, noise=0.5)
    found = search_truth(seen, CLUSTERS, 0)
    assert found.auroc.value > 0.99
    assert found.auroc.value == alone(seen).value
    assert found.truth[0, 0] == pytest.approx(found.auroc.value, abs=0.01)
    share, rank = truth_salience(seen, CLUSTERS)
    assert share.value == pytest.approx(1, abs=0.01)
    assert rank.value == 1


def test_what_varies_more_than_the_truth_is_found_instead() -> None:
    seen = pairs(0, strength=3.0, other=5.0, noise=0.5)
    assert search_truth(seen, CLUSTERS, 0).auroc.value == pytest.approx(0.5, abs=0.12)
    share, rank = truth_salience(seen, CLUSTERS)
    assert share.value == pytest.approx(9.25 / 25.25, rel=0.15)
    assert rank.value == 2


def test_without_a_truth_the_search_is_at_chance() -> None:
    found = [alone(pairs(seed, strength=0.0)).value for seed in range(60)]
    assert np.mean(found) == pytest.approx(0.5, abs=3 * np.std(found) / np.sqrt(60))


def test_imbalance_alone_hardly_hurts() -> None:
    truth = curves(pairs(1, strength=3.0, noise=0.3), [0.5, 0.8, 0.95], [0.0])[0, 0]
    assert truth.min() > 0.99


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.7, 0.9])
def test_a_distractor_wins_where_it_keeps_more_variance(rho: float) -> None:
    """4 p (1 - p) = rho^2, within what one pair in fifty more or less would change."""
    crossing = (1 + np.sqrt(1 - rho**2)) / 2
    before, after = crossing - 0.02, crossing + 0.02
    seen = pairs(2, strength=3.0, noise=0.05, each=40)
    truth, distractor = curves(seen, [before, after], [rho])[:, 0]
    assert truth[0] > 0.95 > 0.8 > distractor[0]
    assert distractor[1] > 0.95 > 0.8 > truth[1]


def test_intervals_of_the_search_cover_at_their_nominal_rate() -> None:
    runs = 120
    hits, width = covered([alone(pairs(seed, strength=1.2)) for seed in range(runs)])
    low, high = binom.ppf([0.0005, 0.9995], runs, CONFIDENCE)
    assert low <= hits <= high
    assert width == pytest.approx(1, abs=0.15)


def test_pairs_stand_alike_and_words_stay_together() -> None:
    placed = SimpleNamespace(
        half=np.array([0, 0, 0, 0, 1, 0, 0]),
        position=np.array([9, 2, 3, 8, 5, 7, 1]),
        positive=np.array([True, True, False, False, True, False, True]),
        pair=np.array([0, 0, 0, 0, 0, 1, 1]),
    )
    assert match_pairs(placed, 0).tolist() == [[0, 3], [1, 2], [5, 4]]  # type: ignore[arg-type]


def test_a_pair_goes_with_both_of_its_clusters() -> None:
    half = Half(
        np.arange(8.0).reshape(4, 2) ** 2,
        np.array([True, False, True, False]),
        np.array([3, 7]),
        np.arange(4),
        np.array([0, 0, 1, 0]),
    )
    found = pair_differences(half, np.array([[0, 1], [2, 3]]))
    assert found.x == pytest.approx(np.array([[-4, -8], [-20, -24], [4, 8], [20, 24]]))
    assert found.positive.tolist() == [True, True, False, False]
    assert {(int(row), int(of)) for row, of in zip(found.row, found.of, strict=True)} == {
        (0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1),
    }  # fmt: skip
