"""SAEBench's own values, kept in ``saebench.json``; the tests beside this file hold ours against them.

    python3 -m venv /tmp/saebench && /tmp/saebench/bin/pip install sae-bench==0.6.0 'numpy<2'
    /tmp/saebench/bin/python tests/agreement/record_saebench.py

torchvision, which comes with it and is not needed, may be of another build than torch; then ``pip uninstall`` it.

It runs in an environment of its own, since SAEBench's package has the import name of this project: the demo is read by
SAELens and HookedTransformer, and nothing of this project is imported but ``given.py`` and
``planted.py``, which need torch alone.
"""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import suppress
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import planted
import torch
from given import BOS, DEMO, DOCUMENTS, POSITIONS, RESULT, SAES, SHARPNESS, SITE, demo_sha256, demo_tokens
from torch import Tensor

PACKAGES = ("sae-bench", "sae-lens", "transformer-lens", "torch")


def main() -> None:
    """Record everything."""
    import sae_bench

    assert "site-packages" in str(sae_bench.__file__), f"{sae_bench.__file__} is not SAEBench"
    torch.set_grad_enabled(False)
    model, tokens = demo_model(), demo_tokens()
    found = {
        "command": "python tests/agreement/record_saebench.py",
        "versions": {name: version(name) for name in PACKAGES},
        "demo": {
            "sha256": demo_sha256(),
            "site": SITE,
            "documents": DOCUMENTS,
            "positions": POSITIONS,
            "saes": {name: demo_values(model, tokens, name) for name in SAES},
        },
        "pitfalls": pitfalls(model, tokens),
    }
    RESULT.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    sys.stdout.write(f"wrote {RESULT}\n")


def demo_model(sharpness: float = 1.0) -> Any:
    """The demo's GPT-2 as a HookedTransformer, nothing folded; its last norm's output times ``sharpness``."""
    import transformers
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    stored = transformers.GPT2LMHeadModel.from_pretrained(DEMO / "model")
    said = stored.config
    config = HookedTransformerConfig(
        n_layers=said.n_layer, d_model=said.n_embd, n_ctx=said.n_positions, d_head=said.n_embd // said.n_head,
        n_heads=said.n_head, d_mlp=4 * said.n_embd, d_vocab=said.vocab_size, act_fn="gelu_new",
        eps=said.layer_norm_epsilon, normalization_type="LN",
    )  # fmt: skip
    model = HookedTransformer(config)
    model.load_and_process_state_dict(
        convert_gpt2_weights(stored, config), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    model.ln_final.w.mul_(sharpness)
    model.ln_final.b.mul_(sharpness)
    tokens = demo_tokens()[:4]
    due = torch.nn.functional.linear(
        sharpness * stored.transformer(tokens).last_hidden_state, stored.lm_head.weight
    )  # (4, positions, vocabulary)
    torch.testing.assert_close(model(tokens), due, rtol=1e-4, atol=1e-3)
    return model


class Store:
    """Stands where an ActivationsStore would: the same tokens for every part of an evaluation, in order."""

    def __init__(self, tokens: Tensor, batch: int) -> None:
        self.tokens, self.store_batch_size_prompts, self.context_size = tokens, batch, tokens.shape[1]
        self.reset_input_dataset()

    def reset_input_dataset(self) -> None:
        self.at = 0

    def get_batch_tokens(self, count: int) -> Tensor:
        self.at += count
        return self.tokens[self.at - count : self.at]


def core(sae: Any, model: Any, tokens: Tensor, ignored: set[int], batch: int = DOCUMENTS) -> dict[str, float]:
    """Values of SAEBench's core evaluation by name, as its own report holds them (NaN is stored as -1)."""
    from sae_bench.evals.core import main as evaluation
    from sae_bench.evals.core.eval_config import CoreEvalConfig

    batches = len(tokens) // batch
    config = CoreEvalConfig(
        model_name="demo", batch_size_prompts=batch, n_eval_reconstruction_batches=batches,
        n_eval_sparsity_variance_batches=batches, context_size=tokens.shape[1], compute_kl=True, compute_ce_loss=True,
        compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=True, compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=bool(ignored),
    )  # fmt: skip
    metrics, features = evaluation.run_evals(sae, Store(tokens, batch), model, config, ignore_tokens=ignored)
    metrics["misc_metrics"] = evaluation.calculate_misc_metrics(features)
    metrics = evaluation.replace_nans_with_negative_one(metrics)
    return {name: value for group in metrics.values() for name, value in group.items()}


def demo_values(model: Any, tokens: Tensor, name: str) -> dict[str, dict[str, float]]:
    """With the SAE at every position, and with BOS left alone and left out."""
    sae = demo_sae(name)
    return {"every_position": core(sae, model, tokens, set()), "without_bos": core(sae, model, tokens, {BOS})}


def demo_sae(name: str) -> Any:
    """An SAE of the demo, read by SAELens and prepared as SAEBench prepares one of SAELens' releases."""
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = SAE.load_from_disk(DEMO / "saes" / name)
        with suppress(NotImplementedError):
            sae.fold_W_dec_norm()
        return load_and_format_sae("demo", sae, "cpu")[1]


def pitfalls(model: Any, tokens: Tensor) -> dict[str, Any]:
    """What the mistakes do to numbers that are known beforehand."""
    standard = demo_sae("standard")
    return {
        "1": {str(scale): on_world(planted.shrunk(scale))["explained_variance"] for scale in (1, 100)},
        "2": on_world(planted.uneven())["explained_variance_legacy"],
        "3": core(standard, demo_model(SHARPNESS), tokens, {BOS})["kl_div_with_sae"],
        "4": {str(batch): core(standard, model, tokens, {BOS}, batch)["mse"] for batch in (4, 16)},
        "5": nothing(model, tokens),
    }


def on_world(world: planted.World) -> dict[str, float]:
    """SAEBench's means over the planted activations, which a stand-in for the model shows."""
    from sae_bench.evals.core.main import get_sparsity_and_variance_metrics

    documents, positions = world.x.shape[:2]
    config = SimpleNamespace(hook_name=SITE, hook_layer=2, hook_head_index=None, d_sae=world.sae.d_sae)
    sae: Any = SimpleNamespace(cfg=config, device="cpu", encode=world.sae.encode, decode=world.sae.decode)
    rows = world.x.flatten(0, 1)
    model: Any = SimpleNamespace(run_with_cache=lambda tokens, **_: (None, {SITE: rows[tokens]}))
    return get_sparsity_and_variance_metrics(
        sae, model, Store(torch.arange(len(rows)).view(documents, positions), documents), 1, True, True, True, True,
        documents, {},
    )[0]  # fmt: skip


def nothing(model: Any, tokens: Tensor) -> dict[str, float]:
    """Scores of an SAE that writes zeros, which is what zero ablation writes."""
    sae = demo_sae("standard")
    for tensor in (sae.W_dec, sae.b_dec):
        tensor.zero_()
    names = ("ce_loss_score", "kl_div_score", "ce_loss_with_sae", "ce_loss_with_ablation", "ce_loss_without_sae")
    found = core(sae, model, tokens, {BOS})
    return {name: found[name] for name in names}


if __name__ == "__main__":
    main()
