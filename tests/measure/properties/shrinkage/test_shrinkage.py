"""The property: hand cases, planted suppression, tiers, and what cannot be measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.errors import MeasurementError
from sae_bench.judge.judge import judge
from sae_bench.judge.limits import parse_rule
from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.measurement import Measurement, Ratio, Undefined
from sae_bench.measure.properties.shrinkage import PROPERTY
from sae_bench.sae import LinearDecoderSAE, controls, wrap

Make = Callable[..., Bench]


def value(measurement: Measurement, name: str) -> float:
    estimate = measurement.estimates[name]
    assert not isinstance(estimate, Undefined), estimate.reason
    return estimate.value


def kept(x: Tensor) -> Tensor:
    return x[:, 1:].reshape(-1, x.shape[-1])


@pytest.fixture
def sound(activations: Tensor) -> LinearDecoderSAE:
    """Orthogonal features and some error: a projection, so its best scale is exactly 1."""
    return controls.pca(kept(activations), 12)


def test_half_of_x_has_gamma_one_half(make_bench: Make, activations: Tensor) -> None:
    measured = PROPERTY.measure(make_bench(activations, controls.scale_decoder(controls.identity(16), 0.5)))
    for name in ("gamma", "gamma_centred", "l2_ratio"):
        assert value(measured, name) == pytest.approx(0.5, rel=1e-6)
    assert value(measured, "uniform_scale") == pytest.approx(2, rel=1e-6)
    assert value(measured, "mse_gain_uniform") == pytest.approx(1, abs=1e-6)
    assert value(measured, "kl_gain_uniform") == pytest.approx(1, abs=1e-4)
    assert value(measured, "rescalable") == 1


class Noisy:
    """Writes a known noisy estimate of every activation it knows."""

    d_in = 64

    def __init__(self, x: Tensor, estimate: Tensor) -> None:
        self.x, self.estimate = x, estimate

    def encode(self, x: Tensor) -> Tensor:
        return self.estimate[torch.cdist(x, self.x).argmin(-1)]

    def decode(self, codes: Tensor) -> Tensor:
        return codes


@pytest.mark.parametrize(("factor", "gamma", "l2_ratio"), [(0.8, 1.0, 0.896), (0.72, 0.9, 0.806), (1.0, 1.25, 1.12)])
def test_a_calibrated_estimate_is_short_and_not_shrunk(
    make_bench: Make, factor: float, gamma: float, l2_ratio: float
) -> None:
    """x is standard normal and seen with noise of variance 1/4: its posterior mean is 0.8 of what is seen."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 33, 64, generator=generator)
    rows = x.view(-1, 64)
    seen = rows + 0.5 * torch.randn(rows.shape, generator=generator)
    measured = PROPERTY.measure(make_bench(x, wrap(Noisy(rows, factor * seen))))
    assert value(measured, "gamma") == pytest.approx(gamma, abs=0.01)
    assert value(measured, "l2_ratio") == pytest.approx(l2_ratio, abs=0.005)


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.1])
def test_planted_uniform_suppression(
    make_bench: Make, activations: Tensor, sound: LinearDecoderSAE, factor: float
) -> None:
    clean = value(PROPERTY.measure(make_bench(activations, sound)), "uniform_scale")
    assert clean == pytest.approx(1, abs=0.02)
    measured = PROPERTY.measure(make_bench(activations, controls.scale_decoder(sound, factor)))
    assert value(measured, "uniform_scale") == pytest.approx(clean / factor, rel=1e-4)
    assert value(measured, "gamma_centred") == pytest.approx(factor, abs=0.02)
    if factor < 0.9:
        assert value(measured, "suppression_uniform_share_mse") > 0.95
        assert value(measured, "suppression_uniform_share_kl") > 0.95


def test_planted_suppression_of_each_feature(make_bench: Make, activations: Tensor, sound: LinearDecoderSAE) -> None:
    factors = 1 + torch.rand(sound.d_sae, generator=torch.Generator().manual_seed(5))
    bench = make_bench(activations, controls.scale_features(sound, 1 / factors))
    measured = PROPERTY.measure(bench)
    fitted = bench.shared("scales", lambda: pytest.fail("not fitted"))
    assert fitted.free.all()
    assert np.corrcoef(fitted.per_feature, factors)[0, 1] > 0.99
    assert value(measured, "per_feature_scale_p50") == pytest.approx(float(factors.median()), abs=0.05)
    # Orthogonal features: what is lost of feature i is its energy times the square of what is missing from it.
    energy = sound.encode(activations[1::2, 1:]).double().square().sum((0, 1))
    written = energy / factors**2
    uniform = float((energy / factors).sum() / written.sum())
    lost = (energy * (1 - 1 / factors) ** 2).sum()
    expected = float(1 - (energy * (1 - uniform / factors) ** 2).sum() / lost)
    assert value(measured, "suppression_uniform_share_mse") == pytest.approx(expected, abs=0.02)
    assert expected < 0.9
    assert value(measured, "suppression_uniform_share_kl") < 0.95


