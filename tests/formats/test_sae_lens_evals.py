"""SAELens' own evaluation (what its ``run_evals`` is made of) on the same tokens: every architecture at two sites."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_bench.bench import Bench, site_data
from sae_bench.corpus import Corpus, from_documents
from sae_bench.formats import as_sae
from sae_bench.model import Model, wrap_model
from sae_bench.properties import load_property
from sae_bench.site import parse_site
from sae_bench.tiers import Settings

SITES = ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z")
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("StandardSAE", {}),
    "gated": ("GatedSAE", {}),
    "jumprelu": ("JumpReLUSAE", {}),
    "topk": ("TopKSAE", {"k": 5}),
    "topk_rescaled": ("TopKSAE", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    "abstopk": ("AbsTopKSAE", {"k": 5}),
    "matching_pursuit": ("MatchingPursuitSAE", {"max_iterations": 4, "residual_threshold": 0.0}),
    "layer_norm": ("StandardSAE", {"normalize_activations": "layer_norm"}),
}


@pytest.fixture(scope="module")
def model() -> Model:
    lens = pytest.importorskip("transformer_lens")
    if not hasattr(lens, "HookedTransformer"):
        pytest.skip("this TransformerLens has no HookedTransformer, which SAELens evaluates")
    config = lens.HookedTransformerConfig(
        n_layers=3, d_model=12, n_ctx=32, d_head=4, n_heads=3, d_vocab=61, act_fn="gelu", seed=0, init_weights=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooked = lens.HookedTransformer(config)
    with torch.no_grad():
        for parameter in hooked.parameters():
            parameter.mul_(4)
    return wrap_model(hooked)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    tokens = torch.randint(0, 61, (24, 20), generator=torch.Generator().manual_seed(2))
    return from_documents(tokens.tolist(), has_bos=True)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_their_numbers_are_ours(
    sae_lens: Any, make: Callable[..., Any], model: Model, corpus: Corpus, architecture: str, site: str
) -> None:
    from sae_lens import evals
    from sae_lens.training.activation_scaler import ActivationScaler

    name, config = ARCHITECTURES[architecture]
    theirs = make(name, hook_name=site, **config)
    with torch.no_grad():
        theirs.W_dec.div_(theirs.W_dec.norm(dim=1, keepdim=True) * (1 if name.startswith("Match") else 2))
    store: Any = SimpleNamespace(get_batch_tokens=lambda count: corpus.tokens)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = evals.get_sparsity_and_variance_metrics(
            theirs, model.bridge, store, ActivationScaler(), 1, True, True, True, False, 24, {}
        )
        found |= evals.get_downstream_reconstruction_metrics(
            theirs, model.bridge, store, ActivationScaler(), True, True, 1, 24
        )
    # They replace and count every position, BOS as well.
    data = site_data(model, parse_site(site), corpus, Settings(), include_bos=True)
    bench = Bench(as_sae(theirs), model, corpus, data, Settings(), include_bos=True)
    shape = load_property("reconstruction").measure(bench).estimates
    batch = bench.batch(tuple(range(len(corpus))))
    clean, patched = bench.outcome(batch, None), bench.outcome(batch, bench.reconstruct(batch))
    ours = {
        "explained_variance": shape["explained_variance"].value,
        "mse": shape["mse"].value,
        "cossim": shape["cosine"].value,
        "l0": load_property("sparsity").measure(bench).estimates["l0"].value,
        "kl_div_with_sae": float(patched.kl[batch.keep].double().mean()),
        "ce_loss_with_sae": float(patched.ce[batch.keep_ce].double().mean()),
        "ce_loss_without_sae": float(clean.ce[batch.keep_ce].double().mean()),
    }
    assert found["kl_div_with_sae"] > 1e-3
    for key, value in ours.items():
        assert value == pytest.approx(found[key], rel=1e-5, abs=1e-6), key


def test_a_transcoder_is_scored_against_its_input_there_and_its_output_here(
    sae_lens: Any, make: Callable[..., Any], model: Model, corpus: Corpus
) -> None:
    from sae_lens import evals
    from sae_lens.training.activation_scaler import ActivationScaler

    theirs = make("Transcoder", d_out=12, apply_b_dec_to_input=False, hook_name=SITES[0])
    theirs.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    store: Any = SimpleNamespace(get_batch_tokens=lambda count: corpus.tokens)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = evals.get_sparsity_and_variance_metrics(
            theirs, model.bridge, store, ActivationScaler(), 1, True, True, True, False, 24, {}
        )
    read, written = (
        site_data(model, parse_site(name), corpus, Settings(), include_bos=True)
        for name in (SITES[0], "blocks.1.hook_mlp_out")
    )
    ours = Bench(as_sae(theirs), model, corpus, written, Settings(), include_bos=True, source=read)
    with torch.no_grad():
        xhat = theirs(read.rows).double()

    def explained(target: torch.Tensor) -> float:
        return 1 - float((xhat - target).square().sum() / (target - target.mean(0)).square().sum())

    assert found["explained_variance"] == pytest.approx(explained(read.rows.double()), rel=1e-5)
    value = load_property("reconstruction").measure(ours).estimates["explained_variance"].value
    assert value == pytest.approx(explained(written.rows.double()), rel=1e-5)
    assert abs(value - found["explained_variance"]) > 0.1
