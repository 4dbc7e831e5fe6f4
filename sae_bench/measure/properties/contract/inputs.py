"""Activations that `contract` tries: what a model can produce, and what only a broken one does.

An input is drawn as a few words (kind, size, tokens, dtype), never as numbers, so that hypothesis shrinks it to words
that a person can act on. It begins with the harmless: one token, zeros, float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sae_bench.engine.bench import Bench

SIZES = {"usual": 1.0, "tiny": 1e-6, "huge": 1e4}
"Factor by size; 1 is as large as the activations of the corpus are on average."
KINDS = ("zeros", "one-hot", "repeated", "real", "normal", "outlier")
DTYPES = ("float32", "float64", "bfloat16", "float16")
_POOL, _TOKENS, _OUTLIER = 256, 6, 100.0

Strategy: TypeAlias = Any
"hypothesis' SearchStrategy, which is imported when something is tried."


@dataclass(frozen=True)
class InputDescription:
    """One input, in words."""

    tokens: int
    kind: str
    size: str
    dtype: str
    pick: int
    "Which coordinate, real token or seed."

    def __str__(self) -> str:
        which = {"one-hot": f" at coordinate {self.pick}", "outlier": f" at coordinate {self.pick}", "zeros": ""}
        place = which.get(self.kind, f" (number {self.pick})")
        size = "" if self.kind == "zeros" else f"{self.size} "
        return f"{self.tokens} token{'s' * (self.tokens > 1)}, {size}{self.kind}{place}, {self.dtype}"


def strategy(tokens: int = 1, dtypes: tuple[str, ...] = ("float32",)) -> Strategy:
    """Inputs of at least ``tokens`` tokens; hypothesis shrinks towards the first entry of every list."""
    from hypothesis import strategies as st

    return st.builds(
        InputDescription,
        tokens=st.integers(tokens, max(tokens, _TOKENS)),
        kind=st.sampled_from(KINDS),
        size=st.sampled_from(tuple(SIZES)),
        dtype=st.sampled_from(dtypes),
        pick=st.integers(0, _POOL - 1),
    )


class InputBuilder:
    """Turns words into activations of one site."""

    def __init__(self, bench: Bench) -> None:
        data, device = bench.source, bench.settings.device
        kept = data.kept_positions
        spread = torch.linspace(0, len(kept) - 1, min(_POOL, len(kept))).long()
        self.real: Tensor = data.rows[kept[spread]].to(device)
        "(m, d) float32 tokens from all over the corpus."
        self.norm = float(self.real.norm(dim=-1).mean())
        weights = [each for each in bench.sae.tensors().values() if each.is_floating_point()]
        self.dtype: torch.dtype = weights[0].dtype if weights else torch.float32
        "Of the SAE's weights."
        # Squares of inputs must be finite numbers of the SAE's own precision.
        self._largest = min(torch.finfo(self.dtype).max, torch.finfo(torch.float16).max ** 2) ** 0.5

    def __call__(self, drawn: InputDescription) -> Tensor:
        """(tokens, d) of ``drawn.dtype``."""
        d = self.real.shape[1]
        at = torch.arange(drawn.tokens)
        if drawn.kind == "zeros":
            x = torch.zeros(drawn.tokens, d)
        elif drawn.kind == "one-hot":
            x = torch.zeros(drawn.tokens, d)
            x[at, (drawn.pick + at) % d] = self.norm
        elif drawn.kind == "normal":
            generator = torch.Generator().manual_seed(drawn.pick)
            x = torch.randn(drawn.tokens, d, generator=generator) * (self.norm / d**0.5)
        else:
            step = 0 if drawn.kind == "repeated" else 1
            x = self.real[(drawn.pick + step * at) % len(self.real)].cpu().clone()
            if drawn.kind == "outlier":
                x[:, drawn.pick % d] = _OUTLIER * self.norm
        x = (x * SIZES[drawn.size]).clamp(-self._largest, self._largest)
        return x.to(device=self.real.device, dtype=getattr(torch, drawn.dtype))
