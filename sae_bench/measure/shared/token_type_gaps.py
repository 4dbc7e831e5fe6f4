"""KL gap by token type: sums per cluster, and the rank correlation of the gap with frequency.

Only types that occur at least `MINIMUM_OCCURRENCES` times count: the variance of a mean falls with 1/n, so means of
rare types are noise.
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

MINIMUM_OCCURRENCES = 50
"Occurrences a token type needs before its mean is read."
FEWEST_TYPES = 10
TOKEN_GAP = "KL of every token beyond isotropic noise"
"Key of a table that `kl_gap` leaves for `tokens`."


def token_gap(bench: Bench) -> Tensor:
    """Return (documents, pos) KL of the SAE minus that of isotropic noise of its error's norm, averaged over draws."""
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
    """Return sums and counts of ``table`` (documents, pos) by cluster and token type, and the types' token ids.

    Both are (clusters, types), over the types with at least `MINIMUM_OCCURRENCES` kept occurrences.
    """
    keep = bench.keep.cpu().numpy()
    tokens = bench.corpus.tokens[: bench.n_documents].cpu().numpy()[keep]
    cluster = np.broadcast_to(np.asarray(bench.cluster_of)[:, None], keep.shape)[keep]
    ids, column, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    frequent = counts >= MINIMUM_OCCURRENCES
    type_index = np.where(frequent, np.cumsum(frequent) - 1, -1)[column]
    counted = type_index >= 0
    shape = (len(bench.clusters), int(frequent.sum()))
    flat = cluster[counted] * shape[1] + type_index[counted]
    values = table.cpu().numpy()[keep][counted]
    size = shape[0] * shape[1]
    sums: Floats = np.bincount(flat, weights=values, minlength=size).astype(np.float64).reshape(shape)
    occurrences: Floats = np.bincount(flat, minlength=size).astype(np.float64).reshape(shape)
    return sums, occurrences, ids[frequent].astype(np.int64)


def frequency_correlation(bench: Bench, gap: Tensor) -> Estimate:
    """Return Spearman's correlation, over token types, of frequency and mean ``gap``."""
    from scipy.stats import spearmanr

    from sae_bench.measure.uncertainty import leave_one_out

    sums, counts, ids = type_sums(bench, gap)
    if len(ids) < FEWEST_TYPES:
        return Undefined(
            f"fewer than {FEWEST_TYPES} token types occur {MINIMUM_OCCURRENCES} times or more", f"there are {len(ids)}"
        )

    def correlation(total: Floats, count: Floats) -> float:
        occurs = count > 0
        return float(spearmanr(count[occurs], total[occurs] / count[occurs]).statistic)

    total, count = sums.sum(0), counts.sum(0)
    value = correlation(total, count)
    if not np.isfinite(value):
        return Undefined("frequency or mean gap is the same for all token types")
    without = np.array([correlation(total - a, count - b) for a, b in zip(sums, counts, strict=True)])
    return Influence(value, leave_one_out(without, value))
