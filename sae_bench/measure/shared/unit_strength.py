"""Strength of steering: a share of the mean norm of the site's activations, so that it suits every site."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

STRENGTH_SHARE = 0.1
"The unit strength lambda as a share of the mean norm of the site's activations."


def unit_strength(bench: Bench) -> float:
    """Return lambda: `STRENGTH_SHARE` of the mean norm over the kept positions of the whole corpus."""
    import torch

    data = bench.site_data

    def mean_norm() -> float:
        total = 0.0
        for x, keep in zip(data.x, data.keep, strict=True):
            total += float(torch.linalg.vector_norm(x[keep], dim=-1).sum(dtype=torch.float64))
        return total / len(data.kept_positions)

    return STRENGTH_SHARE * data.shared("mean_norm", mean_norm)
