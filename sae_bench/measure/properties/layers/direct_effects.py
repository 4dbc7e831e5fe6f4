"""Direct and total effect of features on the logits: at once, or through the layers after the site.

For a feature that writes u_t = f_i(t) d_i at the tokens of a document, with r_t the input of the final norm there:

    T = logits(r) - logits(r without the feature)     u is removed from x at all its tokens, the rest of the model runs
    D = logits(r) - logits(r - u)                     the final norm's scale as in the clean run, nothing runs

both at a token where the feature fires and centred over the vocabulary. The SAE's own error stays in x, so that the
model never gets an activation that it cannot produce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.measurement import Estimate, Series
from sae_bench.measure.shared.two_way_clusters import Grid, two_way_ratio
from sae_bench.measure.tables import histogram_columns

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats

DOCUMENTS = 3
"Most documents from which a feature is removed: the first ones in which it fires."
TOKENS = 4
"Most tokens per document, spread over those where the feature fires."
CONDITIONS = {"": "features", "_random": "random directions of the same norm"}


@dataclass(frozen=True, eq=False)
class FeatureWrites:
    """Contribution of one feature in one document."""

    feature: int
    document: int
    positions: Tensor
    "int64 (m,), positions where it fires."
    vectors: Tensor
    "(m, d), its contribution there."
    sampled: Tensor
    "int64 (k,), indices of the sampled positions."
    clean: Tensor
    "(k, d_model), input of the final norm at the sampled positions in the clean run."


@dataclass(frozen=True, eq=False)
class Effects:
    """Direct effect D compared with total effect T at every sampled token."""

    cosine: Floats
    "(tokens,), of centred D and T; 0 where either is 0."
    product: Floats
    "(tokens,), D.T"
    square: Floats
    "(tokens,), squared norm of T"


def effect_estimates(bench: Bench) -> tuple[dict[str, Estimate], dict[str, Series], tuple[str, ...]]:
    """Return ``direct_cosine`` and ``direct_share`` of features and random directions, a histogram and notes."""
    import torch

    from sae_bench.engine.noise_pool import keyed_generator
    from sae_bench.measure.shared.alive_features import alive_indices

    alive = alive_indices(bench)
    order = torch.randperm(len(alive), generator=keyed_generator(bench.settings.seed, "layers"))
    chosen = alive[order][: bench.settings.tier.features].tolist()
    writes = find_feature_writes(bench, chosen)
    note = f"effects of {len({write.feature for write in writes})} of {len(chosen)} drawn features that fire"
    estimates: dict[str, Estimate] = {}
    cosines: dict[str, list[float]] = {}
    for suffix, condition in CONDITIONS.items():
        effects = measure_effects(bench, writes, random=bool(suffix))
        estimates |= {name + suffix: estimate for name, estimate in _estimates(bench, writes, effects).items()}
        cosines[condition] = _by_feature(writes, effects)
    return estimates, {"direct_cosine": _series(cosines)}, (note,)


def find_feature_writes(bench: Bench, features: Sequence[int]) -> list[FeatureWrites]:
    """Return the contributions of each feature in the first `DOCUMENTS` documents where it fires.

    Documents are encoded one by one, so the result does not depend on the batch size.
    """
    import torch

    remaining = dict.fromkeys(features, DOCUMENTS)
    writes = []
    for document in range(bench.n_documents):
        batch = bench.batch((document,))
        codes, positions = bench.codes(batch)[batch.keep], batch.keep[0].nonzero().flatten()  # (tokens, n), (tokens,)
        firing = [feature for feature, count in remaining.items() if count and bool((codes[:, feature] != 0).any())]
        if not firing:
            continue
        resid = bench.final_residual(batch, batch.x)  # (tokens, d_model)
        for feature in firing:
            rows = (codes[:, feature] != 0).nonzero().flatten()
            spread = torch.linspace(0, len(rows) - 1, min(TOKENS, len(rows))).round().long().to(rows.device)
            only_feature = torch.zeros_like(codes[rows])
            only_feature[:, feature] = codes[rows, feature]
            with torch.no_grad():
                like = batch.source[0, positions[rows]]
                vectors = bench.sae.decode(only_feature, like=like) - bench.sae.decode(
                    torch.zeros_like(only_feature), like=like
                )
            writes.append(
                FeatureWrites(feature, document, positions[rows], vectors.float(), spread, resid[rows[spread]])
            )
            remaining[feature] -= 1
        if not any(remaining.values()):
            break
    return writes


def measure_effects(bench: Bench, writes: Sequence[FeatureWrites], random: bool = False) -> list[Effects]:
    """Return D and T of every contribution, or with ``random`` of one random direction a feature, as long."""
    from sae_bench.engine.noise_pool import keyed_generator

    effects = []
    for start in range(0, len(writes), bench.settings.batch_size):
        group = writes[start : start + bench.settings.batch_size]
        batch = bench.batch(tuple(write.document for write in group))
        without, removed = batch.x.clone(), []
        for row, write in enumerate(group):
            vectors = write.vectors
            if random:
                vectors = _random_like(vectors, keyed_generator(bench.settings.seed, "layers", write.feature))
            without[row, write.positions] -= vectors
            removed.append(vectors[write.sampled])
        resid = batch.x.new_zeros(*batch.keep.shape, bench.model.d_model)
        resid[batch.keep] = bench.final_residual(batch, without)
        for row, write in enumerate(group):
            effects.append(
                _effects(bench, write.clean, write.clean - removed[row], resid[row, write.positions[write.sampled]])
            )
    return effects


def _effects(bench: Bench, clean: Tensor, direct: Tensor, total: Tensor) -> Effects:
    """Return effects from final residual vectors (k, d_model): clean, minus the feature, and the model's without it."""
    model = bench.model
    before = model.final_logits(clean)  # (k, V)
    d = before - model.final_logits(direct, scale=model.norm_scale(clean))
    t = before - model.final_logits(total)
    d, t = (each - each.mean(-1, keepdim=True) for each in (d.double(), t.double()))
    product, squares = (d * t).sum(-1), t.square().sum(-1)
    length = (d.square().sum(-1) * squares).sqrt()
    cosine = product / length.where(length > 0, 1.0)
    return Effects(*(each.cpu().numpy() for each in (cosine, product, squares)))


