"""Hubs, ties, modes; matching of two dictionaries; crosstalk of active sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_bench.measure.geometry import (
    Neighbours,
    cosine_peaks,
    crosstalk,
    gini,
    largest_matching,
    match_directions,
    nearest_neighbours,
    neighbour_in_degrees,
    row_cosines,
)
from sae_bench.measure.geometry import matching as matching_module
from sae_bench.sae.sparse_codes import SparseCodes

Rows = Callable[..., Tensor]


def all_of(W_dec: Tensor) -> Neighbours:
    return nearest_neighbours(W_dec, torch.ones(len(W_dec), dtype=torch.bool))[0]


def around(centre: Tensor, cosine: float, noise: Tensor) -> Tensor:
    """Rows at one cosine with ``centre``, their other part as in ``noise``."""
    across = noise - (noise @ centre)[:, None] * centre
    return cosine * centre + (1 - cosine**2) ** 0.5 * torch.nn.functional.normalize(across, dim=1)


def test_in_degrees_are_those_of_the_graph(rows: Rows) -> None:
    W_dec = rows(500, 12)
    units = torch.nn.functional.normalize(W_dec.double(), dim=1)
    nearest = (units @ units.T).fill_diagonal_(-2).argmax(1)
    assert np.array_equal(neighbour_in_degrees(all_of(W_dec)), np.bincount(nearest.numpy(), minlength=500))


def test_a_basis_has_no_hub() -> None:
    # All neighbours tie, and there are more of them than are kept.
    assert neighbour_in_degrees(all_of(torch.cat([torch.eye(80), -torch.eye(80)]))).sum() == 0


def test_ties_share_the_vote() -> None:
    # Of a small basis all neighbours are known: each of the nine others gets a ninth.
    assert neighbour_in_degrees(all_of(torch.eye(10))) == pytest.approx(np.ones(10))


def test_triplets_of_copies_share_votes(rows: Rows) -> None:
    W_dec = rows(300, 12).repeat(3, 1)
    assert neighbour_in_degrees(all_of(W_dec)) == pytest.approx(np.ones(900))


def test_gini() -> None:
    assert gini(np.ones(7)) == pytest.approx(0)
    assert gini(np.array([0.0, 0, 0, 5])) == pytest.approx(0.75)
    assert gini(np.zeros(4)) == 0
    values = np.random.default_rng(0).exponential(size=50)
    pairs = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert gini(values) == pytest.approx(pairs)


def test_a_hub_and_pairs_look_alike_until_asked(rows: Rows) -> None:
    d, n = 256, 1200
    background = rows(n, d)
    hub = torch.nn.functional.normalize(rows(1, d, seed=9), dim=1)[0]
    crowd = around(hub, 0.8, rows(300, d, seed=2))
    one = cosine_peaks(all_of(torch.cat([background, hub[None], crowd])))
    partners = torch.nn.functional.normalize(rows(300, d, seed=3), dim=1)
    paired = torch.stack([around(p, 0.8, noise[None])[0] for p, noise in zip(partners, crowd, strict=True)])
    many = cosine_peaks(all_of(torch.cat([background, partners, paired])))
    assert len(one) == len(many) == 2
    assert one[1].centre == pytest.approx(0.8, abs=0.05)
    assert many[1].centre == pytest.approx(0.8, abs=0.05)
    assert one[1].concentration > 0.95
    assert one[1].neighbour == n
    assert many[1].concentration < 0.01
    assert one[0].features + one[1].features == n + 301
    assert one[0].concentration < 0.05


def test_noise_is_no_mode(rows: Rows) -> None:
    for seed in range(5):
        assert len(cosine_peaks(all_of(rows(512, 64, seed=seed)))) == 1


def test_copies_are_a_mode_at_one(rows: Rows) -> None:
    W_dec = rows(400, 64)
    W_dec[:60] = W_dec[60:120]
    found = cosine_peaks(all_of(W_dec))
    assert found[-1].centre == pytest.approx(1, abs=0.02)
    assert found[-1].features == 120


def test_compare_is_the_naive_maximum(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching_module, "BLOCK", 50)
    a, b = rows(130, 8), rows(170, 8, seed=1)
    b[:40] = a[90:] * 3 + 0.1 * b[:40]
    products = torch.nn.functional.normalize(a.double(), dim=1) @ torch.nn.functional.normalize(b.double(), dim=1).T
    found = match_directions(a, b)
    torch.testing.assert_close(found.best_of_a.double(), products.amax(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.best_of_b.double(), products.amax(0), atol=1e-6, rtol=0)
    assert found.pairs is not None
    assert {*zip(*(each.tolist() for each in found.pairs), strict=True)} == {
        *zip(*(each.tolist() for each in (products >= 0.7).nonzero(as_tuple=True)), strict=True)
    }


def test_dictionaries_alike_everywhere_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching_module, "MOST_PAIRS", 99)
    assert match_directions(torch.ones(10, 4), torch.ones(10, 4)).pairs is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 12), m=st.integers(1, 12))
def test_the_largest_matching_is_the_assignment_problems(seed: int, n: int, m: int) -> None:
    close = np.random.default_rng(seed).random((n, m)) < 0.25
    rows, columns = (torch.from_numpy(each) for each in np.nonzero(close))
    best = linear_sum_assignment(close.astype(float), maximize=True)
    assert largest_matching(rows, columns, n, m) == close[best].sum()


def test_cosines_of_pairs() -> None:
    a, b = torch.tensor([[1.0, 0], [0, 0], [3, 4]]), torch.tensor([[5.0, 0], [0, 2]])
    found = row_cosines(a, b, torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0, 0, 1]))
    assert found.tolist() == pytest.approx([0, 0, 0.6, 0.8])


def naive_crosstalk(codes: Tensor, directions: Tensor) -> tuple[list[float], list[float]]:
    read, random = [], []
    products = directions.double() @ directions.double().T
    for code in codes.double():
        active = code.nonzero().flatten().tolist()
        pairs = [(i, j) for i in active for j in active if i != j]
        read.append(float(sum(code[j] ** 2 * products[i, j] ** 2 for i, j in pairs)))
        random.append(float(sum(code[j] ** 2 for _, j in pairs)) / directions.shape[1])
    return read, random


def test_crosstalk_is_the_naive_sum(rows: Rows) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(40, 30, generator=generator) * (torch.rand(40, 30, generator=generator) < 0.2)
    codes[3], codes[4] = 0, 0
    codes[4, 7] = 2
    directions = torch.nn.functional.normalize(rows(30, 6), dim=1)
    read, random = crosstalk(SparseCodes.from_dense(codes), directions, torch.arange(len(codes)))
    expected = naive_crosstalk(codes, directions)
    assert read.tolist() == pytest.approx(expected[0], rel=1e-5)
    assert random.tolist() == pytest.approx(expected[1], rel=1e-6)
    some = torch.tensor([9, 3, 4, 30])
    found = crosstalk(SparseCodes.from_dense(codes), directions, some)
    for part, whole in zip(found, (read, random), strict=True):
        torch.testing.assert_close(part, whole[some])


def test_random_directions_have_no_excess(rows: Rows) -> None:
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(rows(3000, 64), dim=1)
    for active in (0.001, 0.01):
        codes = torch.rand(600, 3000, generator=generator)
        codes *= torch.rand(600, 3000, generator=generator) < active
        read, random = crosstalk(SparseCodes.from_dense(codes), directions, torch.arange(len(codes)))
        assert float(read.sum() / random.sum()) == pytest.approx(1, abs=0.05)
