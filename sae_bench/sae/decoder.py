"""What every SAE with a decoder matrix of its own shares: widths, sites, and the way back from its codes."""

from __future__ import annotations

from torch import Tensor

from sae_bench.errors import MeasurementError
from sae_bench.sae.norms import TokenNorm, moments
from sae_bench.sae.protocol import SAEInfo


class DecoderSAE:
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

    def _written(self, codes: Tensor) -> Tensor:
        """(..., d_out) of codes (..., d_sae), in the precision of the weights and before a norm is undone."""
        return codes.to(self.W_dec.dtype) @ self.W_dec + self.b_dec


def restored(decoded: Tensor, like: Tensor | None, norm: TokenNorm) -> Tensor:
    """``decoded`` (..., d) with what ``norm`` took out of the input ``like`` (..., d) put back."""
    if norm == "none":
        return decoded
    like = needed(like, f"normalises every token ({norm})").to(decoded.dtype)
    shift, scale = moments(like, norm)
    return decoded * scale + shift


def needed(like: Tensor | None, does: str) -> Tensor:
    """``like``, the input of the codes; a `MeasurementError` when it was not given to an SAE that ``does`` this."""
    if like is None:
        raise MeasurementError(
            f"this SAE {does}, so its codes alone do not say what it writes; "
            f"pass the input they came from, decode(codes, like=x)"
        )
    return like