def _random_like(vectors: Tensor, generator: Generator) -> Tensor:
    """Return (m, d) rows with one random direction and the norms of ``vectors``."""
    import torch

    direction = torch.randn(vectors.shape[1], generator=generator).to(vectors)
    rows: Tensor = vectors.norm(dim=1, keepdim=True) * direction / direction.norm()
    return rows


def _estimates(bench: Bench, writes: Sequence[FeatureWrites], effects: Sequence[Effects]) -> dict[str, Estimate]:
    """Return estimates clustered by document and by feature; a cosine counts once per feature and document."""
    features = {feature: row for row, feature in enumerate(dict.fromkeys(write.feature for write in writes))}
    tables = np.zeros((4, len(features), len(bench.clusters)))  # cosine, cells, D.T, squared T
    for write, effect in zip(writes, effects, strict=True):
        cell = (features[write.feature], int(bench.cluster_of[write.document]))
        for table, value in enumerate((effect.cosine.mean(), 1.0, effect.product.sum(), effect.square.sum())):
            tables[table][cell] += value
    cosine, cells, product, square = tables
    grid = Grid(np.arange(len(bench.clusters)), np.arange(len(features)))
    return {"direct_cosine": two_way_ratio(cosine, cells, grid), "direct_share": two_way_ratio(product, square, grid)}


def _by_feature(writes: Sequence[FeatureWrites], effects: Sequence[Effects]) -> list[float]:
    cosines: dict[int, list[float]] = {}
    for write, effect in zip(writes, effects, strict=True):
        cosines.setdefault(write.feature, []).append(float(effect.cosine.mean()))
    return [float(np.mean(values)) for values in cosines.values()]


def _series(cosines: dict[str, list[float]]) -> Series:
    edges = np.round(np.linspace(-1, 1, 41), 2)
    samples = {condition: np.array(values) for condition, values in cosines.items()}
    title = "Direct against total effect on the logits, by feature"
    return Series("histogram", histogram_columns(edges, samples), title, "mean cosine")
