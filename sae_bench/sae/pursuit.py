"""Matching pursuit: the encoder takes one feature after another out of the residual."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_bench.errors import LoadError
from sae_bench.sae.decoder import DecoderSAE, undo_token_norm
from sae_bench.sae.norms import TokenNorm, normalise
from sae_bench.sae.protocol import SAEInfo


@dataclass(frozen=True, eq=False)
class PursuitSAE(DecoderSAE):
    """An `SAE` that encodes by matching pursuit.

    Formula: SAELens, ``matching_pursuit_sae.py``. Each step adds ``max(0, <residual, row>)`` to the code of the decoder
    row with the largest product and removes that part from the residual.
    """

    info: SAEInfo
    W_dec: Tensor
    "(d_sae, d_in)"
    b_dec: Tensor
    "(d_in,), subtracted from the input as well; zeros where it is not used."
    residual_threshold: float
    "A token is finished when the norm of its residual is smaller; 0 means never."
    max_iterations: int
    stop_on_duplicate_support: bool
    "True when a token is finished as soon as a step adds no new feature."
    token_norm: TokenNorm = "none"

    def __post_init__(self) -> None:
        if self.W_dec.ndim != 2 or self.b_dec.shape != self.W_dec.shape[1:]:
            raise LoadError(
                f"W_dec {tuple(self.W_dec.shape)} and b_dec {tuple(self.b_dec.shape)} must be (d_sae, d_in), (d_in,)"
            )

    def encode(self, x: Tensor) -> Tensor:
        """Encode activations (..., d_in): codes (..., d_sae) in the precision of the weights."""
        x = normalise(x.to(self.W_dec.dtype), self.token_norm)
        residual = (x - self.b_dec).reshape(-1, self.d_in)  # (tokens, d_in)
        codes = residual.new_zeros(len(residual), self.d_sae)
        done = torch.zeros(len(residual), dtype=torch.bool, device=residual.device)
        support = torch.zeros_like(codes, dtype=torch.bool)
        for _ in range(self.max_iterations):
            best = torch.relu(residual @ self.W_dec.T).max(dim=1, keepdim=True).indices
            rows = self.W_dec[best.squeeze(1)]
            amounts = torch.relu((residual * rows).sum(dim=-1, keepdim=True)) * ~done.unsqueeze(1)
            codes.scatter_add_(1, best, amounts)
            residual = residual - amounts * rows
            if self.stop_on_duplicate_support:
                done |= ((codes != 0) == support).all(dim=1)
                support = codes != 0
            if self.residual_threshold > 0:
                done |= residual.norm(dim=-1) < self.residual_threshold
            if bool(done.all()):
                break
        return codes.view(*x.shape[:-1], self.d_sae)

    def _finish_decoding(self, written: Tensor, like: Tensor | None) -> Tensor:
        return undo_token_norm(written, like, self.token_norm)

    def tensors(self) -> dict[str, Tensor]:
        """Return its weights by name."""
        return {"W_dec": self.W_dec, "b_dec": self.b_dec}

    def settings(self) -> dict[str, Any]:
        """Return the stopping rules and the token norm."""
        names = ("residual_threshold", "max_iterations", "stop_on_duplicate_support", "token_norm")
        return {"activation": "MatchingPursuit", **{name: getattr(self, name) for name in names}}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PursuitSAE:
        """Return the SAE on another device or in another precision."""
        return dataclasses.replace(
            self, W_dec=self.W_dec.to(device=device, dtype=dtype), b_dec=self.b_dec.to(device=device, dtype=dtype)
        )
