"""What the model's residual stream holds at the SAEs' site, captured by the suite's own engine."""

from __future__ import annotations

import torch

from sae_bench.demo.paths import SITE
from sae_bench.model import Model
from sae_bench.site import parse_site


def capture(model: Model, tokens: torch.Tensor, lengths: torch.Tensor, size: int = 64) -> torch.Tensor:
    """Activations at the site of every kept position, document after document (kept positions, d_in).

    Position 0 is <bos> and is left out, as is everything beyond a document's length. `tokens` is (docs, pos).
    """
    site = parse_site(SITE)
    found = []
    for start in range(0, len(tokens), size):
        ends = lengths[start : start + size]
        batch = tokens[start : start + size, : int(ends.max())].long()
        place = torch.arange(batch.shape[1])
        kept = (place > 0) & (place < ends[:, None])  # (docs, pos)
        found.append(model.capture(batch, site).value[kept])
    return torch.cat(found)
