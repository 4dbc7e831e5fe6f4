"""Composed features: planted sums are found, each once; near-copies and random directions are not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from sae_bench.measure.geometry import CLOSE_COSINE, ComposedSets, find_composed_sets, nearest_neighbours

Rows = Callable[..., Tensor]


def find(W_dec: Tensor) -> ComposedSets:
    found, _ = nearest_neighbours(W_dec, torch.ones(len(W_dec), dtype=torch.bool))
    return find_composed_sets(W_dec, found.features, found.cosine, found.index)


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def plant(W_dec: Tensor, atoms: int, sets: int = 20, seed: int = 5) -> tuple[Tensor, set[frozenset[int]]]:
    """Sums of unit directions in place of some rows; no atom reaches 0.9 alone, nor do two of three."""
    W_dec = W_dec.clone()
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(len(W_dec), generator=generator)[: sets * (atoms + 1)].view(sets, atoms + 1)
    for row in places:
        weights = 0.9 + 0.2 * torch.rand(atoms, 1, generator=generator)
        W_dec[row[0]] = 3 * (weights * unit(W_dec[row[1:]])).sum(0)
    return W_dec, {frozenset(row.tolist()) for row in places}


def as_sets(found: ComposedSets) -> list[frozenset[int]]:
    return [frozenset(member for member in row if member >= 0) for row in found.sets.tolist()]


@pytest.mark.parametrize("atoms", [2, 3])
@pytest.mark.parametrize(("n", "d"), [(512, 64), (1000, 128)])
def test_twenty_planted_are_found_as_twenty(atoms: int, n: int, d: int, rows: Rows) -> None:
    W_dec, planted = plant(rows(n, d), atoms)
    found = find(W_dec)
    assert sorted(map(sorted, as_sets(found))) == sorted(map(sorted, planted))
    assert found.share == pytest.approx(20 / n)


def test_a_random_dictionary_has_none(rows: Rows) -> None:
    assert find(rows(1000, 96)).share == 0


def test_near_copies_are_not_counted(rows: Rows) -> None:
    W_dec = rows(600, 64)
    W_dec[:200] = W_dec[200:400] + 0.02 * rows(200, 64, seed=1)
    assert find(W_dec).share == 0


def test_near_copies_of_a_sum_or_of_its_parts_make_no_further_sets(rows: Rows) -> None:
    W_dec, planted = plant(rows(600, 64), 2)
    free = [i for i in range(600) if all(i not in members for members in planted)]
    for place, members in zip(free, sorted(map(sorted, planted)), strict=False):
        W_dec[place] = W_dec[members[place % 3]] * 1.7 + 0.01 * W_dec[place]
    assert len(find(W_dec).sets) == 20


def test_crowds_of_copies_hide_no_atoms(rows: Rows) -> None:
    # Forty near-copies of the sum stand before its atoms among its neighbours.
    W_dec = rows(400, 64)
    W_dec[0] = unit(W_dec[1:2])[0] + unit(W_dec[2:3])[0]
    W_dec[100:140] = W_dec[0] + 0.02 * W_dec[100:140]
    [members] = as_sets(find(W_dec))
    assert {1, 2} < members


def test_an_atom_that_says_it_all_is_no_composition() -> None:
    W_dec = torch.eye(8)
    W_dec[0] = torch.tensor([0.0, 1, 0.3, 0, 0, 0, 0, 0])
    assert find(W_dec).share == 0
    W_dec[0] = torch.tensor([0.0, 1, 0.6, 0, 0, 0, 0, 0])
    assert as_sets(find(W_dec)) == [frozenset({0, 1, 2})]


def test_weights_must_be_positive() -> None:
    W_dec = torch.eye(8)
    W_dec[0] = torch.tensor([0.0, -1, -1, 0, 0, 0, 0, 0])
    assert find(W_dec).share == 0
    # f = e1 - e2 is no such sum, but e1 is: of f and e2.
    W_dec[0] = torch.tensor([0.0, 1, -1, 0, 0, 0, 0, 0])
    assert find(W_dec).sets[:, 0].tolist() == [1]


def test_twins_divide_by_nothing(rows: Rows) -> None:
    # Exact copies among the atoms make every Gram matrix singular.
    W_dec = rows(60, 16)
    W_dec[30:] = 2 * W_dec[:30]
    W_dec[0] = unit(W_dec[1:2])[0] + unit(W_dec[2:3])[0]
    assert len([s for s in as_sets(find(W_dec)) if 0 in s]) == 1


def test_equal_to_non_negative_least_squares(rows: Rows) -> None:
    n = 14
    W_dec = rows(n, 4, seed=3)
    units = unit(W_dec.double()).numpy()
    expected = set()
    for f in range(n):
        allowed = [i for i in range(n) if i != f and units[f] @ units[i] <= CLOSE_COSINE]
        for size in (2, 3):
            reached = {
                members: float(np.sqrt(max(1 - nnls(units[list(members)].T, units[f])[1] ** 2, 0)))
                for members in combinations(allowed, size)
            }
            best = max(reached, key=lambda members: reached[members])
            if reached[best] > CLOSE_COSINE:
                expected.add(frozenset((f, *best)))
                break
    assert expected
    assert set(as_sets(find(W_dec))) == expected


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_features(n: int) -> None:
    assert find(torch.eye(n)).share == 0
