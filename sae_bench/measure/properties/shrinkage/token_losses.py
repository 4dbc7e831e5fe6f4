"""Lengths of the reconstruction per token, and on odd documents the losses under each scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.shared.scales import Scales


def token_tables(bench: Bench, batch: Batch, scales: Scales | None) -> dict[str, Tensor]:
    """Return float64 (docs, pos) tables of a batch; losses, scored on odd documents only, are 0 on even ones."""
    merged: dict[str, Tensor] = {}
    for parity in (0, 1):
        rows = [row for row, document in enumerate(batch.documents) if document % 2 == parity]
        if not rows:
            continue
        part = bench.batch(tuple(batch.documents[row] for row in rows))
        tables = _lengths(bench, part) | (_losses(bench, part, scales) if parity == 1 else {})
        for name, values in tables.items():
            table = merged.setdefault(name, batch.x.new_zeros(batch.keep.shape).double())
            table[rows, : values.shape[1]] = values.double()
    return merged


def _lengths(bench: Bench, half: Batch) -> dict[str, Tensor]:
    from sae_bench.measure.shared.scales import decoder_offset

    x, xhat, base = half.x.double(), bench.reconstruct(half).double(), decoder_offset(bench, half).double()
    r, y = xhat - base, x - base
    norm = x.norm(dim=-1)
    has_norm = norm > 0
    return {
        "xhat": _square(xhat),
        "xhat_x": (xhat * x).sum(-1),
        "written": _square(r),
        "written_target": (r * y).sum(-1),
        "norm_ratio": (xhat.norm(dim=-1) / norm.where(has_norm, 1.0)).where(has_norm, 0.0),
        "has_norm": has_norm,
    }


def _losses(bench: Bench, half: Batch, scales: Scales | None) -> dict[str, Tensor]:
    """Return squared error and KL of each condition, norms corrected token by token among them."""
    from sae_bench.engine import noise_floors
    from sae_bench.measure.shared.scales import decoder_offset

    xhat = bench.reconstruct(half)
    conditions = {
        "heldout": xhat,
        "norm_corrected": noise_floors.norm_corrected(half.x, xhat - half.x, bench.noise_pool()),
    }
    if scales is not None:
        base, t = decoder_offset(bench, half), scales.per_feature.to(xhat)
        conditions["uniform"] = base + scales.uniform * (xhat - base)
        conditions["per_feature"] = bench.decode(half, bench.codes(half) * t)
    tables = {"scored": half.keep}
    for condition, value in conditions.items():
        tables[f"mse/{condition}"] = _square((value - half.x).double())
        if bench.has_model:
            tables[f"kl/{condition}"] = bench.intervene(half, value).kl
    return tables


def _square(vectors: Tensor) -> Tensor:
    return vectors.square().sum(-1)
