"""Controls are as good as they say, and each planted defect does what its name says and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from sae_bench.errors import LoadError, MeasurementError
from sae_bench.sae import (
    Activation,
    Gated,
    JumpReLU,
    LinearDecoderSAE,
    ReLU,
    SAEInfo,
    TopK,
    check_outputs,
    controls,
    decoder_norms,
    fold_decoder_norms,
    unit_directions,
    wrap,
    zero_rows,
)

D, F = 16, 60
KINDS = ["relu", "jumprelu", "topk", "gated"]


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def sound(kind: str, seed: int = 0) -> LinearDecoderSAE:
    """Tied directions, every bias and threshold set, decoder norms between .5 and 3."""
    generator = seeded(seed)
    directions = torch.nn.functional.normalize(torch.randn(F, D, generator=generator), dim=1)
    bias = -0.1 - 0.1 * torch.rand(F, generator=generator)
    threshold = 0.5 + 0.3 * torch.rand(F, generator=generator)
    activation: Activation = {
        "relu": ReLU(bias),
        "jumprelu": JumpReLU(bias, threshold),
        "topk": TopK(bias, 6),
        "gated": Gated(-threshold, threshold / 3, bias),
    }[kind]
    offset = torch.randn(D, generator=generator)
    norms = torch.linspace(0.5, 3, F).unsqueeze(1)
    info = SAEInfo("test", kind, D, F, model="tiny", site_in="blocks.1.hook_resid_pre")
    return LinearDecoderSAE(info, directions.T.contiguous(), activation, directions * norms, offset, offset)


@pytest.fixture
def x() -> Tensor:
    """Activations with 4 of the directions active at a time, (4000, D)."""
    generator = seeded(5)
    active = (torch.rand(4000, F, generator=generator) < 4 / F) * (1 + torch.rand(4000, F, generator=generator))
    sae = sound("relu")
    return active @ sae.W_enc.T + sae.b_dec


def fvu(sae: LinearDecoderSAE, x: Tensor) -> float:
    error = sae.decode(sae.encode(x), x) - x
    return float(error.square().sum() / (x - x.mean(0)).square().sum())


def l0(sae: LinearDecoderSAE, x: Tensor) -> float:
    return float((sae.encode(x) != 0).sum(1).double().mean())


# Controls


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_identity_is_exact(d: int, seed: int, scale: float) -> None:
    sae = controls.identity(d, "blocks.0.hook_resid_pre")
    x = torch.randn(5, 3, d, generator=seeded(seed)) * scale
    codes = sae.encode(x)
    assert torch.equal(sae.decode(codes), x)
    assert (codes >= 0).all()
    assert torch.equal((codes != 0).sum(-1), (x != 0).sum(-1))
    check_outputs(sae)
    assert sae.site_in == sae.site_out == "blocks.0.hook_resid_pre"


def test_pca_is_the_best_linear_reconstruction(x: Tensor) -> None:
    x = x @ torch.randn(D, D, generator=seeded(1))
    spectrum = torch.linalg.svdvals((x - x.mean(0)).double()).square()
    for k in (1, 5, D):
        sae = controls.pca(x, k)
        expected = float(spectrum[k:].sum() / spectrum.sum())
        assert fvu(sae, x) == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert l0(sae, x) == k
        assert sae.d_sae == 2 * k
    for k in (0, D + 1):
        with pytest.raises(MeasurementError, match=f"have no {k} principal components; take 1 to {D}"):
            controls.pca(x, k)
    with pytest.raises(MeasurementError, match="take 1 to 2"):
        controls.pca(x[:3], 3)


def test_constant_is_mean_or_zero_ablation(x: Tensor) -> None:
    mean = controls.constant(x.mean(0))
    assert fvu(mean, x) == pytest.approx(1.0, abs=1e-5)
    assert l0(mean, x) == 0
    zero = controls.constant(torch.zeros(D))
    assert torch.equal(zero.decode(zero.encode(x)), torch.zeros_like(x))
    check_outputs(zero)


@pytest.mark.parametrize("kind", KINDS)
def test_random_keeps_sizes_and_loses_meaning(kind: str, x: Tensor) -> None:
    sae = sound(kind)
    other = controls.random_like(sae, seeded(1))
    torch.testing.assert_close(decoder_norms(other), decoder_norms(sae))
    torch.testing.assert_close(other.W_enc.norm(dim=0), sae.W_enc.norm(dim=0))
    cosines = (unit_directions(other) * unit_directions(sae)).sum(1)
    assert abs(float(cosines.mean())) < 4 / math.sqrt(F * D)
    tied = torch.nn.functional.cosine_similarity(other.W_enc.T, other.W_dec, dim=1)
    torch.testing.assert_close(tied, torch.ones(F))
    assert other.activation is sae.activation


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 50), st.integers(0, 1000))
def test_a_permuted_decoder_leaves_no_row_in_place(width: int, seed: int) -> None:
    rows = torch.arange(width, dtype=torch.float32).unsqueeze(1)
    info = SAEInfo("test", "relu", 1, width)
    sae = LinearDecoderSAE(info, rows.T, ReLU(torch.zeros(width)), rows, torch.zeros(1), torch.zeros(1))
    found = controls.permuted(sae, seeded(seed)).W_dec.flatten()
    assert sorted(found.tolist()) == rows.flatten().tolist()
    assert not (found == rows.flatten()).any()


# Defects


def test_a_scaled_decoder() -> None:
    sae = sound("relu")
    bad = controls.scale_decoder(sae, 0.9)
    torch.testing.assert_close(bad.W_dec, 0.9 * sae.W_dec)
    factors = torch.rand(F, generator=seeded())
    torch.testing.assert_close(controls.scale_features(sae, factors).W_dec, factors.unsqueeze(1) * sae.W_dec)
    assert bad.b_dec is sae.b_dec
    assert bad.W_enc is sae.W_enc


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 180), st.integers(0, 1000))
def test_rotation_is_by_the_angle_asked_for(degrees: float, seed: int) -> None:
    sae = sound("relu").to(dtype=torch.float64)
    bad = controls.rotate_decoder(sae, degrees, seeded(seed + 1))
    cosines = torch.nn.functional.cosine_similarity(bad.W_dec, sae.W_dec, dim=1)
    torch.testing.assert_close(cosines, torch.full_like(cosines, math.cos(math.radians(degrees))), rtol=0, atol=1e-9)
    torch.testing.assert_close(decoder_norms(bad), decoder_norms(sae))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_zeroed_features_neither_fire_nor_write(kind: str, share: float, x: Tensor) -> None:
    sae = sound(kind)
    bad = controls.zero_features(sae, share, seeded())
    dead = zero_rows(bad)
    assert len(dead) == round(share * F)
    assert (bad.encode(x)[:, dead] == 0).all()
    if kind != "topk":
        others = torch.ones(F, dtype=torch.bool).index_fill(0, dead, False)
        assert torch.equal(bad.encode(x)[:, others], sae.encode(x)[:, others])


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_come_in_pairs_that_share_the_work(kind: str, x: Tensor) -> None:
    sae = sound(kind)
    bad = controls.duplicate_features(sae, 0.1, seeded())
    near = unit_directions(bad) @ unit_directions(bad).T - torch.eye(F)
    twins = (near.max(1).values > 0.9999).nonzero().flatten()
    assert len(twins) == 2 * round(0.1 * F)
    codes = bad.encode(x)
    for twin in twins.tolist():
        other = int(near[twin].argmax())
        assert torch.equal(bad.W_dec[twin], bad.W_dec[other])
        assert torch.equal(bad.W_enc[:, twin], bad.W_enc[:, other])
        if kind != "topk":
            assert torch.equal(codes[:, twin], codes[:, other])
    # One of each pair stands where it stood, with half of what it wrote.
    kept = [twin for twin in twins.tolist() if torch.equal(bad.W_dec[twin], 0.5 * sae.W_dec[twin])]
    assert len(kept) == len(twins) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_biases(kind: str, x: Tensor) -> None:
    sae = sound(kind)
    bad = controls.drop_encoder_bias(sae)
    for name, tensor in bad.activation.tensors().items():
        if name in ("b_enc", "b_gate", "b_mag"):
            assert (tensor == 0).all()
        else:
            assert tensor is sae.activation.tensors()[name]
    assert fvu(bad, x) != pytest.approx(fvu(sae, x), rel=1e-3)

    bad = controls.drop_decoder_bias(sae)
    assert (bad.b_dec == 0).all()
    assert (bad.pre_bias == 0).all()
    assert fvu(bad, x) != pytest.approx(fvu(sae, x), rel=1e-3)


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "gated"])
def test_a_lost_threshold_makes_it_dense(kind: str, x: Tensor) -> None:
    sae = sound(kind)
    bad = controls.lose_threshold(sae)
    assert type(bad.activation) is ReLU
    assert l0(bad, x) > 1.1 * l0(sae, x)
    fired = sae.encode(x) != 0
    torch.testing.assert_close(bad.encode(x)[fired], sae.encode(x)[fired])


def test_a_plain_relu_has_no_threshold_to_lose() -> None:
    with pytest.raises(MeasurementError, match="has no threshold, k or gate that could be lost"):
        controls.lose_threshold(sound("relu"))


def test_one_weight_is_nan() -> None:
    sae = sound("topk")
    bad = controls.nan_weight(sae, seeded())
    assert int(bad.W_dec.isnan().sum()) == 1
    assert not sae.W_dec.isnan().any()
    with pytest.raises(LoadError, match="W_dec has 1 NaN"):
        check_outputs(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_to_bfloat16_keeps_the_precision_it_is_read_in(kind: str) -> None:
    sae = sound(kind)
    bad = controls.in_bfloat16(sae)
    for name, tensor in bad.tensors().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensor.bfloat16().float())
        torch.testing.assert_close(tensor, sae.tensors()[name], rtol=2**-8, atol=0)


def test_an_end_to_end_like_error_lies_in_the_given_directions(x: Tensor) -> None:
    sae = sound("jumprelu")
    harmless = torch.randn(2, D, generator=seeded(3))
    bad = controls.end_to_end_like(sae, harmless, seeded(), gain=3.0)
    added = bad.W_dec - sae.W_dec
    torch.testing.assert_close(added.norm(dim=1), 3 * sae.W_dec.norm(dim=1))
    basis = torch.linalg.qr(harmless.T).Q
    torch.testing.assert_close(added @ basis @ basis.T, added, rtol=1e-4, atol=1e-5)
    assert fvu(bad, x) > 2 * fvu(sae, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_more_active_features(kind: str, factor: float, x: Tensor) -> None:
    sae = sound(kind)
    bad = controls.more_l0(sae, x, factor)
    assert l0(bad, x) == pytest.approx(factor * l0(sae, x), rel=0.011)
    assert torch.equal(bad.W_dec, sae.W_dec)


@pytest.mark.parametrize("kind", KINDS)
def test_more_active_features_than_there_are(kind: str, x: Tensor) -> None:
    with pytest.raises(MeasurementError, match=r"more than the 60 features|cannot be made 30 times as large"):
        controls.more_l0(sound(kind), x, 30)


# All of them


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(controls.DEFECTS))
def test_every_defect_changes_the_reconstruction_and_nothing_it_was_given(kind: str, name: str, x: Tensor) -> None:
    sae = sound(kind)
    before = {key: tensor.clone() for key, tensor in sae.tensors().items()}
    if (kind, name) == ("relu", "threshold_lost"):
        return
    bad = controls.DEFECTS[name](sae, seeded())
    again = controls.DEFECTS[name](sae, seeded())
    for key, tensor in before.items():
        assert torch.equal(sae.tensors()[key], tensor)
    for key in bad.tensors():
        assert torch.equal(again.tensors()[key].nan_to_num(99), bad.tensors()[key].nan_to_num(99))
    assert bad.info == sae.info
    assert (bad.d_in, bad.d_sae, bad.d_out) == (D, F, D)
    change = bad.decode(bad.encode(x), x) - sae.decode(sae.encode(x), x)
    assert not (change.norm() <= 1e-4 * x.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_defects_on_data(kind: str, x: Tensor) -> None:
    for defect in controls.DEFECTS_ON_DATA.values():
        assert l0(defect(sound(kind), x, seeded()), x) > 1.5 * l0(sound(kind), x)


def test_only_saes_made_of_tensors_can_be_damaged() -> None:
    sae = sound("relu")
    for other in (fold_decoder_norms(sae), wrap(_Bare())):
        with pytest.raises(MeasurementError, match="gives no access to its weights"):
            controls.scale_decoder(other, 0.9)


class _Bare:
    d_in = D

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def decode(self, codes: Tensor) -> Tensor:
        return codes
