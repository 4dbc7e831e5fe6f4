"""What every SAE with a decoder matrix of its own shares: widths, sites, and the way back from its codes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sae_bench.errors import MeasurementError
from sae_bench.sae.norms import TokenNorm, moments
from sae_bench.sae.protocol import SAE, SAEInfo
from sae_bench.sae.sparse_codes import SparseCodes

SPARSE = 32
"A sum of decoder rows costs as much as a matrix product when one code in this many is not 0."


class AutoencoderShape:
    """An autoencoder's widths, from its decoder rows, and the sites that its config names."""

    info: SAEInfo
    W_dec: Tensor
    "(d_sae, d_out)"
    b_dec: Tensor
    "(d_out,)"

    @property
    def d_in(self) -> int:
        """Width read."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.W_dec.shape[0]

    @property
    def d_out(self) -> int:
        """Width written."""
        return self.W_dec.shape[1]

    @property
    def site_in(self) -> str | None:
        """Hook name it reads."""
        return self.info.site_in

    @property
    def site_out(self) -> str | None:
        """Hook name it writes."""
        return self.info.site_out


class DecoderSAE(AutoencoderShape, ABC):
    """An SAE whose reconstruction is a sum of decoder rows and a bias, from which a token norm is undone."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., d_sae) of activations (..., d_in), in the precision of the weights."""

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """`encode` of activations (tokens, d_in), without the zeros."""
        return SparseCodes.of(self.encode(x))

    def decode(self, codes: Tensor, like: Tensor | None = None) -> Tensor:
        """Reconstruction (..., d_out) of codes (..., d_sae); ``like`` (..., d_in) is needed under a token norm."""
        return self._restored(codes.to(self.W_dec.dtype) @ self.W_dec + self.b_dec, like)

    def decode_sparse(self, codes: SparseCodes, like: Tensor | None = None) -> Tensor:
        """`decode` of codes without their zeros, (tokens, d_out): only the decoder rows of what fires are read."""
        if self.W_dec.dtype != torch.float32 or len(codes.value) * SPARSE > codes.tokens * codes.features:
            return self.decode(codes.dense(), like)
        return self._restored(codes.write(self.W_dec) + self.b_dec, like)

    @abstractmethod
    def _restored(self, written: Tensor, like: Tensor | None) -> Tensor:
        """The reconstruction from what the decoder wrote, (..., d_out), in the precision of the weights."""


def undo_token_norm(decode_codes: Tensor, like: Tensor | None, norm: TokenNorm) -> Tensor:
    """``decode_codes`` (..., d) with what ``norm`` took out of the input ``like`` (..., d) put back."""
    if norm == "none":
        return decode_codes
    like = require_input(like, f"normalises every token ({norm})").to(decode_codes.dtype)
    shift, scale = moments(like, norm)
    return decode_codes * scale + shift


def require_input(like: Tensor | None, does: str) -> Tensor:
    """``like``, the input of the codes; a `MeasurementError` when it was not given to an SAE that ``does`` this."""
    if like is None:
        raise MeasurementError(
            f"this SAE {does}, so its codes alone do not say what it writes; "
            f"pass the input they came from, decode(codes, like=x)"
        )
    return like


def encode_sparse(sae: SAE, x: Tensor) -> SparseCodes:
    """What any SAE makes of activations (tokens, d_in), without the zeros."""
    return sae.encode_sparse(x) if isinstance(sae, DecoderSAE) else SparseCodes.of(sae.encode(x))


def decode_codes(sae: SAE, codes: SparseCodes | Tensor, like: Tensor) -> Tensor:
    """(tokens, d_out) what any SAE makes of codes, dense (tokens, d_sae) or not, whose input was ``like``."""
    if isinstance(sae, DecoderSAE):
        return sae.decode_sparse(codes if isinstance(codes, SparseCodes) else SparseCodes.of(codes), like)
    return sae.decode(codes.dense() if isinstance(codes, SparseCodes) else codes, like=like)
