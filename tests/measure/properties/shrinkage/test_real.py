"""Six SAEs on a small real model, against numbers of an independent float64 computation. Skipped without the data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import load_corpus
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.measure.measurement import Measurement, Undefined
from sae_bench.measure.properties.shrinkage import PROPERTY
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site
from sae_bench.run.rescale import rescale_bench
from sae_bench.sae import SAE, controls
from sae_bench.sae.formats import read_sae

ASSETS = os.environ.get("SAE_BENCH_REAL_ASSETS", "")
pytestmark = pytest.mark.skipif(not ASSETS, reason="SAE_BENCH_REAL_ASSETS does not name a folder with the real SAEs")

NAMES = ("standard-l3", "gated-l3", "jumprelu-l3", "topk-l3", "batchtopk-l3", "matryoshka-l3")
EQUAL = 1e-5
"Relative; the golden numbers are float64, these are float32 products."


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, Any]]:
    return {entry["sae"]: entry for entry in json.loads((Path(ASSETS) / "golden_reference.json").read_text())}


@pytest.fixture(scope="module")
def bench_of() -> Callable[[SAE], Bench]:
    model = load_model(str(Path(ASSETS) / "model"))
    corpus = load_corpus(Path(ASSETS) / "eval_tokens.safetensors").take(128)
    settings = Settings(tier=TIERS["full"])
    data = capture_site(model, parse_site("blocks.3.hook_resid_pre"), corpus, settings)
    return lambda sae: Bench(sae, model, corpus, data, settings)


@pytest.fixture(scope="module")
def measured_as_it_is(bench_of: Callable[[SAE], Bench]) -> Callable[[str], Measurement]:
    return cache(lambda name: PROPERTY.measure(bench_of(read(name))))


def read(name: str) -> SAE:
    return read_sae(str(Path(ASSETS) / "saes" / name))


def value(measurement: Measurement, name: str) -> float:
    return measurement.estimates[name].value


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_golden_reference(
    name: str, measured_as_it_is: Callable[[str], Measurement], golden: dict[str, dict[str, Any]]
) -> None:
    measured, expected = measured_as_it_is(name), golden[name]
    for metric in (
        "gamma",
        "gamma_centred",
        "l2_ratio",
        "uniform_scale",
        "mse_heldout",
        "mse_uniform",
        "mse_per_feature",
    ):
        assert value(measured, metric) == pytest.approx(expected[metric], rel=EQUAL), metric
    assert value(measured, "free_features") == expected["free_features"]
    for quantile, scale in zip(("p5", "p50", "p95"), expected["scale_p5_p50_p95"], strict=True):
        assert value(measured, f"per_feature_scale_{quantile}") == pytest.approx(scale, rel=EQUAL)
    shares = [measured.estimates[f"suppression_uniform_share_{loss}"] for loss in ("mse", "kl")]
    assert all(isinstance(share, Undefined) for share in shares) is (name != "standard-l3")


def test_the_l1_sae_suppresses_weak_features_and_is_mended(bench_of: Callable[[SAE], Bench], tmp_path: Path) -> None:
    mended = rescale_bench(bench_of(read("standard-l3")), tmp_path / "mended")
    share_mse, share_kl = (value(mended.before, f"suppression_uniform_share_{loss}") for loss in ("mse", "kl"))
    assert 0.85 < share_mse < 0.95
    assert 0.5 < share_kl < 0.8, "in KL, one scale for all mends less than in squared error"
    by_strength = mended.before.series["suppression_strength_curve"].columns["p50"]
    assert by_strength[0] > 1.2 > 1.1 > by_strength[-1]
    assert value(mended.after, "gamma_centred") == pytest.approx(1, abs=0.02)
    for loss in ("mse", "kl"):
        assert value(mended.after, f"{loss}_heldout") < value(mended.before, f"{loss}_heldout")


def test_planted_suppression_of_a_real_sae(
    bench_of: Callable[[SAE], Bench], measured_as_it_is: Callable[[str], Measurement]
) -> None:
    sound = read("gated-l3")
    uniform = PROPERTY.measure(bench_of(controls.scale_decoder(sound, 0.8)))
    clean = value(measured_as_it_is("gated-l3"), "uniform_scale")
    assert value(uniform, "uniform_scale") == pytest.approx(clean / 0.8, rel=1e-4)
    assert value(uniform, "suppression_uniform_share_mse") > 0.95
    assert value(uniform, "suppression_uniform_share_kl") > 0.95
    factors = 1 + torch.rand(sound.d_sae, generator=torch.Generator().manual_seed(1))
    bench = bench_of(controls.scale_features(sound, 1 / factors))
    each = PROPERTY.measure(bench)
    fitted = bench.shared("scales", lambda: pytest.fail("not fitted"))
    found = torch.stack([fitted.per_feature[fitted.free], factors[fitted.free].double()])
    assert torch.corrcoef(found)[0, 1] > 0.95
    assert value(each, "suppression_uniform_share_mse") < 0.95
