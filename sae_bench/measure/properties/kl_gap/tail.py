"""Rank of the reconstruction's KL at single positions among many draws of isotropic noise (full tier).

At one position of every document, x̂ is compared with K draws of noise of the same norm:
rank = (1 + #{KL_k >= KL_sae}) / (K + 1).
A mean over tokens cannot tell "every reconstruction is worse than noise" from "a few are very bad"; the rank can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.measurement import Estimate, Metric, Ratio, Undefined

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench

TAIL_METRICS = (
    Metric("tail_rank", "share", "reported", "mean rank of the reconstruction's KL among draws of isotropic noise"),
    Metric("tail_share", "share", "reported", "share of tokens where at most 1% of the draws are as bad"),
    Metric("tail_floor_variance", "nats²", "reported", "mean variance of KL over the draws at one token"),
)


def tail_estimates(bench: Bench) -> dict[str, Estimate]:
    """Return rank, share in the tail and variance of the floor; undefined in tiers without enough draws."""
    draws = bench.settings.tier.rank_draws
    if draws < 99:
        reason = "a rank needs at least 99 draws per token; run the full tier"
        return {metric.name: Undefined(reason) for metric in TAIL_METRICS}
    sums = {
        name: bench.per_cluster(table)
        for name, table in bench.collect(lambda batch: _tokens(bench, batch, draws), "kl_gap tail").items()
    }
    documents = np.bincount(np.asarray(bench.cluster_of), minlength=len(bench.clusters)).astype(np.float64)
    return {
        "tail_rank": Ratio(sums["rank"], documents),
        "tail_share": Ratio(sums["extreme"], documents),
        "tail_floor_variance": Ratio(sums["variance"], documents),
    }


def _tokens(bench: Bench, batch: Batch, draws: int) -> dict[str, Tensor]:
    """Return (docs,) ranks at each document's middle position, with interventions there only."""
    import torch

    from sae_bench.engine import noise_floors

    rows = torch.arange(len(batch.documents))
    position = torch.tensor(batch.lengths) // 2  # (docs,)
    error = bench.error(batch)

    def kl(value: Tensor) -> Tensor:
        patched = batch.x.clone()
        patched[rows, position] = value[rows, position]
        return bench.intervene(batch, patched).kl[rows, position].double()

    reconstruction = kl(batch.x + error)
    floor = torch.stack(
        [
            kl(noise_floors.isotropic(batch.x, error, bench.noise_pool(), bench.draw(batch, "tail", index)))
            for index in range(draws)
        ]
    )  # (draws, docs)
    rank = (1 + (floor >= reconstruction).sum(0)) / (draws + 1)
    return {"rank": rank, "extreme": (rank <= 0.01).double(), "variance": floor.var(0)}