def test_a_sound_sae_has_no_suppression(make_bench: Make, activations: Tensor, sound: LinearDecoderSAE) -> None:
    measured = PROPERTY.measure(make_bench(activations, sound))
    assert value(measured, "gamma_centred") == pytest.approx(1, abs=1e-3)
    for loss in ("mse", "kl"):
        share = measured.estimates[f"suppression_uniform_share_{loss}"]
        assert isinstance(share, Undefined)
        assert share.reason.startswith("no suppression")
    assert value(measured, "rescalable") == 0


def test_a_perfect_sae_has_nothing_to_gain(make_bench: Make, activations: Tensor) -> None:
    measured = PROPERTY.measure(make_bench(activations, controls.identity(16)))
    assert value(measured, "gamma_centred") == 1
    for name in ("mse_gain_uniform", "kl_gain_per_feature", "suppression_uniform_share_kl", "rescalable"):
        assert isinstance(measured.estimates[name], Undefined)


def test_bos_does_not_count(make_bench: Make, activations: Tensor, sound: LinearDecoderSAE) -> None:
    shrunk = controls.scale_decoder(sound, 0.8)
    longer = activations.clone()
    longer[:, 0] *= 7
    one, other = (PROPERTY.measure(make_bench(x, shrunk)) for x in (activations, longer))
    for name in ("gamma", "gamma_centred", "uniform_scale", "mse_heldout", "l2_ratio"):
        assert value(one, name) == value(other, name)


def test_a_large_decoder_bias_hides_shrinkage_from_gamma_only(make_bench: Make, activations: Tensor) -> None:
    x = activations + 30
    measured = PROPERTY.measure(make_bench(x, controls.scale_decoder(controls.pca(kept(x), 12), 0.8)))
    assert value(measured, "gamma") > 0.99
    assert value(measured, "gamma_centred") == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("token_norm", ["layer_norm", "constant_norm_rescale"])
def test_saes_that_normalise_tokens(make_bench: Make, activations: Tensor, token_norm: Any) -> None:
    generator = torch.Generator().manual_seed(6)
    base = dataclasses.replace(controls.identity(16), token_norm=token_norm)
    factors = 1 + torch.rand(32, generator=generator)
    bias = 0.1 * torch.randn(16, generator=generator)
    sae = dataclasses.replace(controls.scale_features(base, 1 / factors), b_dec=bias, pre_bias=bias)
    bench = make_bench(activations, sae)
    measured = PROPERTY.measure(bench)
    fitted = bench.shared("scales", lambda: pytest.fail("not fitted"))
    assert fitted.free.sum() > 24
    assert ((fitted.per_feature / factors - 1).abs() < 0.02)[fitted.free].all()
    assert value(measured, "mse_gain_per_feature") > 0.99


def test_batches_and_order_do_not_matter(make_bench: Make, activations: Tensor, sound: LinearDecoderSAE) -> None:
    shrunk = controls.scale_features(sound, torch.linspace(0.5, 1, sound.d_sae))
    one = PROPERTY.measure(make_bench(activations, shrunk, batch_size=40))
    other = PROPERTY.measure(make_bench(activations, shrunk, batch_size=3, order_seed=1))
    for name in one.estimates:
        assert value(one, name) == pytest.approx(value(other, name), rel=1e-5)


