"""Corrections for several tests, against their definitions written out test by test."""

from __future__ import annotations

import numpy as np
import pytest

from sae_bench.measure.shared.multiple_testing import benjamini_hochberg, holm

DRAWS = [np.random.default_rng(seed).random(size) ** power for seed, size, power in ((0, 12, 3), (1, 1, 1), (2, 40, 1))]
TIES = np.array([0.04, 0.01, 0.04, 0.5, 0.01, 1.0])


@pytest.mark.parametrize("p", [*DRAWS, TIES], ids=["few", "one", "many", "ties"])
def test_holm_multiplies_by_the_number_of_tests_that_are_left(p: np.ndarray) -> None:
    rank = np.argsort(np.argsort(p, kind="stable"))
    stepped = (len(p) - rank) * p
    expected = [min(1.0, max(stepped[rank <= rank[index]])) for index in range(len(p))]
    assert holm(p.tolist()) == pytest.approx(expected)


def test_holm_of_known_values() -> None:
    assert holm([0.01, 0.04]) == pytest.approx([0.02, 0.04])
    assert holm([0.03, 0.04]) == pytest.approx([0.06, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize("p", [*DRAWS, TIES], ids=["few", "one", "many", "ties"])
def test_benjamini_hochberg_rejects_up_to_the_last_p_below_its_line(p: np.ndarray) -> None:
    adjusted = benjamini_hochberg(p)
    ordered = np.sort(p)
    for level in (0.01, 0.05, 0.1, 0.3):
        below = np.flatnonzero(ordered <= level * np.arange(1, len(p) + 1) / len(p))
        assert (adjusted <= level).sum() == (below[-1] + 1 if len(below) else 0)
    assert adjusted == pytest.approx([min(1.0, min(len(p) * p[p >= q] / (p[:, None] <= p[p >= q]).sum(0))) for q in p])
