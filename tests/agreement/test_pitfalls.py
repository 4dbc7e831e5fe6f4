"""Formulas of other suites that are wrong: their number and ours, beside a truth that is known beforehand.

Numbers of SAEBench are recorded (``record_saebench.py``); SAELens and dictionary_learning compute theirs here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.demo.paths import MODEL, SAES
from sae_bench.engine.bench import Bench
from sae_bench.measure.properties import load_property
from sae_bench.measure.properties.kl_gap import PROPERTY as KL_GAP
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model
from sae_bench.sae import controls

from . import given, planted
from .planted import World

Ours = Callable[[World], float]


def test_1_explained_variance_with_a_mean_over_dimensions_squared(recorded: dict[str, Any], ours_on: Ours) -> None:
    theirs = recorded["pitfalls"]["1"]
    assert (theirs["1"], theirs["100"]) == pytest.approx((0.9467, 1.0000032), abs=1e-4)
    for scale in (1, 100):
        world = planted.shrunk(scale)
        assert world.explained() == pytest.approx(0.8, abs=1e-6)
        assert ours_on(world) == pytest.approx(0.8, abs=1e-6)
    # Even on the demo it explains more than all of the variance.
    assert recorded["demo"]["saes"]["standard"]["every_position"]["explained_variance"] > 1


def test_2_explained_variance_as_a_mean_of_ratios(recorded: dict[str, Any], sae_lens_evals: Any, ours_on: Ours) -> None:
    from sae_lens.training.activation_scaler import ActivationScaler

    world = planted.uneven()
    rows = world.x.flatten(0, 1)
    metadata = SimpleNamespace(hook_name=given.SITE, hook_head_index=None)
    sae: Any = SimpleNamespace(
        cfg=SimpleNamespace(metadata=metadata, d_sae=world.sae.d_sae),
        device="cpu",
        encode=world.sae.encode,
        decode=world.sae.decode,
    )
    model: Any = SimpleNamespace(run_with_cache=lambda tokens, **_: (None, {given.SITE: rows[tokens]}))
    tokens = torch.arange(len(rows)).view(planted.DOCUMENTS, planted.POSITIONS)
    store: Any = SimpleNamespace(get_batch_tokens=lambda count: tokens)
    found, _ = sae_lens_evals.get_sparsity_and_variance_metrics(
        sae, model, store, ActivationScaler(), 1, True, True, True, False, len(tokens), {}
    )
    legacy = found["explained_variance_legacy"]
    assert legacy == pytest.approx(-0.566, abs=1e-3)
    assert recorded["pitfalls"]["2"] == pytest.approx(legacy, abs=1e-4)
    assert world.explained() == pytest.approx(0.96, abs=1e-3)
    assert ours_on(world) == pytest.approx(world.explained(), abs=1e-6)
    assert found["explained_variance"] == pytest.approx(world.explained(), abs=1e-6)


def test_3_a_probability_of_zero_makes_kl_nan_and_nan_minus_one(
    recorded: dict[str, Any], bench: Callable[..., Bench], tmp_path: Path
) -> None:
    import transformers

    assert recorded["pitfalls"]["3"] == -1
    stored = transformers.GPT2LMHeadModel.from_pretrained(MODEL)
    with torch.no_grad():
        stored.transformer.ln_f.weight.mul_(given.SHARPNESS)
        stored.transformer.ln_f.bias.mul_(given.SHARPNESS)
    stored.save_pretrained(tmp_path)
    sharp = bench("standard", model=load_model(str(tmp_path)))
    found = KL_GAP.measure(sharp).estimates["kl_sae"].value
    batch = sharp.batch(tuple(range(given.DOCUMENTS)))
    likely = sharp.log_probs(batch).exp()
    assert bool((likely == 0).any())
    # The same in float64, where no probability is 0.
    logits = [
        sharp.model.resume(batch.tokens, batch.block_input, sharp.site, each).double()[batch.keep]
        for each in (batch.x, sharp.reconstruct(batch))
    ]
    clean, patched = (each.log_softmax(-1) for each in logits)
    truth = float((clean.exp() * (clean - patched)).sum(-1).mean())
    assert math.isfinite(truth)
    assert found == pytest.approx(truth, rel=1e-5)


def test_4_squared_error_over_the_tokens_of_a_batch(recorded: dict[str, Any], bench: Callable[..., Bench]) -> None:
    theirs = recorded["pitfalls"]["4"]
    assert theirs["4"] == pytest.approx(4 * theirs["16"], rel=1e-4)
    everything = bench("standard").batch(tuple(range(given.DOCUMENTS)))
    sae = bench("standard").sae
    rows = everything.x[everything.keep]
    truth = float((sae.decode(sae.encode(rows)) - rows).double().square().sum(-1).mean())
    for size in (4, 16):
        found = load_property("reconstruction").measure(bench("standard", batch_size=size)).estimates["mse"].value
        assert found == pytest.approx(truth, rel=1e-5)
    # What SAEBench calls a mean squared error is this, over the tokens of a batch without its BOS.
    assert theirs["16"] * given.DOCUMENTS * (given.POSITIONS - 1) == pytest.approx(truth, rel=1e-3)


def test_5_bos_is_ablated_but_never_reconstructed(
    recorded: dict[str, Any], sae_lens_evals: Any, demo_model: Model, bench: Callable[..., Bench]
) -> None:
    """An SAE that writes zeros is zero ablation, so it recovers nothing."""
    theirs = recorded["pitfalls"]["5"]
    assert theirs["ce_loss_score"] > 0.01
    assert theirs["kl_div_score"] > 0.01
    assert theirs["ce_loss_with_ablation"] > math.log(demo_model.d_vocab)
    lens = _sae_lens_scores(sae_lens_evals, demo_model)
    for name in ("ce_loss_score", "kl_div_score", "ce_loss_with_ablation"):
        assert lens[name] == pytest.approx(theirs[name], rel=1e-4)
    nothing = bench(controls.constant(torch.zeros(demo_model.d_model)))
    found = KL_GAP.measure(nothing).estimates
    assert found["ce_recovered_zero"].value == 0
    assert found["kl_sae"].value == found["kl_zero_ablation"].value
    assert found["ce_sae"].value == pytest.approx(theirs["ce_loss_with_sae"], rel=1e-5)


def _sae_lens_scores(evals: Any, model: Model) -> dict[str, float]:
    """What SAELens says of an SAE that writes zeros, with BOS left out."""
    from sae_lens import SAE
    from sae_lens.training.activation_scaler import ActivationScaler

    sae = SAE.load_from_disk(SAES["standard"])
    store: Any = SimpleNamespace(get_batch_tokens=lambda count: given.demo_tokens())
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.b_dec.zero_()
        found: dict[str, float] = evals.get_downstream_reconstruction_metrics(
            sae, model.bridge, store, ActivationScaler(), True, True, 1, given.DOCUMENTS, ignore_tokens=[given.BOS]
        )
    return found


def test_6_sparsity_is_of_other_tokens_than_the_loss(
    sae_lens_evals: Any, demo_model: Model, bench: Callable[..., Bench]
) -> None:
    """Half of the documents repeat one word; one report of SAELens has the loss of one half and L0 of the other."""
    from sae_lens import SAE
    from sae_lens.training.activation_scaler import ActivationScaler

    half = given.DOCUMENTS // 2
    tokens = given.demo_tokens()
    tokens[half:, 1:] = 2
    config = sae_lens_evals.EvalConfig(
        batch_size_prompts=half,
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=1,
        compute_kl=True,
        compute_sparsity_metrics=True,
    )
    theirs, _ = sae_lens_evals.run_evals(
        SAE.load_from_disk(SAES["standard"]),
        _store(demo_model, tokens),
        demo_model.bridge,
        ActivationScaler(),
        config,
        exclude_special_tokens=False,
    )
    kl, l0 = theirs["model_behavior_preservation"]["kl_div_with_sae"], theirs["sparsity"]["l0"]
    halves = [bench("standard", tokens=each, include_bos=True) for each in (tokens[:half], tokens[half:])]
    ours = [
        (
            load_property("sparsity").measure(each).estimates["l0"].value,
            each.intervene(batch := each.batch(tuple(range(half))), each.reconstruct(batch)).kl.double().mean().item(),
        )
        for each in halves
    ]
    truth = [float((each.sae.encode(each.site_data.rows) != 0).sum(-1).double().mean()) for each in halves]
    assert kl == pytest.approx(ours[0][1], rel=1e-4)
    assert l0 == pytest.approx(ours[1][0], rel=1e-5)
    assert ours[0][0] - ours[1][0] > 5
    assert ours[1][1] != pytest.approx(kl, rel=0.1)
    assert [each[0] for each in ours] == pytest.approx(truth, rel=1e-5)


def _store(model: Model, tokens: Tensor) -> Any:
    """SAELens' own store of ``tokens``, each document a context."""
    import datasets
    from sae_lens.training.activations_store import ActivationsStore

    return ActivationsStore(
        model=model.bridge,
        dataset=datasets.Dataset.from_dict({"tokens": tokens.tolist()}),
        streaming=False,
        hook_name=given.SITE,
        hook_head_index=None,
        context_size=tokens.shape[1],
        d_in=model.d_model,
        n_batches_in_buffer=2,
        total_training_tokens=10**6,
        store_batch_size_prompts=len(tokens) // 2,
        train_batch_size_tokens=64,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )


@pytest.mark.parametrize(
    ("world", "batches", "theirs", "truth"),
    [(planted.offset(), 1, 1.0, 0.5), (planted.two_batches(), 2, 0.7475, 1 - 1 / 101)],
    ids=["an offset costs nothing", "a mean of batches"],
)
def test_15_a_centred_residual_and_means_over_batches(
    learning_evaluate: Any, ours_on: Ours, world: World, batches: int, theirs: float, truth: float
) -> None:
    class Dictionary:
        dict_size = world.sae.d_sae

        def __call__(self, x: Tensor, output_features: bool) -> tuple[Tensor, Tensor]:
            codes = world.sae.encode(x)
            return world.sae.decode(codes), codes

    parts = iter([part.flatten(0, 1) for part in world.x.chunk(batches)])
    found = learning_evaluate(Dictionary(), parts, n_batches=batches)["frac_variance_explained"]
    assert found == pytest.approx(theirs, abs=2e-3)
    assert world.explained() == pytest.approx(truth, abs=1e-3)
    assert ours_on(world) == pytest.approx(world.explained(), abs=1e-6)
