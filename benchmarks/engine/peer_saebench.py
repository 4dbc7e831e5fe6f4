"""SAEBench's core evaluation in an environment of its own; `bench_peers` starts it and says when to measure.

SAEBench (PyPI ``sae-bench``) needs numpy below 2 and owns the import name ``sae_bench``, so this file runs as
``python -I peer_saebench.py FOLDER`` with that environment's Python and imports nothing of this repository. For every
line that it reads it measures once and answers with a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROMPTS = 16
"Documents in a batch, SAELens' own default."


class Tokens:
    """What SAELens and SAEBench need of an activation store: the same batches of tokens again and again."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self.context_size, self.store_batch_size_prompts = tokens, tokens.shape[1], PROMPTS
        self.batches = len(tokens) // PROMPTS
        self.reset_input_dataset()

    def reset_input_dataset(self) -> None:
        self._left: Iterator[Tensor] = iter(())

    def get_batch_tokens(self, count: int) -> Tensor:
        found = next(self._left, None)
        if found is None:
            self._left = iter(self.tokens.split(count))
            found = next(self._left)
        return found


def hooked(folder: str) -> Any:
    """The model of a Hugging Face folder as the HookedTransformer that SAELens and SAEBench load by default."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import GPT2LMHeadModel

    source = GPT2LMHeadModel.from_pretrained(folder)
    shape = source.config
    config = HookedTransformerConfig(
        n_layers=shape.n_layer, d_model=shape.n_embd, n_heads=shape.n_head, d_head=shape.n_embd // shape.n_head,
        n_ctx=shape.n_positions, d_vocab=shape.vocab_size, act_fn="gelu_new", normalization_type="LN",
        eps=shape.layer_norm_epsilon,
    )  # fmt: skip
    model = HookedTransformer(config)
    model.load_state_dict(convert_gpt2_weights(source, config), strict=False)
    return model.eval()


def evaluation(config: Any, batches: int) -> Any:
    """``config`` (a class of SAELens or SAEBench) with the metrics that are compared."""
    return config(
        batch_size_prompts=PROMPTS, n_eval_reconstruction_batches=batches, n_eval_sparsity_variance_batches=batches,
        compute_kl=True, compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True,
        compute_variance_metrics=True, compute_featurewise_density_statistics=False,
        compute_featurewise_weight_based_metrics=False,
    )  # fmt: skip


def flat(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """All groups of metrics in one."""
    return {name: float(value) for group in metrics.values() for name, value in group.items()}


def main(folder: Path) -> None:
    from sae_bench.custom_saes.jumprelu_sae import JumpReluSAE
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import run_evals
    from safetensors.torch import load_file

    tensors = load_file(folder / "sae.safetensors")
    about = json.loads((folder / "about.json").read_text())
    torch.set_num_threads(about["threads"])
    width, features = tensors["W_enc"].shape
    sae = JumpReluSAE(
        width,
        features,
        "gpt2",
        about["layer"],
        torch.device("cpu"),
        torch.float32,
        f"blocks.{about['layer']}.hook_resid_pre",
    )
    sae.load_state_dict(tensors)
    model, store = hooked(str(folder / "model")), Tokens(tensors_of(folder))
    config = evaluation(CoreEvalConfig, store.batches)
    print("ready", flush=True)  # noqa: T201
    for _ in sys.stdin:
        clock, processor = time.perf_counter(), time.process_time()
        metrics, _ = run_evals(sae, store, model, config)
        took = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}
        print(json.dumps({**took, "values": flat(metrics)}), flush=True)  # noqa: T201


def tensors_of(folder: Path) -> Tensor:
    """The tokens, int64 (documents, positions)."""
    from safetensors.torch import load_file

    return load_file(folder / "tokens.safetensors")["tokens"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
