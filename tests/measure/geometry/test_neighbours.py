"""The blocked pass gives what a naive n x n computation in float64 gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.demo.paths import ARCHITECTURES, SAES
from sae_bench.errors import MeasurementError
from sae_bench.measure.geometry import (
    Neighbours,
    frame_potential_excess,
    gini,
    nearest_neighbours,
    neighbour_in_degrees,
    rms_cosine,
    welch_bound,
)
from sae_bench.sae.formats import read_sae

Rows = Callable[..., Tensor]


@dataclass
class Naive:
    """All products at once, in float64."""

    W_dec: Tensor
    features: Tensor

    def __post_init__(self) -> None:
        units = torch.nn.functional.normalize(self.W_dec[self.features].double(), dim=1)
        self.n, self.d = units.shape
        self.products = units @ units.T
        self.others = self.products.clone().fill_diagonal_(-torch.inf)

    def check(self, found: Neighbours, tolerance: float = 1e-6) -> None:
        k = min(100, self.n - 1)
        assert torch.equal(found.features, self.features)
        assert found.cosine.shape == found.index.shape == (self.n, k)
        torch.testing.assert_close(found.cosine.double(), self.others.topk(k, dim=1).values, atol=tolerance, rtol=0)
        # Which neighbour it is: the product with it must be the cosine that was found.
        place = torch.searchsorted(self.features, found.index.long())
        named = self.others.gather(1, place)
        torch.testing.assert_close(named, found.cosine.double(), atol=tolerance, rtol=0)
        assert all(len(set(row)) == k for row in found.index.tolist())
        off = self.products.clone().fill_diagonal_(0).abs()
        assert found.coherence == pytest.approx(float(off.max()), abs=tolerance)
        if self.n > 1:
            assert found.absolute_mean == pytest.approx(float(off.sum()) / (self.n * (self.n - 1)), abs=tolerance)
            mean_square = float(off.square().sum()) / (self.n * (self.n - 1))
            assert rms_cosine(found) == pytest.approx(mean_square**0.5, abs=tolerance)
        excess = float(self.products.square().sum()) * self.d / self.n**2 - 1
        assert frame_potential_excess(found) == pytest.approx(excess, abs=10 * tolerance)


CASES = [
    (1, 3, 1.0),
    (2, 3, 1.0),
    (101, 5, 1.0),
    (150, 8, 0.5),
    (700, 64, 0.9),
    (1024, 16, 1.0),
    (1100, 8, 0.999),
    (2200, 16, 0.4),
    (2200, 16, 0.02),
]


@pytest.mark.parametrize(("n", "d", "share"), CASES)
def test_equal_to_the_naive_computation(n: int, d: int, share: float, rows: Rows) -> None:
    W_dec = rows(n, d, seed=n)
    alive = torch.rand(n, generator=torch.Generator().manual_seed(1)) < share
    alive[0] = True
    among_alive, among_all = nearest_neighbours(W_dec, alive)
    Naive(W_dec, alive.nonzero().flatten()).check(among_alive)
    Naive(W_dec, torch.arange(n)).check(among_all)


@pytest.mark.parametrize("path", SAES.values(), ids=SAES.keys())
def test_demo_saes_equal_the_naive_computation(path: Path) -> None:
    check_trained(str(path))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_real_saes_equal_the_naive_computation(name: str, real_assets: Path) -> None:
    check_trained(str(real_assets / "saes" / f"{name}-l3"))


def check_trained(path: str) -> None:
    W_dec = read_sae(path).W_dec
    assert W_dec is not None
    alive = torch.rand(len(W_dec), generator=torch.Generator().manual_seed(1)) < 0.8
    among_alive, among_all = nearest_neighbours(W_dec, alive)
    Naive(W_dec, alive.nonzero().flatten()).check(among_alive)
    Naive(W_dec, torch.arange(len(W_dec))).check(among_all)


def test_orders_that_fight_the_bars(rows: Rows) -> None:
    # Sorted along one direction, with a crowd of near-copies and two that point the other way.
    base = rows(1400, 24)
    base[:800] = base[0] + 0.1 * base[:800]
    base[-2:] = -base[:2]
    W_dec = base[base[:, 0].argsort()]
    Naive(W_dec, torch.arange(1400)).check(nearest_neighbours(W_dec, torch.ones(1400, dtype=torch.bool))[0])


def test_small_blocks_give_the_same(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec, alive = rows(900, 12), torch.arange(900) % 3 > 0
    monkeypatch.setattr(sys.modules["sae_bench.measure.geometry.neighbours"], "BLOCK", 37)
    among_alive, among_all = nearest_neighbours(W_dec, alive)
    Naive(W_dec, alive.nonzero().flatten()).check(among_alive)
    Naive(W_dec, torch.arange(900)).check(among_all)


def test_no_dead_feature_means_one_result(rows: Rows) -> None:
    among_alive, among_all = nearest_neighbours(rows(300, 8), torch.ones(300, dtype=torch.bool))
    assert among_alive is among_all


def test_zero_rows_are_left_out(rows: Rows) -> None:
    W_dec = rows(130, 8)
    W_dec[[3, 77]] = 0
    among_alive, among_all = nearest_neighbours(W_dec, torch.arange(130) != 5)
    kept = torch.tensor([i for i in range(130) if i not in (3, 77)])
    Naive(W_dec, kept).check(among_all)
    Naive(W_dec, kept[kept != 5]).check(among_alive)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_weights_are_named(bad: float, rows: Rows) -> None:
    W_dec = rows(20, 4)
    W_dec[7, 2] = bad
    with pytest.raises(MeasurementError, match="feature 7"):
        nearest_neighbours(W_dec, torch.ones(20, dtype=torch.bool))


def test_nothing_alive_is_an_error(rows: Rows) -> None:
    with pytest.raises(MeasurementError, match="none of the 20 features"):
        nearest_neighbours(rows(20, 4), torch.zeros(20, dtype=torch.bool))


def test_a_copy_is_the_nearest_of_both(rows: Rows) -> None:
    W_dec = rows(400, 16)
    W_dec[33] = 2.5 * W_dec[310]
    found, _ = nearest_neighbours(W_dec, torch.ones(400, dtype=torch.bool))
    assert found.cosine[33, 0].item() == pytest.approx(1, abs=1e-6)
    assert found.cosine[310, 0].item() == pytest.approx(1, abs=1e-6)
    assert (found.index[33, 0].item(), found.index[310, 0].item()) == (310, 33)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 260), d=st.integers(2, 20), dead=st.floats(0, 0.9))
def test_invariances(seed: int, n: int, d: int, dead: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(n, d, generator=generator)
    alive = torch.rand(n, generator=generator) >= dead
    alive[:2] = True
    order = torch.randperm(n, generator=generator)
    scale = torch.exp(8 * torch.rand(n, 1, generator=generator) - 4)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    plain = nearest_neighbours(W_dec, alive)
    changed = {
        "permuted": nearest_neighbours(W_dec[order], alive[order]),
        "rescaled": nearest_neighbours(W_dec * scale, alive),
        "rotated": nearest_neighbours((W_dec.double() @ rotation).float(), alive),
    }
    for name, others in changed.items():
        for before, after in zip(plain, others, strict=True):
            expected = before.cosine
            if name == "permuted":
                expected = expected[torch.searchsorted(before.features, order[after.features])]
            torch.testing.assert_close(after.cosine, expected, atol=2e-6, rtol=0, msg=name)
            assert after.coherence == pytest.approx(before.coherence, abs=2e-6)
            assert after.absolute_mean == pytest.approx(before.absolute_mean, abs=2e-6)
            # Whether two neighbours tie is for rounding to say where they differ by hardly more than it.
            if before.cosine.shape[1] > 1 and bool((before.cosine[:, 0] - before.cosine[:, 1] > 1e-5).all()):
                assert neighbour_in_degrees(after).max() == pytest.approx(neighbour_in_degrees(before).max())
                assert gini(neighbour_in_degrees(after)) == pytest.approx(gini(neighbour_in_degrees(before)))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(3, 200))
def test_dead_features_change_only_what_counts_all(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    W_dec, more = torch.randn(n, 8, generator=generator), torch.randn(n, 8, generator=generator)
    alone, _ = nearest_neighbours(W_dec, torch.ones(n, dtype=torch.bool))
    among_alive, among_all = nearest_neighbours(torch.cat([W_dec, more]), torch.arange(2 * n) < n)
    assert torch.equal(among_alive.features, alone.features)
    torch.testing.assert_close(among_alive.cosine, alone.cosine, atol=1e-6, rtol=0)
    assert among_alive.coherence == pytest.approx(alone.coherence, abs=1e-6)
    assert among_all.n == 2 * n


def test_no_product_is_larger_than_a_block(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def watched(*args: Tensor, out: Tensor) -> Tensor:
        sizes.append(out.numel())
        return torch.matmul(*args, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    nearest_neighbours(rows(5000, 4), torch.ones(5000, dtype=torch.bool))
    assert max(sizes) <= 1024**2
    # Five blocks have fifteen pairs, the symmetry used.
    assert len(sizes) == 15


@pytest.mark.parametrize("sae", ["standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka"])
def test_real_dictionaries(sae: str, real_assets: Path) -> None:
    from sae_bench.sae.formats import read_sae

    W_dec = read_sae(str(real_assets / "saes" / f"{sae}-l3")).W_dec
    alive = torch.arange(len(W_dec)) % 50 > 0
    among_alive, among_all = nearest_neighbours(W_dec, alive)
    Naive(W_dec, alive.nonzero().flatten()).check(among_alive)
    Naive(W_dec, torch.arange(len(W_dec))).check(among_all)


def test_welch_bound() -> None:
    assert welch_bound(8192, 512) == pytest.approx(0.0428, abs=5e-5)
    assert welch_bound(24576, 768) == pytest.approx(0.0355, abs=5e-5)
    assert welch_bound(512, 512) == 0.0
