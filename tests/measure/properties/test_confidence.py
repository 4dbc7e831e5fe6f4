"""`confidence`: a temperature is undone, a length is seen with the scale frozen, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

from sae_bench.demo.paths import CORPUS, MODEL
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import load_corpus
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.measure.measurement import Undefined
from sae_bench.measure.properties.confidence import PROPERTY, rank_correlation, tempered_kl
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site
from sae_bench.sae import controls


def rows(seed: int, spread: float = 2.0) -> torch.Tensor:
    return (spread * torch.randn(50, 30, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


@pytest.fixture(scope="module")
def last() -> Callable[..., Bench]:
    """Benches behind the demo's last block, where only the final norm follows; ``last(sae)``."""
    model, corpus, site = load_model(str(MODEL)), load_corpus(CORPUS), parse_site("blocks.3.hook_resid_post")
    settings = Settings(tier=TIERS["smoke"], documents=8)
    return lambda sae: Bench(sae, model, corpus, capture_site(model, site, corpus, settings), settings)


@given(st.floats(0.1, 8), st.integers(0, 9))
def test_a_changed_temperature_is_undone(inverse: float, seed: int) -> None:
    logp = rows(seed)
    logq = (inverse * logp).log_softmax(-1)
    assert float(tempered_kl(logp, logq).max()) < 1e-4


@given(st.integers(0, 9), st.integers(10, 19))
def test_the_best_temperature_is_scipys_and_never_worse_than_none(first: int, second: int) -> None:
    logp, logq = rows(first), rows(second)
    p = logp.exp().double().numpy()

    def at(b: float, row: int) -> float:
        tempered = (b * logq[row].double()).log_softmax(-1).numpy()
        return float((p[row] * (logp[row].double().numpy() - tempered)).sum())

    found = tempered_kl(logp, logq)
    assert bool((found <= (logp.exp() * (logp - logq)).sum(-1) + 1e-6).all())
    for row in range(0, 50, 10):
        best = minimize_scalar(at, bounds=(1e-4, 20), args=(row,), method="bounded").fun
        assert float(found[row]) == pytest.approx(max(best, 0), abs=2e-3)


def test_only_the_length_moves(last: Callable[..., Bench]) -> None:
    """A last residual times .8: the final norm undoes it, and with its scale frozen it flattens the distribution."""
    bench = last(controls.scale_decoder(controls.identity(128), 0.8))
    found = PROPERTY.measure(bench).estimates
    assert found["kl_frozen"].value > 1e-3
    kl = found["kl_frozen"].value - found["kl_frozen_difference"].value
    assert kl < 1e-3 * found["kl_frozen"].value
    assert found["log_scale_shift"].value == pytest.approx(np.log(0.8), abs=1e-3)
    assert abs(found["entropy_shift"].value) < 1e-4


def test_a_frozen_scale_makes_the_logits_linear(last: Callable[..., Bench]) -> None:
    model = last(controls.identity(128)).model
    resid = torch.randn(7, 128, generator=torch.Generator().manual_seed(0)) * 5
    bias = model.final_logits(torch.zeros(1, 128))
    frozen = model.final_logits(0.3 * resid, scale=model.norm_scale(resid))
    torch.testing.assert_close(frozen - bias, 0.3 * (model.final_logits(resid) - bias), atol=1e-4, rtol=1e-4)


def check_scale(model: Model, centred: bool, epsilon: float) -> None:
    resid = torch.randn(7, model.d_model, generator=torch.Generator().manual_seed(0)) + 1
    about = resid - resid.mean(-1, keepdim=True) if centred else resid
    expected = (about.square().mean(-1, keepdim=True) + epsilon).sqrt()
    torch.testing.assert_close(model.norm_scale(resid), expected)


def test_the_scale_of_a_layer_norm(last: Callable[..., Bench]) -> None:
    check_scale(last(controls.identity(128)).model, centred=True, epsilon=1e-5)


def test_the_scale_of_an_rms_norm(real_assets: Path) -> None:
    model = load_model(str(real_assets / "model"))
    check_scale(model, centred=False, epsilon=float(model.bridge.cfg.eps))


def test_the_last_residual_gives_the_models_own_logits(demo_bench: Callable[..., Bench]) -> None:
    bench = demo_bench()
    batch = bench.batch((0, 1, 2))
    logits = bench.model.final_logits(bench.final_residual(batch, batch.x))
    torch.testing.assert_close(logits, bench.model.logits(batch.tokens)[batch.keep], atol=1e-5, rtol=1e-5)


def test_the_kl_is_that_of_kl_gap(demo_bench: Callable[..., Bench]) -> None:
    from sae_bench.measure.properties.kl_gap import PROPERTY as KL_GAP

    bench = demo_bench()
    found, other = PROPERTY.measure(bench).estimates, KL_GAP.measure(bench).estimates
    for suffix, name in (("", "kl_sae"), ("_isotropic", "kl_isotropic")):
        kl = found[f"kl_frozen{suffix}"].value - found[f"kl_frozen_difference{suffix}"].value
        assert kl == pytest.approx(other[name].value, rel=1e-4)


def test_an_sae_without_error_changes_nothing(demo_bench: Callable[..., Bench]) -> None:
    found = PROPERTY.measure(demo_bench(lambda sae: controls.identity(sae.d_in))).estimates
    assert found["entropy_shift"].value == 0
    assert found["kl_frozen"].value == 0
    assert isinstance(found["temperature_share"], Undefined)
    assert isinstance(found["scale_correlation"], Undefined)


def test_damage_is_not_a_matter_of_temperature(demo_bench: Callable[..., Bench]) -> None:
    """A permuted decoder makes the model predict something else, which no temperature repairs."""
    permuted = demo_bench(lambda sae: controls.permuted(sae, torch.Generator().manual_seed(0)))
    found = PROPERTY.measure(permuted).estimates
    assert 0 <= found["temperature_share"].value < 0.6
    assert found["entropy_shift"].value > 0.1


def test_rank_correlation_is_spearmans_and_its_error_is_honest(demo_bench: Callable[..., Bench]) -> None:
    bench = demo_bench()
    shape = tuple(bench.keep.shape)
    generator = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(60):
        left = torch.randn(shape, generator=generator)
        right = left + 2 * torch.randn(shape, generator=generator)
        found = rank_correlation(bench, left, right)
        assert not isinstance(found, Undefined)
        values.append(found.value)
        errors.append(float(np.sqrt(np.square(found.influence).sum())))
    keep = bench.keep.numpy()
    assert values[-1] == pytest.approx(spearmanr(left.numpy()[keep], right.numpy()[keep]).statistic, abs=1e-9)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)
