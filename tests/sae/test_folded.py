"""Folding, hashing and the load-time checks, over all activations (hypothesis)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.errors import LoadError
from sae_bench.sae import (
    Activation,
    Gated,
    JumpReLU,
    LinearDecoderSAE,
    ReLU,
    SAEInfo,
    TopK,
    check_outputs,
    check_width,
    decoder_norms,
    fold_decoder_norms,
    folded_codes,
    unit_directions,
    weights_sha256,
    zero_rows,
)


def build(kind: str, seed: int, d_in: int = 7, d_sae: int = 15) -> LinearDecoderSAE:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    activations: dict[str, Activation] = {
        "relu": ReLU(draw(d_sae)),
        "jumprelu": JumpReLU(draw(d_sae), draw(d_sae).abs()),
        "topk": TopK(draw(d_sae), 4),
        "gated": Gated(draw(d_sae), draw(d_sae), draw(d_sae)),
    }
    scale = torch.exp(2 * draw(d_sae)).unsqueeze(1)
    info = SAEInfo("test", kind, d_in, d_sae)
    W_enc, W_dec = draw(d_in, d_sae), draw(d_sae, d_in) * scale
    return LinearDecoderSAE(info, W_enc, activations[kind], W_dec, draw(d_in), draw(d_in))


kinds = st.sampled_from(["relu", "jumprelu", "topk", "gated"])
seeds = st.integers(0, 10_000)


@settings(max_examples=60, deadline=None)
@given(kinds, seeds, st.integers(0, 3))
def test_folding_changes_the_units_and_nothing_else(kind: str, seed: int, dead: int) -> None:
    sae = build(kind, seed)
    sae.W_dec[:dead] = 0
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(seed))
    codes = sae.encode(x)
    plain = sae.decode(codes)
    tolerance = 1e-5 * float(plain.abs().max())
    by_hand = folded_codes(sae, codes) @ unit_directions(sae) + sae.b_dec
    torch.testing.assert_close(by_hand, plain, rtol=1e-5, atol=tolerance)

    folded = fold_decoder_norms(sae)
    torch.testing.assert_close(folded.decode(folded.encode(x)), plain, rtol=1e-5, atol=tolerance)
    assert torch.equal(folded.encode(x)[:, dead:] != 0, codes[:, dead:] != 0)
    assert zero_rows(sae).tolist() == list(range(dead))
    norms = unit_directions(sae).norm(dim=1)
    torch.testing.assert_close(norms[dead:], torch.ones(15 - dead))
    assert torch.isfinite(norms).all()
    assert norms[:dead].sum() == 0


@settings(max_examples=30, deadline=None)
@given(kinds, seeds)
def test_a_shifted_activation_equals_shifted_projections(kind: str, seed: int) -> None:
    sae = build(kind, seed)
    generator = torch.Generator().manual_seed(seed)
    projections = torch.randn(30, 15, generator=generator).double()
    delta = torch.randn(15, generator=generator).double()
    activation = sae.activation.map(Tensor.double)
    torch.testing.assert_close(activation.shift(delta)(projections), activation(projections + delta))


@settings(max_examples=30, deadline=None)
@given(kinds, seeds)
def test_tokens_do_not_depend_on_their_batch(kind: str, seed: int) -> None:
    sae = build(kind, seed).to(dtype=torch.float64)
    x = torch.randn(6, 4, 7, generator=torch.Generator().manual_seed(seed))
    together = sae.encode(x)
    assert together.shape == (6, 4, 15)
    assert (together >= 0).all()
    alone = torch.stack([sae.encode(row) for row in x.flatten(0, 1)]).view(6, 4, 15)
    torch.testing.assert_close(together, alone)


@settings(max_examples=30, deadline=None)
@given(kinds, seeds, st.data())
def test_the_hash_sees_every_weight_and_setting(kind: str, seed: int, data: st.DataObject) -> None:
    sae = build(kind, seed)
    same = build(kind, seed)
    assert weights_sha256(sae) == weights_sha256(same)
    name = data.draw(st.sampled_from(sorted(sae.tensors())))
    tensor = same.tensors()[name].view(-1)
    index = data.draw(st.integers(0, len(tensor) - 1))
    tensor[index] = torch.nextafter(tensor[index], torch.tensor(math.inf))
    assert weights_sha256(sae) != weights_sha256(same)
    assert weights_sha256(sae) != weights_sha256(dataclasses.replace(sae, token_norm="layer_norm"))
    assert weights_sha256(sae) != weights_sha256(sae.to(dtype=torch.bfloat16))


def test_the_hash_sees_k_and_the_activation() -> None:
    topk = build("topk", 0)
    bias = topk.activation.tensors()["b_enc"]
    hashes = {
        weights_sha256(dataclasses.replace(topk, activation=activation))
        for activation in (TopK(bias, 4), TopK(bias, 5), ReLU(bias))
    }
    assert len(hashes) == 3
    zeros = topk.map(torch.zeros_like)
    assert weights_sha256(zeros.to(dtype=torch.float16)) != weights_sha256(zeros.to(dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk", "gated"])
def test_a_sound_sae_passes(kind: str) -> None:
    check_outputs(build(kind, 0))
    check_outputs(build(kind, 0), torch.randn(3, 4, 7))
    check_outputs(build(kind, 0).to(dtype=torch.bfloat16))


def test_weights_that_are_no_numbers() -> None:
    sae = build("jumprelu", 0)
    sae.W_enc[0, :2] = math.nan
    sae.W_enc[1, 0] = -math.inf
    with pytest.raises(LoadError, match="weight W_enc has 2 NaN and 1 infinite of 105 values; the SAE is damaged"):
        check_outputs(sae)


def test_output_that_overflows() -> None:
    sae = build("relu", 0)
    with pytest.raises(LoadError, match=r"the output of (encode|decode) on finite input has"):
        check_outputs(dataclasses.replace(sae, W_enc=sae.W_enc * 1e37, W_dec=sae.W_dec * 1e3))


class Lying(LinearDecoderSAE):
    @property
    def d_sae(self) -> int:
        return 16


def test_output_of_another_shape() -> None:
    sae = build("relu", 0)
    lying = Lying(**{field.name: getattr(sae, field.name) for field in dataclasses.fields(sae)})
    with pytest.raises(LoadError, match=r"encode returns shape \(16, 15\) instead of \(16, 16\)"):
        check_outputs(lying)


def test_the_fit_to_the_model() -> None:
    sae = build("relu", 0)
    check_width(sae, 7, "blocks.1.hook_resid_pre")
    with pytest.raises(LoadError, match=r"reads 7 dimensions but the model is 768 wide at blocks\.8\.hook_res"):
        check_width(sae, 768, "blocks.8.hook_resid_pre")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_dec": torch.zeros(7, 15)}, r"W_dec has shape \(7, 15\) but W_enc \(7, 15\) requires \(15, 15\)"),
        ({"b_dec": torch.zeros(8)}, r"b_dec has shape \(8,\)"),
        ({"pre_bias": torch.zeros(1)}, r"pre_bias has shape \(1,\)"),
        ({"activation": ReLU(torch.zeros(7))}, r"b_enc has shape \(7,\) .* requires \(15,\)"),
        ({"activation": TopK(torch.zeros(15), 16)}, "k is 16, it must lie between 1 and d_sae 15"),
        ({"activation": TopK(torch.zeros(15), 0)}, "k is 0"),
        ({"W_enc": torch.zeros(7)}, "must be matrices"),
    ],
)
def test_tensors_that_do_not_belong_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        dataclasses.replace(build("relu", 0), **changes)


def test_norms_of_half_precision_weights_are_exact() -> None:
    sae = build("relu", 3).to(dtype=torch.bfloat16)
    torch.testing.assert_close(decoder_norms(sae), sae.W_dec.double().norm(dim=1).float())
    assert decoder_norms(sae).dtype == unit_directions(sae).dtype == torch.float32
