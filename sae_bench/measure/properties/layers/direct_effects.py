"""Is a feature's effect on the logits there at once, or made by the layers behind it?

For a feature that writes u_t = f_i(t) d_i at the tokens of a document, with r_t what the final norm reads there:

    T = logits(r) - logits(r without the feature)     u is taken out of x at all its tokens, the rest of the model runs
    D = logits(r) - logits(r - u)                     the final norm's scale as in the clean run, nothing runs

both at a token where the feature fires and centred over the vocabulary. The SAE's own error stays in x, so that the
model is nowhere asked about an activation it never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.measurement import Estimate, Series
from sae_bench.measure.shared.two_way_clusters import Grid, two_way_ratio

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats

DOCUMENTS = 3
"Documents a feature is taken out of, at most: the first in which it fires."
TOKENS = 4
"Tokens a document is read at, at most, spread over those where the feature fires."
CONDITIONS = {"": "features", "_random": "random directions of the same norm"}


@dataclass(frozen=True, eq=False)
class FeatureWrites:
    """What one feature writes in one document."""

    feature: int
    document: int
    positions: Tensor
    "int64 (m,), where it fires."
    vectors: Tensor
    "(m, d), what it writes there."
    read: Tensor
    "int64 (k,), which of the positions are looked at."
    clean: Tensor
    "(k, d_model), what the final norm reads at those in the clean run."


@dataclass(frozen=True, eq=False)
class Effects:
    """D against T at every token looked at."""

    cosine: Floats
    "(tokens,), of centred D and T; 0 where either is 0."
    product: Floats
    "(tokens,), D.T"
    square: Floats
    "(tokens,), squared norm of T"


def effect_estimates(bench: Bench) -> tuple[dict[str, Estimate], dict[str, Series], tuple[str, ...]]:
    """``direct_cosine`` and ``direct_share`` of features and of random directions, a histogram, and notes."""
    import torch

    from sae_bench.engine.noise_pool import keyed_generator
    from sae_bench.measure.shared.alive_features import alive_indices

    alive = alive_indices(bench)
    order = torch.randperm(len(alive), generator=keyed_generator(bench.settings.seed, "layers"))
    chosen = alive[order][: bench.settings.tier.features].tolist()
    writings = find_feature_writes(bench, chosen)
    note = f"effects of {len({each.feature for each in writings})} of {len(chosen)} drawn features that fire"
    estimates: dict[str, Estimate] = {}
    cosines: dict[str, list[float]] = {}
    for suffix, condition in CONDITIONS.items():
        effects = measure_effects(bench, writings, random=bool(suffix))
        estimates |= {name + suffix: estimate for name, estimate in _estimates(bench, writings, effects).items()}
        cosines[condition] = _by_feature(writings, effects)
    return estimates, {"direct_cosine": _series(cosines)}, (note,)


def find_feature_writes(bench: Bench, features: Sequence[int]) -> list[FeatureWrites]:
    """The first `DOCUMENTS` documents of each feature, looked at one by one: what is found depends on no batch size."""
    import torch

    wanted = dict.fromkeys(features, DOCUMENTS)
    found = []
    for document in range(bench.n_documents):
        batch = bench.batch((document,))
        codes, kept = bench.codes(batch)[batch.keep], batch.keep[0].nonzero().flatten()  # (tokens, n), (tokens,)
        firing = [feature for feature, left in wanted.items() if left and bool((codes[:, feature] != 0).any())]
        if not firing:
            continue
        resid = bench.final_residual(batch, batch.x)  # (tokens, d_model)
        for feature in firing:
            rows = (codes[:, feature] != 0).nonzero().flatten()
            spread = torch.linspace(0, len(rows) - 1, min(TOKENS, len(rows))).round().long().to(rows.device)
            alone = torch.zeros_like(codes[rows])
            alone[:, feature] = codes[rows, feature]
            with torch.no_grad():
                like = batch.source[0, kept[rows]]
                vectors = bench.sae.decode(alone, like=like) - bench.sae.decode(torch.zeros_like(alone), like=like)
            found.append(FeatureWrites(feature, document, kept[rows], vectors.float(), spread, resid[rows[spread]]))
            wanted[feature] -= 1
        if not any(wanted.values()):
            break
    return found


def measure_effects(bench: Bench, writings: Sequence[FeatureWrites], random: bool = False) -> list[Effects]:
    """For every writing, D against T; with ``random``, of one random direction a feature, as long at every token."""
    from sae_bench.engine.noise_pool import keyed_generator

    found = []
    for start in range(0, len(writings), bench.settings.batch_size):
        group = writings[start : start + bench.settings.batch_size]
        batch = bench.batch(tuple(each.document for each in group))
        without, taken = batch.x.clone(), []
        for row, each in enumerate(group):
            vectors = each.vectors
            if random:
                vectors = _random_like(vectors, keyed_generator(bench.settings.seed, "layers", each.feature))
            without[row, each.positions] -= vectors
            taken.append(vectors[each.read])
        resid = batch.x.new_zeros(*batch.keep.shape, bench.model.d_model)
        resid[batch.keep] = bench.final_residual(batch, without)
        for row, each in enumerate(group):
            found.append(_effects(bench, each.clean, each.clean - taken[row], resid[row, each.positions[each.read]]))
    return found


def _effects(bench: Bench, clean: Tensor, direct: Tensor, total: Tensor) -> Effects:
    """From final residual vectors (k, d_model): clean, without what was written, and as the model made it without."""
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
    """(m, d) with one random direction and the norms of ``vectors``."""
    import torch

    direction = torch.randn(vectors.shape[1], generator=generator).to(vectors)
    found: Tensor = vectors.norm(dim=1, keepdim=True) * direction / direction.norm()
    return found


def _estimates(bench: Bench, writings: Sequence[FeatureWrites], effects: Sequence[Effects]) -> dict[str, Estimate]:
    """Clustered both ways, by document and by feature; a cosine counts once per feature and document."""
    features = {feature: row for row, feature in enumerate(dict.fromkeys(each.feature for each in writings))}
    tables = np.zeros((4, len(features), len(bench.clusters)))  # cosine, cells, D.T, squared T
    for each, effect in zip(writings, effects, strict=True):
        cell = (features[each.feature], int(bench.cluster_of[each.document]))
        for table, value in enumerate((effect.cosine.mean(), 1.0, effect.product.sum(), effect.square.sum())):
            tables[table][cell] += value
    cosine, cells, product, square = tables
    grid = Grid(np.arange(len(bench.clusters)), np.arange(len(features)))
    return {"direct_cosine": two_way_ratio(cosine, cells, grid), "direct_share": two_way_ratio(product, square, grid)}


def _by_feature(writings: Sequence[FeatureWrites], effects: Sequence[Effects]) -> list[float]:
    found: dict[int, list[float]] = {}
    for each, effect in zip(writings, effects, strict=True):
        found.setdefault(each.feature, []).append(float(effect.cosine.mean()))
    return [float(np.mean(values)) for values in found.values()]


def _series(cosines: dict[str, list[float]]) -> Series:
    edges = np.round(np.linspace(-1, 1, 41), 2)
    counts = {
        condition: np.histogram(np.clip(values, -1, 1), edges)[0].tolist() for condition, values in cosines.items()
    }
    title = "Direct against total effect on the logits, by feature"
    return Series("histogram", {"edges": edges.tolist(), **counts}, title, "mean cosine")
