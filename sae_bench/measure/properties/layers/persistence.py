"""Persistence of features in the SAE of a later layer: by decoder direction and by activation.

Shapes: n alive features here, m alive features there, k of ours whose activations are correlated, S clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.measurement import Estimate, Exact, Influence, Series, Undefined
from sae_bench.measure.tables import histogram_columns

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import RelatedSAE
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats
    from sae_bench.measure.geometry import Matching

FEATURES = 256
"Most features whose activations are correlated with their matches'; drawn by a fixed seed."
NAMES = (
    "persistence",
    "persistence_floor",
    "persistent_share",
    "persistent_share_floor",
    "persistence_correlation",
    "persistence_correlation_floor",
)


@dataclass(frozen=True, eq=False)
class Persistence:
    """Persistence of features in one SAE of a later layer."""

    estimates: dict[str, Estimate]
    "By `NAMES`."
    series: Series | None
    note: str


def measure_persistence(bench: Bench, related: RelatedSAE) -> Persistence:
    """Return largest decoder cosines and correlations of the alive features with those of ``related``."""
    from sae_bench.measure.geometry import SAME_COSINE, isotropic_floor, match_directions
    from sae_bench.measure.shared.alive_features import alive_indices, has_decoder
    from sae_bench.measure.shared.related_sae_check import check_explained_variance

    for sae, owner in ((bench.sae, "the SAE"), (related.sae, f"SAE {related.name!r}")):
        if not has_decoder(sae):
            undefined = Undefined(f"{owner} shows no decoder, so its features have no directions to compare")
            return Persistence(dict.fromkeys(NAMES, undefined), None, undefined.reason)
    other = bench.related_bench(related)
    check_explained_variance(other, related)
    own_features, related_features = alive_indices(bench), alive_indices(other, related)
    matching = match_directions(
        bench.sae.W_dec[own_features], related.sae.W_dec[related_features].to(bench.sae.W_dec.device)
    )
    # A direction's best of m others is its nearest neighbour in a dictionary of m + 1.
    floor = isotropic_floor(len(related_features) + 1, int(bench.sae.W_dec.shape[1])).nth[1].astype(np.float64)
    cosine = matching.best_of_a.double()
    estimates: dict[str, Estimate] = {
        "persistence": Exact(float(cosine.mean())),
        "persistence_floor": Exact(float(floor.mean())),
        "persistent_share": Exact(float((cosine >= SAME_COSINE).double().mean())),
        "persistent_share_floor": Exact(float((floor >= SAME_COSINE).mean())),
        **_correlations(bench, other, own_features, related_features[matching.match_of_a.cpu()]),
    }
    counts = f"{len(related_features)} alive features against {len(own_features)} of this SAE"
    note = f"{related.name} ({related.site}): {counts}"
    return Persistence(estimates, _series(matching, floor, related), note)


def _correlations(bench: Bench, other: Bench, own_features: Tensor, matches: Tensor) -> dict[str, Estimate]:
    """Return the correlations of each feature with its match, and with the match of another feature."""
    import torch

    sample = torch.randperm(len(own_features), generator=torch.Generator().manual_seed(0))[:FEATURES]
    own, matched = own_features[sample], matches[sample]
    counts = torch.zeros(len(bench.clusters), dtype=torch.float64)
    sums = torch.zeros(6, len(bench.clusters), len(sample), dtype=torch.float64)
    for batch in bench.batches():
        a = bench.codes(batch)[batch.keep][:, own].double().cpu()  # (tokens, k)
        b = other.codes(other.batch(batch.documents))[batch.keep][:, matched].double().cpu()
        document = torch.tensor(batch.documents)[batch.keep.cpu().nonzero()[:, 0]]
        cluster = torch.from_numpy(bench.cluster_of)[document]
        counts.index_add_(0, cluster, torch.ones(len(cluster), dtype=torch.float64))
        for row, values in enumerate((a, b, a * a, b * b, a * b, a * b.roll(1, dims=1))):
            sums[row].index_add_(0, cluster, values)
    n, (a, b, aa, bb, ab, crossed) = counts.numpy(), sums.numpy()
    return {
        "persistence_correlation": mean_correlation(n, a, b, aa, bb, ab),
        "persistence_correlation_floor": mean_correlation(n, a, np.roll(b, 1, 1), aa, np.roll(bb, 1, 1), crossed),
    }


def mean_correlation(n: Floats, a: Floats, b: Floats, aa: Floats, bb: Floats, ab: Floats) -> Estimate:
    """Return the mean over k pairs of Pearson's correlation, from sums per cluster: ``n`` (S,) tokens, all else (S, k).

    The influence of a cluster on r is the sum over its tokens of ``z_a z_b - r (z_a² + z_b²) / 2``, over N. Pairs
    without variance are left out.
    """
    total = n.sum()
    mean_a, mean_b = a.sum(0) / total, b.sum(0) / total
    var_a, var_b = aa.sum(0) / total - mean_a**2, bb.sum(0) / total - mean_b**2
    varies = (var_a > 1e-12 * aa.sum(0) / total) & (var_b > 1e-12 * bb.sum(0) / total)
    if not varies.any():
        return Undefined("no pair of features fires on the tokens measured")
    a, b, aa, bb, ab, mean_a, mean_b = (each[..., varies] for each in (a, b, aa, bb, ab, mean_a, mean_b))
    var_a, var_b = var_a[varies], var_b[varies]
    rows = n[:, None]
    products = (ab - mean_a * b - mean_b * a + rows * mean_a * mean_b) / np.sqrt(var_a * var_b)
    square_a = (aa - 2 * mean_a * a + rows * mean_a**2) / var_a
    square_b = (bb - 2 * mean_b * b + rows * mean_b**2) / var_b
    r = products.sum(0) / total
    influence = (products - r * (square_a + square_b) / 2) / total  # (S, k)
    return Influence(float(r.mean()), influence.mean(1))


def _series(matching: Matching, floor: Floats, related: RelatedSAE) -> Series:
    from sae_bench.measure.geometry import EDGES

    samples = {"features": matching.best_of_a.cpu().numpy(), "random": floor}
    title = f"Largest cosine with a feature of {related.name}"
    return Series("histogram", histogram_columns(EDGES, samples), title, "cosine")
