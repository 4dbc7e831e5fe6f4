"""The fit on plain tensors: it equals a dense solve, however the tokens are cut, and finds what was planted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.errors import MeasurementError
from sae_bench.measure.shared import scales
from sae_bench.measure.shared.scales import Scales, Stream, fit_scales
from sae_bench.sae.sparse_codes import SparseCodes


def cut(codes: Tensor, y: Tensor, size: int = 100) -> Stream:
    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        return zip(codes.split(size), y.split(size), strict=True)

    return stream


def problem(
    seed: int = 0, n: int = 40, d: int = 16, tokens: int = 3000, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of an overlapping dictionary, its rows, what they should have written and each row's missing factor."""
    generator = torch.Generator().manual_seed(seed)
    rate = torch.linspace(0.01, 0.4, n)
    codes = torch.rand(tokens, n, generator=generator) * (torch.rand(tokens, n, generator=generator) < rate)
    decoder = torch.randn(n, d, generator=generator)
    factors = 1 + torch.rand(n, generator=generator)
    y = (codes * factors) @ decoder + 0.3 * torch.randn(tokens, d, generator=generator)
    return codes.to(dtype), decoder.to(dtype), y.to(dtype), factors


def dense(codes: Tensor, decoder: Tensor, y: Tensor, found: Scales, ridge: float = scales.RIDGE) -> Tensor:
    """t* from the n x n normal equations of the free features, in float64."""
    codes, decoder, y, free = codes.double(), decoder.double(), y.double(), found.free
    gram = (codes.T @ codes) * (decoder @ decoder.T)
    target = ((codes.T @ y) * decoder).sum(1)
    uniform = float(target.sum() / gram.sum())
    pull = ridge * gram.diagonal().mean() * torch.eye(int(free.sum()), dtype=torch.float64)
    t = torch.full_like(target, uniform)
    t[free] += torch.linalg.solve(gram[free][:, free] + pull, (target - uniform * gram.sum(1))[free])
    return t


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_conjugate_gradients_equal_a_dense_solve(dtype: torch.dtype, tolerance: float) -> None:
    codes, decoder, y, _ = problem(dtype=dtype)
    found = fit_scales(cut(codes, y), decoder)
    assert 0 < int((~found.free).sum()) < 10
    torch.testing.assert_close(found.per_feature, dense(codes, decoder, y, found), rtol=tolerance, atol=0)
    assert found.products < 200


def test_singular_dictionaries_have_scales_too() -> None:
    codes, decoder, y, _ = problem(n=60, d=3)
    decoder[1::2] = decoder[::2]
    codes[:, 1::2] = codes[:, ::2]
    found = fit_scales(cut(codes, y), decoder)
    torch.testing.assert_close(found.per_feature, dense(codes, decoder, y, found), rtol=1e-3, atol=0)


