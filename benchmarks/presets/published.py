"""The arms of Gurnee's table of KL by substitution, for comparing with what was published (definitions, 1.2 and 15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from sae_bench.engine import noise_floors
from sae_bench.engine.batch import Batch
from sae_bench.engine.bench import Bench
from sae_bench.sae import SAE, unit_directions

LAYER_6: Mapping[str, float] = {
    "sae": 0.154157,
    "norm_corrected": 0.162968,
    "sae_norm": 0.002826,
    "isotropic": 0.061070,
    "theta_sae_norm": 0.068346,
    "theta_true_norm": 0.065101,
}
"Mean KL in nats over 1,600 OpenWebText sequences of 128 tokens, BOS replaced and averaged in."

LAYER_6_AT_BOS: Mapping[str, float] = {"sae": 0.003332, "norm_corrected": 0.004148, "sae_norm": 0.000196}
"KL at position 0, the same for every sequence."

CYCLE_COSINES: Mapping[str, float] = {"days": 0.63, "months": 0.53, "years": 0.55}
"Mean pairwise cosine of the decoder rows of each cycle's features, layer 7; random directions have 0."

CLEAN_CE = (3.557, 3.569)
"Loss of GPT-2 small on such sequences."


def substitutions(bench: Bench) -> dict[str, torch.Tensor]:
    """(documents, pos) KL of each arm, and the clean loss under ``clean_ce``; 0 outside the kept positions."""

    def tables(batch: Batch) -> dict[str, torch.Tensor]:
        x, error, pool = batch.x, bench.error(batch), bench.noise_pool()
        found = {"sae": bench.intervene(batch, x + error).kl, "clean_ce": bench.intervene(batch, None).ce}
        for name in ("norm_corrected", "sae_norm"):
            found[name] = bench.intervene(batch, getattr(noise_floors, name)(x, error, pool)).kl
        for name in ("isotropic", "theta_sae_norm", "theta_true_norm"):
            found[name] = bench.intervene(
                batch, getattr(noise_floors, name)(x, error, pool, bench.draw(batch, name, 0))
            ).kl
        return found

    return bench.collect(tables)


def means(bench: Bench, tables: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Mean of each table over positions 0 to 126, where KL and loss both have a value."""
    at = bench.keep_ce.cpu()
    return {name: float(values[at].mean()) for name, values in tables.items()}


def mean_pairwise_cosine(sae: SAE, features: Sequence[int]) -> float:
    """Of the decoder rows of some features, over all pairs."""
    rows = unit_directions(sae)[list(features)]
    pairs = torch.triu_indices(len(rows), len(rows), offset=1)
    return float((rows[pairs[0]] * rows[pairs[1]]).sum(1).mean())