def test_tiers_nest(make_bench: Make, activations: Tensor, sound: LinearDecoderSAE) -> None:
    shrunk = controls.scale_features(sound, torch.linspace(0.5, 1, sound.d_sae))
    whole = PROPERTY.measure(make_bench(activations, shrunk))
    part = PROPERTY.measure(make_bench(activations, shrunk, documents=12))
    assert part.clusters == whole.clusters[:12]
    for name, estimate in part.estimates.items():
        longer = whole.estimates[name]
        if isinstance(estimate, Ratio):
            assert isinstance(longer, Ratio)
            np.testing.assert_allclose(estimate.numerator, longer.numerator[:12], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(estimate.denominator, longer.denominator[:12], rtol=1e-6)
    for name in ("uniform_scale", "free_features", "per_feature_scale_p95"):
        assert value(part, name) == value(whole, name)


def test_losses_are_of_odd_documents(make_bench: Make, activations: Tensor, sound: LinearDecoderSAE) -> None:
    measured = PROPERTY.measure(make_bench(activations, sound))
    odd = activations[1::2, 1:]
    mse = (sound.decode(sound.encode(odd)) - odd).double().square().sum(-1).mean()
    assert value(measured, "mse_heldout") == pytest.approx(float(mse), rel=1e-5)
    heldout = measured.estimates["mse_heldout"]
    assert isinstance(heldout, Ratio)
    assert (heldout.denominator[::2] == 0).all()
    assert (heldout.denominator[1::2] == 32).all()


def test_norms_made_right_token_by_token(make_bench: Make, activations: Tensor) -> None:
    """Scaled copies of x: x's norm gives x back, whatever the scale."""
    measured = PROPERTY.measure(make_bench(activations, controls.scale_decoder(controls.identity(16), 0.6)))
    assert value(measured, "kl_norm_corrected_gain") == pytest.approx(1, abs=1e-4)


def test_series_say_which_features_are_suppressed(
    make_bench: Make, activations: Tensor, sound: LinearDecoderSAE
) -> None:
    """The weak half is planted to write half as much as it should."""
    weak = torch.arange(sound.d_sae) % 12 >= 6
    measured = PROPERTY.measure(make_bench(activations, controls.scale_features(sound, torch.where(weak, 0.5, 1.0))))
    table = measured.series["suppression_strength"].columns
    assert sum(table["features"]) == sum(table["fitted"]) == sound.d_sae
    assert table["scale_p50"][0] == pytest.approx(2, abs=0.1)
    assert table["scale_p50"][-1] == pytest.approx(1, abs=0.1)
    assert measured.series["scales"].columns["all"][0] == pytest.approx(1, abs=0.1)
    assert set(measured.series) >= {"suppression_density", "suppression_density_curve", "suppression_strength_curve"}
    assert any("with strength" in note for note in measured.notes)


def verdict(measured: Measurement, known: dict[str, str] | None = None) -> Verdict:
    rules = [parse_rule(f"shrinkage.{limit}", "property") for limit in PROPERTY.limits]
    return judge(
        "shrinkage",
        PROPERTY.metrics,
        PROPERTY.primary_metric,
        measured,
        None,
        sae="x",
        rules=rules,
        context={},
        known_failures=known,
    ).verdict


def test_gamma_centred_is_fenced_on_both_sides(make_bench: Make, activations: Tensor, sound: LinearDecoderSAE) -> None:
    assert verdict(PROPERTY.measure(make_bench(activations, sound))) is Verdict.PASS
    for factor in (0.9, 1.1):
        wrong = PROPERTY.measure(make_bench(activations, controls.scale_decoder(sound, factor)))
        assert verdict(wrong) is Verdict.FAIL
        assert verdict(wrong, {"shrinkage.gamma_centred": "L1 penalty"}) is Verdict.KNOWN


def test_an_sae_that_never_fires(make_bench: Make, activations: Tensor) -> None:
    with pytest.raises(MeasurementError, match=r"no feature writes anything .* check the encoder's biases"):
        PROPERTY.measure(make_bench(activations, controls.constant(torch.ones(16))))


def test_an_sae_that_does_not_fire_on_what_is_measured(make_bench: Make, activations: Tensor) -> None:
    x = activations.clone()
    x[:4] = 0
    with pytest.raises(MeasurementError, match="no feature writes anything on the 128 tokens measured"):
        PROPERTY.measure(make_bench(x, controls.identity(16), documents=4))


def test_a_missing_decoder_bias_is_told(make_bench: Make, activations: Tensor, sound: LinearDecoderSAE) -> None:
    measured = PROPERTY.measure(make_bench(activations, controls.drop_decoder_bias(sound)))
    assert value(measured, "gamma_centred") == value(measured, "gamma")
    assert any("without a decoder bias" in note for note in measured.notes)
    assert not any("bias" in note for note in PROPERTY.measure(make_bench(activations, sound)).notes)


def test_all_documents_in_one_half(make_bench: Make, activations: Tensor, sound: LinearDecoderSAE) -> None:
    with pytest.raises(MeasurementError, match="scored on odd documents, but 1 document is measured"):
        PROPERTY.measure(make_bench(activations, sound, documents=1))
    with pytest.raises(MeasurementError, match="at least 2"):
        PROPERTY.measure(make_bench(activations[:1], sound))


def test_nan_is_an_error(make_bench: Make, activations: Tensor, sound: LinearDecoderSAE) -> None:
    broken = controls.nan_weight(sound, torch.Generator().manual_seed(0))
    with pytest.raises(MeasurementError, match="NaN"):
        PROPERTY.measure(make_bench(activations, broken))


def test_an_object_without_a_decoder_still_has_a_gamma(make_bench: Make) -> None:
    x = torch.randn(6, 9, 64, generator=torch.Generator().manual_seed(1))
    measured = PROPERTY.measure(make_bench(x, wrap(Noisy(x.view(-1, 64), 0.5 * x.view(-1, 64)))))
    assert value(measured, "gamma_centred") == pytest.approx(0.5)
    assert value(measured, "kl_norm_corrected_gain") == pytest.approx(1, abs=1e-4)
    reasons = {estimate.reason for estimate in measured.estimates.values() if isinstance(estimate, Undefined)}
    assert reasons == {"the SAE shows no decoder, so its features cannot be scaled"}
    assert {metric.name for metric in PROPERTY.metrics} == set(measured.estimates)