@pytest.mark.parametrize("size", [1, 7, 3000])
def test_the_cut_of_the_tokens_does_not_matter(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, decoder, y, _ = problem()
    whole = fit_scales(cut(codes, y), decoder)
    monkeypatch.setattr(scales, "TOKENS", 250)
    other = fit_scales(cut(codes, y, size), decoder)
    assert other.uniform == pytest.approx(whole.uniform, rel=1e-6)
    torch.testing.assert_close(other.per_feature, whole.per_feature, rtol=1e-5, atol=0)
    torch.testing.assert_close(other.refit, whole.refit, rtol=1e-5, atol=0)


def test_codes_that_do_not_fit_into_memory_are_computed_again() -> None:
    codes, decoder, y, _ = problem()
    passes = 0

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal passes
        passes += 1
        return cut(codes, y)()

    held = fit_scales(counted, decoder)
    assert passes == 1
    streamed = fit_scales(counted, decoder, memory_bytes=1000)
    assert passes == 2 + streamed.products
    torch.testing.assert_close(streamed.per_feature, held.per_feature, rtol=1e-6, atol=0)


def test_planted_factors_come_back() -> None:
    codes, decoder, y, factors = problem()
    found = fit_scales(cut(codes, y), decoder)
    free = found.free
    correlation = torch.corrcoef(torch.stack([found.per_feature[free], factors[free].double()]))[0, 1]
    assert correlation > 0.95


def test_rare_features_stay_at_the_uniform_scale_and_the_fits_nest() -> None:
    codes, decoder, y, _ = problem(tokens=1500)
    found = fit_scales(cut(codes, y), decoder)
    count = (codes != 0).sum(0)
    assert torch.equal(found.firings, count)
    assert torch.equal(found.free, count >= 100)
    assert (found.per_feature[~found.free] == found.uniform).all()

    def loss(t: Tensor | float) -> float:
        return float(((codes * t).double() @ decoder.double() - y).square().sum())

    assert loss(found.per_feature) < loss(found.uniform) < loss(1.0)
    assert loss(found.uniform) < min(loss(found.uniform - 0.01), loss(found.uniform + 0.01))


def test_with_no_frequent_feature_every_scale_is_the_uniform_one() -> None:
    codes, decoder, y, _ = problem()
    found = fit_scales(cut(codes, y), decoder, minimum=10**6)
    assert not found.free.any()
    assert (found.per_feature == found.uniform).all()


def test_refit_is_each_features_own_best_scale() -> None:
    codes, decoder, y, _ = problem(n=6, d=4)
    found = fit_scales(cut(codes, y), decoder)
    left = y - codes @ decoder
    alone = 1 + ((left @ decoder.T) * codes).sum(0) / (codes.square().sum(0) * decoder.square().sum(1))
    torch.testing.assert_close(found.refit, alone.double(), rtol=1e-4, atol=0)
    energy = (codes.square().sum(0) / (codes != 0).sum(0)).sqrt() * decoder.norm(dim=1)
    torch.testing.assert_close(found.strength, energy.double(), rtol=1e-5, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 10))
def test_order_and_units_of_features_do_not_matter(seed: int, unit: float) -> None:
    codes, decoder, y, _ = problem(seed, n=20, d=8, tokens=800, dtype=torch.float64)
    found = fit_scales(cut(codes, y), decoder)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    moved = fit_scales(cut(codes[:, order], y), decoder[order] * unit)
    assert moved.uniform * unit == pytest.approx(found.uniform, rel=1e-9)
    torch.testing.assert_close(moved.per_feature * unit, found.per_feature[order], rtol=1e-5, atol=0)


def test_an_sae_that_never_fires_is_an_error() -> None:
    codes, decoder, y, _ = problem()
    with pytest.raises(MeasurementError, match="no feature writes anything on the 3000 tokens"):
        fit_scales(cut(codes * 0, y), decoder)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_number_that_is_not_finite_is_an_error(which: int) -> None:
    given = list(problem()[:3])
    codes, decoder, y = given
    given[which][0, codes[0].argmax() if which == 0 else 0] = float("nan")
    with pytest.raises(MeasurementError, match="NaN"):
        fit_scales(cut(codes, y), decoder)


def test_sparse_products_are_dense_products() -> None:
    codes, decoder, y, factors = problem(dtype=torch.float64)
    parts = [SparseCodes.from_dense(part) for part in codes.split(7)]
    bags = SparseCodes.join(parts).bags()
    torch.testing.assert_close(bags.write(decoder), codes @ decoder)
    torch.testing.assert_close(bags.write(decoder, factors.double()), (codes * factors) @ decoder)
    torch.testing.assert_close(bags.project(decoder, y), ((codes.T @ y) * decoder).sum(1))
    some = torch.arange(40) % 3 == 0
    torch.testing.assert_close(
        SparseCodes.from_dense(codes).only(some).bags().write(decoder[some]), codes[:, some] @ decoder[some]
    )
