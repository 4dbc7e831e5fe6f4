"""Base classes of SAEs with a decoder matrix: widths, sites, and decoding of dense and sparse codes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sae_bench.errors import MeasurementError
from sae_bench.sae.norms import TokenNorm, moments
from sae_bench.sae.protocol import SAE, SAEInfo
from sae_bench.sae.sparse_codes import SparseCodes

SPARSE = 32
"A sum of decoder rows costs as much as a matrix product when one in so many codes is not 0."


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
        """Hook name of the site it reads."""
        return self.info.site_in

    @property
    def site_out(self) -> str | None:
        """Hook name of the site it writes."""
        return self.info.site_out


class DecoderSAE(AutoencoderShape, ABC):
    """An SAE whose reconstruction is a sum of decoder rows and a bias, from which a token norm is undone."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Encode activations (..., d_in): codes (..., d_sae) in the precision of the weights."""

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """Encode activations (tokens, d_in): codes without their zeros."""
        return SparseCodes.from_dense(self.encode(x))

    def decode(self, codes: Tensor, like: Tensor | None = None) -> Tensor:
        """Decode codes (..., d_sae): (..., d_out); under a token norm the input ``like`` (..., d_in) is needed."""
        return self._finish_decoding(codes.to(self.W_dec.dtype) @ self.W_dec + self.b_dec, like)

    def decode_sparse(self, codes: SparseCodes, like: Tensor | None = None) -> Tensor:
        """Decode codes without their zeros: (tokens, d_out); only decoder rows of features that fire are read."""
        if self.W_dec.dtype != torch.float32 or len(codes.value) * SPARSE > codes.tokens * codes.features:
            return self.decode(codes.dense(), like)
        return self._finish_decoding(codes.write(self.W_dec) + self.b_dec, like)

    @abstractmethod
    def _finish_decoding(self, written: Tensor, like: Tensor | None) -> Tensor:
        """Turn the output of the decoder, (..., d_out), into the reconstruction, in the precision of the weights."""


def undo_token_norm(decoded: Tensor, like: Tensor | None, norm: TokenNorm) -> Tensor:
    """Scale and shift ``decoded`` (..., d) by the moments that ``norm`` removed from the input ``like`` (..., d)."""
    if norm == "none":
        return decoded
    like = require_input(like, f"normalises every token ({norm})").to(decoded.dtype)
    shift, scale = moments(like, norm)
    return decoded * scale + shift


def require_input(like: Tensor | None, does: str) -> Tensor:
    """Return ``like``, the input of the codes; a `MeasurementError` when it is None, because the SAE ``does`` this."""
    if like is None:
        raise MeasurementError(
            f"this SAE {does}, so its codes alone do not determine the reconstruction; "
            f"pass their input as well: decode(codes, like=x)"
        )
    return like


def encode_sparse(sae: SAE, x: Tensor) -> SparseCodes:
    """Encode activations (tokens, d_in) with any SAE: codes without their zeros."""
    return sae.encode_sparse(x) if isinstance(sae, DecoderSAE) else SparseCodes.from_dense(sae.encode(x))


def decode_codes(sae: SAE, codes: SparseCodes | Tensor, like: Tensor) -> Tensor:
    """Decode codes, dense (tokens, d_sae) or sparse, of the input ``like`` with any SAE: (tokens, d_out)."""
    if isinstance(sae, DecoderSAE):
        return sae.decode_sparse(codes if isinstance(codes, SparseCodes) else SparseCodes.from_dense(codes), like)
    return sae.decode(codes.dense() if isinstance(codes, SparseCodes) else codes, like=like)
