"""The calibrated training objective: its best scales are those that `shrinkage` fits, and nothing else leaks."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sae_bench.measure.shared.scales import fit_scales
from sae_bench.run.rescale import CalibratedLoss, calibrated_loss


class Case(NamedTuple):
    """An SAE whose features are suppressed by known factors, in float64."""

    x: Tensor
    codes: Tensor
    W_dec: Tensor
    b_dec: Tensor
    factors: Tensor


@pytest.fixture(scope="module")
def case() -> Case:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W_dec, b_dec = torch.nn.functional.normalize(normal(24, 16), dim=1), normal(16)
    codes = (normal(2000, 24) - 0.5).relu()
    factors = 1 + torch.rand(24, generator=generator, dtype=torch.float64)
    x = (factors * codes) @ W_dec + b_dec + 0.3 * normal(2000, 16)
    return Case(x, codes, W_dec, b_dec, factors)


def loss(case: Case, scales: Tensor, sparsity: float = 0.0) -> CalibratedLoss:
    return calibrated_loss(case.x, case.codes, scales, case.W_dec, case.b_dec, sparsity)


def fitted(case: Case) -> Tensor:
    """t* without a pull towards s*, which the objective does not have."""
    y = case.x - case.b_dec
    return fit_scales(lambda: [(case.codes, y)], case.W_dec, minimum=1, ridge=0.0).per_feature


def test_the_fitted_scales_are_a_stationary_point_of_the_objective(case: Case) -> None:
    scales = fitted(case).requires_grad_()
    (slope,) = torch.autograd.grad(loss(case, scales, sparsity=0.1).total, scales)
    ones = torch.ones(24, dtype=torch.float64, requires_grad=True)
    (before,) = torch.autograd.grad(loss(case, ones, sparsity=0.1).total, ones)
    assert float(slope.abs().max()) < 1e-6 * float(before.abs().max())
    torch.testing.assert_close(scales.detach(), case.factors, atol=0.1, rtol=0)


def test_descent_of_the_objective_ends_at_the_fitted_scales(case: Case) -> None:
    scales = torch.ones(24, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS(
        [scales], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        descent.zero_grad()
        value = loss(case, scales, sparsity=0.1).total
        value.backward()
        return value

    descent.step(closure)
    torch.testing.assert_close(scales.detach(), fitted(case), atol=1e-6, rtol=1e-6)


def test_folded_into_the_decoder_the_scales_are_one(case: Case) -> None:
    """The fixed point: what was rescaled has nothing left to rescale."""
    again = case._replace(W_dec=fitted(case)[:, None] * case.W_dec)
    torch.testing.assert_close(fitted(again), torch.ones(24, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_decoder_gets_no_gradient_from_the_encoders_term(case: Case) -> None:
    W_dec, b_dec = (each.clone().requires_grad_() for each in (case.W_dec, case.b_dec))
    codes, scales = case.codes.clone().requires_grad_(), fitted(case).requires_grad_()
    found = calibrated_loss(case.x, codes, scales, W_dec, b_dec, 0.1)
    parameters = (W_dec, b_dec, scales, codes)

    def gradients(term: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)

    of_W, of_b, of_t, of_codes = gradients(found.encoder)
    assert not of_W.any()
    assert not of_b.any()
    assert not of_t.any()
    assert of_codes.abs().max() > 0
    assert all(each.abs().max() > 0 for each in (gradients(found.decoder)[index] for index in (0, 1, 3)))
    assert not any(each.any() for each in gradients(found.sparsity)[:3])


def test_with_scales_of_one_and_no_penalty_it_is_the_squared_error_twice(case: Case) -> None:
    found = loss(case, torch.ones(24, dtype=torch.float64))
    mse = (case.codes @ case.W_dec + case.b_dec - case.x).square().sum(-1).mean()
    assert found.encoder == mse
    assert found.decoder == mse
    assert found.sparsity == 0
    assert found.total == 2 * mse
    W_dec = case.W_dec.clone().requires_grad_()
    once = torch.autograd.grad((case.codes @ W_dec + case.b_dec - case.x).square().sum(-1).mean(), W_dec)[0]
    total = calibrated_loss(case.x, case.codes, torch.ones(24, dtype=torch.float64), W_dec, case.b_dec, 0.0).total
    torch.testing.assert_close(torch.autograd.grad(total, W_dec)[0], once)


def test_the_penalty_shrinks_codes_and_not_scales(case: Case) -> None:
    """Under a penalty the best code of a lone feature is short by half the coefficient; its scale makes it whole."""
    x, W_dec = torch.full((1, 1), 2.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    zero, coefficient = torch.zeros(1, dtype=torch.float64), 0.8
    code = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.SGD([code, scale], lr=0.05)
    for _ in range(2000):
        descent.zero_grad()
        calibrated_loss(x, code, scale, W_dec, zero, coefficient).total.backward()
        descent.step()
    assert float(code.detach()) == pytest.approx(2.0 - coefficient / 2, abs=1e-6)
    assert float((scale * code).detach()) == pytest.approx(2.0, abs=1e-6)
