"""Activations that `contract` tries: some that a model produces, and some that only a broken one does.

An input is drawn as a few words (kind, size, tokens, dtype), never as numbers, so that hypothesis shrinks it to words
that a person can act on. It begins with the simplest one: one token, zeros, float32.
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
    """Input in words."""

    tokens: int
    kind: str
    size: str
    dtype: str
    pick: int
    "Coordinate, real token or seed, by kind."

    def __str__(self) -> str:
        which = {"one-hot": f" at coordinate {self.pick}", "outlier": f" at coordinate {self.pick}", "zeros": ""}
        place = which.get(self.kind, f" (number {self.pick})")
        size = "" if self.kind == "zeros" else f"{self.size} "
        return f"{self.tokens} token{'s' * (self.tokens > 1)}, {size}{self.kind}{place}, {self.dtype}"


def strategy(tokens: int = 1, dtypes: tuple[str, ...] = ("float32",)) -> Strategy:
    """Return a hypothesis strategy for inputs of at least ``tokens`` tokens.

    hypothesis shrinks towards the first entry of every list.
    """
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
    """Builder of activations of one site from their description."""

    def __init__(self, bench: Bench) -> None:
        data, device = bench.source, bench.settings.device
        positions = data.kept_positions
        sample = torch.linspace(0, len(positions) - 1, min(_POOL, len(positions))).long()
        self.real: Tensor = data.rows[positions[sample]].to(device)
        "(m, d) float32 tokens from all over the corpus."
        self.norm = float(self.real.norm(dim=-1).mean())
        weights = [each for each in bench.sae.tensors().values() if each.is_floating_point()]
        self.dtype: torch.dtype = weights[0].dtype if weights else torch.float32
        "Of the SAE's weights."
        # Squares of inputs must be finite numbers of the SAE's own precision.
        self._largest = min(torch.finfo(self.dtype).max, torch.finfo(torch.float16).max ** 2) ** 0.5

    def __call__(self, description: InputDescription) -> Tensor:
        """Return (tokens, d) activations of ``description.dtype``."""
        d = self.real.shape[1]
        at = torch.arange(description.tokens)
        if description.kind == "zeros":
            x = torch.zeros(description.tokens, d)
        elif description.kind == "one-hot":
            x = torch.zeros(description.tokens, d)
            x[at, (description.pick + at) % d] = self.norm
        elif description.kind == "normal":
            generator = torch.Generator().manual_seed(description.pick)
            x = torch.randn(description.tokens, d, generator=generator) * (self.norm / d**0.5)
        else:
            step = 0 if description.kind == "repeated" else 1
            x = self.real[(description.pick + step * at) % len(self.real)].cpu().clone()
            if description.kind == "outlier":
                x[:, description.pick % d] = _OUTLIER * self.norm
        x = (x * SIZES[description.size]).clamp(-self._largest, self._largest)
        return x.to(device=self.real.device, dtype=getattr(torch, description.dtype))
