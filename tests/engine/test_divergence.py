"""Distances of distributions against float64 arithmetic on the whole vocabulary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.engine import divergence
from sae_bench.engine.divergence import divergences, log_softmax_, surprise


def logits(seed: int, scale: float, shift: float, vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(5, vocabulary, generator=generator) + shift


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.sampled_from([-3000.0, -90.0, 0.0, 500.0]),
    st.sampled_from([7, 2048, 2049, 5000]),
)
def test_everything_equals_float64(seed: int, scale: float, shift: float, vocabulary: int) -> None:
    p, q = logits(seed, scale, shift, vocabulary), logits(seed + 1, scale, shift, vocabulary)
    following = torch.arange(5) % vocabulary
    logp, logq = p.double().log_softmax(-1), q.double().log_softmax(-1)
    clean = log_softmax_(p.clone())
    torch.testing.assert_close(clean.double(), logp, rtol=1e-6, atol=3e-6)
    found = divergences(clean, q.clone(), following, distances=True).double()
    torch.testing.assert_close(found[:, 0], (logp.exp() * (logp - logq)).sum(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[:, 1], surprise(logq, following), rtol=1e-6, atol=3e-6)
    torch.testing.assert_close(found[:, 2], (logp - logq).norm(dim=-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[:, 3], (logp.exp() - logq.exp()).abs().sum(-1) / 2, rtol=1e-5, atol=1e-6)
    assert torch.equal(divergences(clean, q.clone(), following, distances=False).double(), found[:, :2])


def test_the_same_logits_are_no_distance_apart_to_the_last_bit() -> None:
    given_logits = logits(0, 30.0, -90.0, 5000)
    found = divergences(log_softmax_(given_logits.clone()), given_logits, torch.arange(5), distances=True)
    assert not found[:, [0, 2, 3]].any()


@pytest.mark.parametrize("width", [16, 1000, 5000])
def test_slices_change_nothing_but_rounding(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = log_softmax_(logits(0, 3.0, -90.0, 5000)), logits(1, 3.0, -90.0, 5000)
    whole = divergences(p, q.clone(), torch.arange(5), distances=True)
    monkeypatch.setattr(divergence, "SLICE", width)
    torch.testing.assert_close(divergences(p, q, torch.arange(5), distances=True), whole, rtol=1e-6, atol=1e-6)


def test_nan_and_infinity_are_not_hidden() -> None:
    p = log_softmax_(logits(0, 1.0, 0.0, 3000))
    for bad in (float("nan"), float("inf")):
        q = logits(1, 1.0, 0.0, 3000)
        q[2, 2900] = bad
        found = divergences(p, q, torch.arange(5), distances=True)
        assert torch.isfinite(found).all(-1).tolist() == [True, True, False, True, True]


def test_kl_of_a_small_change_keeps_its_digits() -> None:
    """Log-probabilities of logits near -90 that were rounded at that size would be off by 4e-6, a tenth of this KL."""
    p = logits(0, 4.0, -90.0, 50_257)
    q = p + 1e-2 * logits(1, 1.0, 0.0, 50_257)
    logp, logq = p.double().log_softmax(-1), q.double().log_softmax(-1)
    found = divergences(log_softmax_(p), q, torch.arange(5), distances=False)[:, 0].double()
    torch.testing.assert_close(found, (logp.exp() * (logp - logq)).sum(-1), rtol=0, atol=5e-7)
