"""What the model's residual stream holds at the SAEs' sites, captured by the suite's own engine."""

from __future__ import annotations

import torch

from sae_bench.model.language_model import Model
from sae_bench.registry.site import parse_site


def capture(model: Model, tokens: torch.Tensor, lengths: torch.Tensor, site: str, size: int = 64) -> torch.Tensor:
    """Activations at the site of every kept position, document after document (kept positions, d_in).

    Position 0 is <bos> and is left out, as is everything beyond a document's length. `tokens` is (docs, pos).
    """
    place = parse_site(site)
    found = []
    for start in range(0, len(tokens), size):
        ends = lengths[start : start + size]
        batch = tokens[start : start + size, : int(ends.max())].long()
        at = torch.arange(batch.shape[1])
        kept = (at > 0) & (at < ends[:, None])  # (docs, pos)
        found.append(model.capture(batch, place).value[kept])
    return torch.cat(found)
