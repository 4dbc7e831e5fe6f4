"""SAELens' own ``run_evals`` on the same tokens: every architecture at two sites."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_bench.engine.batch import InterventionResult
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import Corpus, from_documents
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.measure.properties import load_property
from sae_bench.model.language_model import Model
from sae_bench.model.load import wrap_model
from sae_bench.registry.site import parse_site
from sae_bench.sae.formats import as_sae

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
    "constant_norm_rescale": ("JumpReLUSAE", {"normalize_activations": "constant_norm_rescale"}),
}
TRANSCODERS = ("Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder")
OUTPUT = "blocks.1.hook_mlp_out"


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


def test_these_are_all_architectures(sae_lens: Any) -> None:
    from sae_lens.registry import SAE_CLASS_REGISTRY

    tried = {name for name, _ in ARCHITECTURES.values()} | set(TRANSCODERS)
    # The codes of one depend on the tokens before; it is refused.
    assert {cls.__name__ for cls, _ in SAE_CLASS_REGISTRY.values()} - {"TemporalSAE"} == tried


def run_evals(theirs: Any, model: Model, corpus: Corpus) -> dict[str, float]:
    """Everything that SAELens says, by name, of an SAE at every position, BOS as well."""
    from sae_lens import evals
    from sae_lens.training.activation_scaler import ActivationScaler

    store: Any = SimpleNamespace(
        get_batch_tokens=lambda count: corpus.tokens,
        reset_input_dataset=lambda: None,
        store_batch_size_prompts=len(corpus),
        context_size=corpus.tokens.shape[1],
    )
    config = evals.EvalConfig(
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=1,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = evals.run_evals(
            theirs, store, model.bridge, ActivationScaler(), config, exclude_special_tokens=False
        )
    return {name: value for group in found.values() for name, value in group.items()}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_their_numbers_are_ours(
    make: Callable[..., Any], model: Model, corpus: Corpus, architecture: str, site: str
) -> None:
    name, config = ARCHITECTURES[architecture]
    theirs = make(name, hook_name=site, **config)
    with torch.no_grad():
        theirs.W_dec.div_(theirs.W_dec.norm(dim=1, keepdim=True) * (1 if name.startswith("Match") else 2))
    found = run_evals(theirs, model, corpus)
    data = capture_site(model, parse_site(site), corpus, Settings(), include_bos=True)
    bench = Bench(as_sae(theirs), model, corpus, data, Settings(), include_bos=True)
    shape = load_property("reconstruction").measure(bench).estimates
    everything = bench.batch(tuple(range(len(corpus))))
    zero = bench.intervene(everything, torch.zeros_like(everything.x))
    clean, patched = bench.intervene(everything, None), bench.intervene(everything, bench.reconstruct(everything))

    def ce(outcome: InterventionResult) -> float:
        return float(outcome.ce[everything.keep_ce].double().mean())

    x, xhat = data.rows, bench.reconstruct(everything)[everything.keep]
    ours = {
        "explained_variance": shape["explained_variance"].value,
        "mse": shape["mse"].value,
        "cossim": shape["cosine"].value,
        "l0": load_property("sparsity").measure(bench).estimates["l0"].value,
        "l2_norm_in": shape["activation_norm"].value,
        "l2_ratio": float((xhat.norm(dim=-1) / x.norm(dim=-1)).double().mean()),
        "kl_div_with_sae": float(patched.kl[everything.keep].double().mean()),
        "kl_div_with_ablation": float(zero.kl[everything.keep].double().mean()),
        "ce_loss_with_sae": ce(patched),
        "ce_loss_without_sae": ce(clean),
        "ce_loss_with_ablation": ce(zero),
    }
    assert found["kl_div_with_sae"] > 1e-3
    for key, value in ours.items():
        assert value == pytest.approx(found[key], rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", TRANSCODERS)
def test_a_transcoder_is_scored_against_its_input_there_and_its_output_here(
    make: Callable[..., Any], model: Model, corpus: Corpus, name: str, site: str
) -> None:
    """Codes are counted alike; what a transcoder writes is not what it reads, and there its skip path is left out."""
    theirs = make(name, d_out=12, apply_b_dec_to_input=False, hook_name=site)
    theirs.cfg.metadata.hook_name_out = OUTPUT
    found = run_evals(theirs, model, corpus)
    read, written = (
        capture_site(model, parse_site(each), corpus, Settings(), include_bos=True) for each in (site, OUTPUT)
    )
    ours = Bench(as_sae(theirs), model, corpus, written, Settings(), include_bos=True, source=read)
    with torch.no_grad():
        decoded, whole = theirs.decode(theirs.encode(read.rows)).double(), theirs(read.rows).double()

    def explained(xhat: torch.Tensor, target: torch.Tensor) -> float:
        return 1 - float((xhat - target).square().sum() / (target - target.mean(0)).square().sum())

    assert load_property("sparsity").measure(ours).estimates["l0"].value == pytest.approx(found["l0"], rel=1e-5)
    assert found["explained_variance"] == pytest.approx(explained(decoded, read.rows.double()), rel=1e-5)
    value = load_property("reconstruction").measure(ours).estimates["explained_variance"].value
    assert value == pytest.approx(explained(whole, written.rows.double()), rel=1e-5)
    assert abs(value - found["explained_variance"]) > 0.1
    assert bool(torch.equal(decoded, whole)) == ("Skip" not in name)
