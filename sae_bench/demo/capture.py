"""Capture activations of the demo's model at the sites of its SAEs, with the suite's own engine."""

from __future__ import annotations

import torch

from sae_bench.model.language_model import Model
from sae_bench.registry.site import parse_site


def capture(model: Model, tokens: torch.Tensor, lengths: torch.Tensor, site: str, size: int = 64) -> torch.Tensor:
    """Capture the activations at the site, document after document (kept positions, d_in).

    Position 0 is <bos> and is left out, as are positions beyond a document's length. `tokens` is (docs, pos).
    """
    parsed = parse_site(site)
    values = []
    for start in range(0, len(tokens), size):
        ends = lengths[start : start + size]
        batch = tokens[start : start + size, : int(ends.max())].long()
        at = torch.arange(batch.shape[1])
        keep = (at > 0) & (at < ends[:, None])  # (docs, pos)
        values.append(model.capture(batch, parsed).value[keep])
    return torch.cat(values)
