"""What the model's residual stream holds at the SAEs' site, captured the way the suite captures it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from sae_bench.demo.paths import SITE


def load_bridge(folder: Path) -> Any:
    """The model as transformer_lens reads it, weights untouched."""
    return TransformerBridge.boot_transformers(str(folder), device="cpu")


@torch.no_grad()
def capture(bridge: Any, tokens: torch.Tensor, lengths: torch.Tensor, size: int = 64) -> torch.Tensor:
    """Activations at the site of every kept position, document after document (kept positions, d_in).

    Position 0 is <bos> and is left out, as is everything beyond a document's length. `tokens` is (docs, pos).
    """
    found = []
    for start in range(0, len(tokens), size):
        ends = lengths[start : start + size]
        batch = tokens[start : start + size, : int(ends.max())].long()
        _, cache = bridge.run_with_cache(batch, names_filter=[SITE])
        place = torch.arange(batch.shape[1])
        kept = (place > 0) & (place < ends[:, None])  # (docs, pos)
        found.append(cache[SITE][kept])
    return torch.cat(found)
