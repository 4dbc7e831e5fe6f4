"""Every property of a transcoder: held against its own output, or without a value and a reason."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import Corpus
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.measure.measurement import Undefined
from sae_bench.measure.properties import TRANSCODER, load_property, property_names
from sae_bench.model.language_model import Model
from sae_bench.registry.site import parse_site
from sae_bench.sae import JumpReLU, LinearDecoderSAE, SAEInfo

READ, WRITTEN = "blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"


@pytest.fixture(scope="module")
def bench(tiny_model: Callable[..., Model], corpus: Corpus) -> Bench:
    """Reads what the MLP's neurons say (64 wide) and writes what the MLP writes (16), nearly as the model does."""
    model, settings = tiny_model("GPT2"), Settings()
    source, target = (capture_site(model, parse_site(name), corpus, settings) for name in (READ, WRITTEN))
    x, y = source.rows[source.kept_positions], target.rows[target.kept_positions]
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], dim=1), y).solution  # (65, 16)
    both = torch.cat([torch.eye(64), -torch.eye(64)])
    sae = LinearDecoderSAE(
        info=SAEInfo("sae_lens", "jumprelu_transcoder", 64, 128, site_in=READ, site_out=WRITTEN),
        W_enc=both.T.contiguous(),
        activation=JumpReLU(torch.zeros(128), torch.full((128,), 0.1)),
        W_dec=both @ solved[:64],
        b_dec=solved[64],
        pre_bias=torch.zeros(64),
    )
    return Bench(sae, model, corpus, target, settings, source=source)


def test_fidelity_is_that_of_the_output(bench: Bench) -> None:
    found = load_property("reconstruction").measure(bench).estimates
    everything = bench.batch(tuple(range(len(bench.corpus))))
    xhat = bench.sae.decode(bench.sae.encode(everything.source[everything.keep]))
    x = everything.x[everything.keep]
    due = 1 - float((xhat - x).square().sum() / (x - x.mean(0)).square().sum())
    assert 0.3 < due < 0.999
    assert found["explained_variance"].value == pytest.approx(due, abs=1e-5)
    gap = load_property("kl_gap").measure(bench).estimates
    sae = bench.intervene(everything, bench.reconstruct(everything)).kl[everything.keep]
    assert gap["kl_sae"].value == pytest.approx(float(sae.double().mean()), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in property_names() if name not in ("reconstruction", "kl_gap")])
def test_no_property_mistakes_what_is_read_for_what_is_written(bench: Bench, name: str) -> None:
    found = load_property(name).measure(bench).estimates
    assert all(isinstance(each, Undefined) or math.isfinite(each.value) for each in found.values())
    reasons = {each.reason for each in found.values() if isinstance(each, Undefined)}
    assert TRANSCODER not in reasons
