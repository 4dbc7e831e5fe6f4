"""Numbers of an SAE for the card: L0, explained variance, living features and shrinkage on the evaluation corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file

from sae_bench.demo.capture import capture
from sae_bench.demo.paths import SITE, DemoPaths
from sae_bench.model.load import load_model


@dataclass(frozen=True)
class Quality:
    """Measured on all kept positions of the evaluation corpus, <bos> left out."""

    l0: float
    """Mean number of features that fire."""
    explained_variance: float
    """1 - sum of squared errors / sum of squared deviations from the mean."""
    alive: float
    """Share of features that fire at least once."""
    gamma_centred: float
    """E|r|^2 / E[r.y] with r = reconstruction - decoder bias, y = activation - decoder bias; below 1: shrunk."""


def corpus_activations(folder: DemoPaths, documents: int | None = None, site: str = SITE) -> torch.Tensor:
    """Capture activations of the saved model on the (first) documents of the evaluation corpus (positions, d_in)."""
    corpus = load_file(folder.corpus)
    return capture(load_model(str(folder.model)), corpus["tokens"][:documents], corpus["lengths"][:documents], site)


@torch.no_grad()
def quality(sae: Any, activations: torch.Tensor, size: int = 4096) -> Quality:
    """Measure anything with encode, decode and b_dec on activations (positions, d_in)."""
    mean = activations.mean(0, dtype=torch.float64)
    fired = torch.zeros(sae.encode(activations[:1]).shape[-1], dtype=torch.bool)
    count = error = spread = norm = product = 0.0
    for start in range(0, len(activations), size):
        x = activations[start : start + size]
        codes = sae.encode(x)  # (positions, d_sae)
        xhat = sae.decode(codes).double()
        fired |= (codes != 0).any(0)
        count += float((codes != 0).sum())
        error += float((x - xhat).square().sum())
        spread += float((x - mean).square().sum())
        r, y = xhat - sae.b_dec, x - sae.b_dec
        norm += float(r.square().sum())
        product += float((r * y).sum())
    return Quality(count / len(activations), 1 - error / spread, float(fired.float().mean()), norm / product)
