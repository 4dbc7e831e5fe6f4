"""View of an SAE with decoder rows of norm 1, for every architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_bench.sae.decoder import AutoencoderShape
from sae_bench.sae.protocol import SAE, SAEInfo, decoder_norms, nonzero_norms


@dataclass(frozen=True, eq=False)
class FoldedSAE(AutoencoderShape):
    """View of an SAE with decoder rows of norm 1: the same reconstructions, codes in units of the activation."""

    info: SAEInfo
    base: SAE
    norms: Tensor
    "(d_sae,), 1 where a decoder row is zero."
    W_dec: Tensor
    "Unit decoder rows, (d_sae, d_out)."
    b_dec: Tensor
    "Decoder bias of the base."

    @property
    def d_in(self) -> int:
        """Width read."""
        return self.base.d_in

    def encode(self, x: Tensor) -> Tensor:
        """Return the base's codes times the decoder norms, (..., d_sae)."""
        codes = self.base.encode(x)
        return codes * self.norms.to(codes.dtype)

    def decode(self, codes: Tensor, like: Tensor | None = None) -> Tensor:
        """Return the base's reconstruction, (..., d_out)."""
        return self.base.decode(codes / self.norms.to(codes.dtype), like)

    def tensors(self) -> dict[str, Tensor]:
        """Return the base's weights by name."""
        return self.base.tensors()

    def settings(self) -> dict[str, Any]:
        """Return the base's, marked as folded."""
        return {**self.base.settings(), "folded": True}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FoldedSAE:
        """Return the view on another device or in another precision."""
        return fold_decoder_norms(self.base.to(device, dtype))


def fold_decoder_norms(sae: SAE) -> FoldedSAE:
    """View ``sae`` with decoder rows of norm 1; correct for every architecture, see `folded_codes`."""
    norms = nonzero_norms(decoder_norms(sae))
    rows = (sae.W_dec.float() / norms.unsqueeze(1)).to(sae.W_dec.dtype)
    return FoldedSAE(sae.info, sae, norms, rows, sae.b_dec)
