"""Agreement with SAELens' own evaluation and with an independent float64 computation, on SAEs nobody here tuned."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from sae_bench.engine.bench import Bench
from sae_bench.engine.noise_floors import noise_floors
from sae_bench.measure.measurement import Measurement
from sae_bench.measure.properties import load_property

pytestmark = pytest.mark.heavy

SAES = ("standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka")
DRAWS_GOLDEN = 16
NOISE = [floor.name for floor in noise_floors() if floor.draws]
ABLATIONS = [floor.name for floor in noise_floors() if floor.ablation]
EXACT = [floor.name for floor in noise_floors() if not floor.draws and not floor.ablation]


@pytest.fixture(scope="module")
def measured(real_bench: Callable[..., Bench]) -> Callable[[str, str], Measurement]:
    @cache
    def measure(sae: str, name: str) -> Measurement:
        return load_property(name).measure(real_bench(sae))

    return measure


@pytest.mark.parametrize("sae", SAES)
def test_saelens_agrees(sae: str, measured: Any, golden_saelens: Any) -> None:
    theirs = golden_saelens(sae)
    pairs = {
        ("kl_gap", "kl_sae"): "kl_div_with_sae",
        ("kl_gap", "ce_clean"): "ce_loss_without_sae",
        ("kl_gap", "ce_sae"): "ce_loss_with_sae",
        ("reconstruction", "explained_variance"): "explained_variance",
        ("reconstruction", "cosine"): "cossim",
        ("reconstruction", "mse"): "mse",
        ("sparsity", "l0"): "l0",
    }
    for (name, metric), key in pairs.items():
        assert measured(sae, name).estimates[metric].value == pytest.approx(theirs[key], rel=1e-5), metric


@pytest.mark.parametrize("sae", SAES)
def test_arms_without_noise_agree_with_the_reference(sae: str, measured: Any, golden: Any) -> None:
    ours, reference = measured(sae, "kl_gap").estimates, golden(sae)
    for condition in (*EXACT, *ABLATIONS):
        assert ours[f"kl_{condition}"].value == pytest.approx(reference[f"kl_{condition}"]["value"], rel=1e-5), (
            condition
        )
    for condition in ABLATIONS:
        assert ours[f"ce_{condition}"].value == pytest.approx(reference[f"ce_{condition}"], rel=1e-5), condition
    assert ours["kl_sae"].value == pytest.approx(reference["kl_sae"]["value"], rel=1e-5)


@pytest.mark.parametrize("sae", SAES)
def test_noise_arms_agree_within_their_monte_carlo_error(sae: str, measured: Any, golden: Any, real_bench: Any) -> None:
    ours, reference = measured(sae, "kl_gap").estimates, golden(sae)
    draws = real_bench(sae).settings.tier.draws
    for condition in NOISE:
        theirs = reference[f"kl_{condition}"]
        error = theirs["mc_sd_one_draw"] * math.sqrt(1 / draws + 1 / DRAWS_GOLDEN)
        assert abs(ours[f"kl_{condition}"].value - theirs["value"]) < 3 * error, condition


@pytest.mark.parametrize("sae", SAES)
def test_standard_errors_are_those_of_the_reference(sae: str, measured: Any, golden: Any) -> None:
    from sae_bench.measure.uncertainty import standard_error

    ours, reference = measured(sae, "kl_gap").estimates, golden(sae)
    for condition in ("sae", "norm_corrected", "reflected_error"):
        assert standard_error(ours[f"kl_{condition}"]) == pytest.approx(reference[f"kl_{condition}"]["se"], rel=0.02), (
            condition
        )


@pytest.mark.parametrize("sae", ["standard", "topk"])
def test_the_published_order_of_the_arms(sae: str, measured: Any) -> None:
    kl = {
        condition: measured(sae, "kl_gap").estimates[f"kl_{condition}"].value for condition in ("sae", *EXACT, *NOISE)
    }
    assert kl["sae"] > kl["isotropic"]
    assert kl["sae"] > kl["covariance"]
    assert kl["norm_corrected"] == pytest.approx(kl["sae"], rel=0.1)
    assert kl["sae_norm"] < 0.2 * kl["sae"]


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 7}, {"batch_size": 64}, {"order_seed": 3}])
def test_batches_and_order_change_nothing(changes: dict[str, int], real_bench: Callable[..., Bench]) -> None:
    documents = {"documents": 16}
    for name in ("kl_gap", "reconstruction", "sparsity"):
        expected = load_property(name).measure(real_bench("jumprelu", batch_size=16, **documents)).estimates
        found = load_property(name).measure(real_bench("jumprelu", **documents, **changes)).estimates
        for metric, estimate in expected.items():
            if not math.isnan(estimate.value):
                assert found[metric].value == pytest.approx(estimate.value, rel=1e-5, abs=1e-9), f"{name}.{metric}"


def test_other_saes_of_a_run_change_nothing(real_bench: Callable[..., Bench]) -> None:
    """Ablations and activations are shared by the SAEs of a site; nothing else is."""
    alone = load_property("kl_gap").measure(real_bench("gated", documents=8)).estimates
    load_property("kl_gap").measure(real_bench("standard", documents=8))
    after = load_property("kl_gap").measure(real_bench("gated", documents=8)).estimates
    assert {name: each.value for name, each in after.items() if each.value == each.value} == {
        name: each.value for name, each in alone.items() if each.value == each.value
    }
