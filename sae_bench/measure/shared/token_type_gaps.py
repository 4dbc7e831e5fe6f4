"""Is the KL gap a matter of rare tokens? Spearman of frequency and mean gap over token types.

Means of rare types are noise (their variance falls with 1/n), so only types seen at least `MINIMUM` times count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Estimate, Influence, Undefined

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench

MINIMUM = 50
"Occurrences a token type needs before its mean is read."
FEWEST_TYPES = 10
TOKEN_GAP = "KL of every token beyond isotropic noise"
"Key of a table that `kl_gap` leaves for `tokens`."


def token_gap(bench: Bench) -> Tensor:
    """(documents, pos) KL of the SAE beyond that of isotropic noise of its error's norm, averaged over draws."""
    return bench.shared(TOKEN_GAP, lambda: bench.collect(lambda batch: {"gap": _gap(bench, batch)}, "tokens")["gap"])


def _gap(bench: Bench, batch: Batch) -> Tensor:
    import torch

    from sae_bench.engine import noise_floors

    x, error = batch.x, bench.error(batch)
    noise = []
    for index in range(bench.settings.tier.draws):
        value = noise_floors.isotropic(x, error, bench.noise_pool(), bench.draw(batch, "isotropic", index))
        noise.append(bench.intervene(batch, value, condition=f"isotropic/{index}").kl.double())
    return bench.intervene(batch, x + error, condition="sae").kl.double() - torch.stack(noise).mean(0)


def type_sums(bench: Bench, table: Tensor) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Sums and counts of ``table`` (documents, pos) by cluster and token type, and the types' token ids.

    Returns two (clusters, types) arrays over the types with at least `MINIMUM` kept occurrences, and their ids.
    """
    keep = bench.keep.cpu().numpy()
    tokens = bench.corpus.tokens[: bench.n_documents].cpu().numpy()[keep]
    cluster = np.broadcast_to(np.asarray(bench.cluster_of)[:, None], keep.shape)[keep]
    ids, column, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    listed = counts >= MINIMUM
    place = np.where(listed, np.cumsum(listed) - 1, -1)[column]
    kept = place >= 0
    shape = (len(bench.clusters), int(listed.sum()))
    flat = cluster[kept] * shape[1] + place[kept]
    values = table.cpu().numpy()[keep][kept]
    size = shape[0] * shape[1]
    sums: Floats = np.bincount(flat, weights=values, minlength=size).astype(np.float64).reshape(shape)
    seen: Floats = np.bincount(flat, minlength=size).astype(np.float64).reshape(shape)
    return sums, seen, ids[listed].astype(np.int64)


def frequency_correlation(bench: Bench, gap: Tensor) -> Estimate:
    """Spearman over token types of frequency and mean ``gap``, with influences by leaving one cluster out."""
    from scipy.stats import spearmanr

    from sae_bench.measure.uncertainty import leave_one_out

    sums, counts, ids = type_sums(bench, gap)
    if len(ids) < FEWEST_TYPES:
        return Undefined(f"only {len(ids)} token types occur {MINIMUM} times or more, {FEWEST_TYPES} are needed")

    def correlation(total: Floats, count: Floats) -> float:
        seen = count > 0
        return float(spearmanr(count[seen], total[seen] / count[seen]).statistic)

    total, count = sums.sum(0), counts.sum(0)
    value = correlation(total, count)
    if not np.isfinite(value):
        return Undefined("frequency or mean gap is the same for all token types")
    without = np.array([correlation(total - a, count - b) for a, b in zip(sums, counts, strict=True)])
    return Influence(value, leave_one_out(without, value))
