"""Planted truths are found and planted defects are seen, on the demo's model and TopK SAE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sae_bench.engine.bench import Bench
from sae_bench.judge.paired_change import paired_change
from sae_bench.measure.measurement import Measurement, Undefined
from sae_bench.measure.properties import load_property
from sae_bench.measure.uncertainty import t_quantile
from sae_bench.sae import controls


def measure(bench: Bench, name: str) -> Measurement:
    return load_property(name).measure(bench)


@pytest.fixture(scope="module")
def sound(demo_bench: Callable[..., Bench]) -> dict[str, Measurement]:
    bench = demo_bench()
    return {name: measure(bench, name) for name in ("kl_gap", "reconstruction", "sparsity")}


def test_the_identity_loses_nothing_and_has_no_floor(demo_bench: Callable[..., Bench]) -> None:
    bench = demo_bench(lambda sae: controls.identity(sae.d_in))
    found = measure(bench, "kl_gap").estimates
    assert found["kl_sae"].value == 0
    assert found["tv_sae"].value == 0
    assert found["ce_gap"].value == 0
    assert isinstance(found["ratio_isotropic"], Undefined)
    assert isinstance(found["error_linear_share"], Undefined)
    assert measure(bench, "reconstruction").estimates["explained_variance"].value == 1


def test_a_linear_error_is_found_to_be_linear(demo_bench: Callable[..., Bench]) -> None:
    """An identity whose output is scaled errs by a multiple of x."""
    bench = demo_bench(lambda sae: controls.scale_decoder(controls.identity(sae.d_in), 0.8))
    found = measure(bench, "kl_gap").estimates
    assert found["error_linear_share"].value == pytest.approx(1, abs=1e-3)
    assert found["error_linear_kl_share"].value == pytest.approx(1, abs=0.01)


def test_the_error_of_a_sound_sae_is_mostly_not_linear(sound: dict[str, Measurement]) -> None:
    assert sound["kl_gap"].estimates["error_linear_share"].value < 0.6


@pytest.mark.parametrize(
    ("damage", "metric", "grows"),
    [
        (lambda sae: controls.scale_decoder(sae, 0.7), "kl_gap.kl_sae", True),
        (lambda sae: controls.scale_decoder(sae, 0.9), "kl_gap.tv_sae", True),
        (lambda sae: controls.scale_decoder(sae, 0.9), "reconstruction.fvu", True),
        (lambda sae: controls.drop_decoder_bias(sae), "reconstruction.fvu", True),
        (lambda sae: controls.lose_threshold(sae), "sparsity.l0", True),
        (lambda sae: controls.zero_features(sae, 0.5, torch.Generator().manual_seed(1)), "sparsity.alive", False),
        (lambda sae: controls.permuted(sae, torch.Generator().manual_seed(1)), "kl_gap.kl_level", True),
    ],
)
def test_a_defect_moves_its_metric(
    damage: Any, metric: str, grows: bool, demo_bench: Callable[..., Bench], sound: dict[str, Measurement]
) -> None:
    name, _, what = metric.partition(".")
    before = sound[name].estimates[what].value
    after = measure(demo_bench(damage), name).estimates[what].value
    assert (after > 1.02 * before) if grows else (after < 0.98 * before)


def test_few_tokens_hide_a_rise_of_kl_and_not_of_the_probability_moved(
    demo_bench: Callable[..., Bench], sound: dict[str, Measurement]
) -> None:
    """A decoder at 0.9 of its scale raises the KL by a sixth, and a bound that KL puts on the other number holds."""
    after, before = measure(demo_bench(lambda sae: controls.scale_decoder(sae, 0.9)), "kl_gap"), sound["kl_gap"]
    ids = range(len(before.clusters))
    rise = {}
    for name in ("kl_sae", "tv_sae"):
        change = paired_change(after.estimates[name], before.estimates[name], ids, ids)
        assert change is not None
        error = change.se_against(0.02, 0.0)
        assert error is not None
        rise[name] = (change.value - 0.02 * change.accepted_value) / error
    assert rise["tv_sae"] > t_quantile(0.002, len(ids) - 1) > rise["kl_sae"]
    for found in (after.estimates, before.estimates):
        assert found["tv_sae"].value <= math.sqrt(found["kl_sae"].value / 2), "Pinsker's inequality"


def test_shrinking_a_sound_decoder_lowers_the_ratio_while_the_loss_rises(
    demo_bench: Callable[..., Bench], sound: dict[str, Measurement]
) -> None:
    """Why ratios are not gates."""
    after = measure(demo_bench(lambda sae: controls.scale_decoder(sae, 0.7)), "kl_gap").estimates
    before = sound["kl_gap"].estimates
    assert after["kl_sae"].value > before["kl_sae"].value
    assert after["ratio_covariance"].value < before["ratio_covariance"].value


def test_dense_features_are_seen(demo_bench: Callable[..., Bench]) -> None:
    """A PCA's components fire on every token, with one sign or the other: all of them are dense."""
    data = demo_bench().site_data
    bench = demo_bench(lambda sae: controls.pca(data.rows[data.kept_positions], 8))
    found = measure(bench, "sparsity").estimates
    assert found["dense_share"].value > 0.4
    assert found["kl_without_dense"].value > found["kl_dense_only"].value
