"""SAEs made of tensors: a linear map, an activation function, and a linear map back. Readers of files return them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_bench.errors import LoadError
from sae_bench.sae.decoder import DecoderSAE, require_input, undo_token_norm
from sae_bench.sae.encoder_activations import Activation, Elementwise
from sae_bench.sae.norms import TokenNorm, normalise
from sae_bench.sae.protocol import SAEInfo
from sae_bench.sae.sparse_codes import SparseCodes

FEATURES = 2048
"Features encoded at once on a CPU: their projections stay in its caches."


@dataclass(frozen=True, eq=False)
class LinearDecoderSAE(DecoderSAE):
    """``codes = activation((norm(x) - pre_bias) @ W_enc)``, ``x_hat = unnorm(codes @ W_dec + b_dec)``; an `SAE`.

    A transcoder has `d_out` and `site_out` of its own; it may add ``x @ W_skip``, and then decoding needs the input of
    the codes.
    """

    info: SAEInfo
    W_enc: Tensor
    "(d_in, d_sae)"
    activation: Activation
    W_dec: Tensor
    "(d_sae, d_out)"
    b_dec: Tensor
    "(d_out,)"
    pre_bias: Tensor
    "(d_in,) subtracted from the input; `b_dec` in many families, zeros in the others."
    token_norm: TokenNorm = "none"
    norm_undone: bool = True
    "True when decoding undoes the token norm; transcoders of SAELens do not."
    W_skip: Tensor | None = None
    "(d_in, d_out), added to the output after multiplying the raw input; None for most."

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2 or self.W_dec.ndim != 2:
            raise LoadError(
                f"W_enc {_shape(self.W_enc)} and W_dec {_shape(self.W_dec)} must be matrices, "
                f"(d_in, d_sae) and (d_sae, d_out)"
            )
        d_in, d_sae = self.W_enc.shape
        expected = {
            "W_dec": (d_sae, self.W_dec.shape[1]),
            "b_dec": (self.W_dec.shape[1],),
            "pre_bias": (d_in,),
            **dict.fromkeys(self.activation.tensors(), (d_sae,)),
        }
        if self.W_skip is not None:
            expected["W_skip"] = (d_in, self.W_dec.shape[1])
        for name, shape in expected.items():
            tensor = self.tensors()[name]
            if tuple(tensor.shape) != shape:
                raise LoadError(
                    f"{name} has shape {_shape(tensor)} but W_enc {_shape(self.W_enc)} requires {shape}; "
                    f"the weights belong to different SAEs or are transposed"
                )
        k = self.activation.settings().get("k", 1)
        if not 1 <= k <= d_sae:
            raise LoadError(f"k is {k}, it must lie between 1 and d_sae {d_sae}")

    @property
    def d_in(self) -> int:
        """Width read."""
        return self.W_enc.shape[0]

    def encode(self, x: Tensor) -> Tensor:
        """Encode activations (..., d_in): codes (..., d_sae) in the precision of the weights."""
        x = normalise(x.to(self.W_enc.dtype), self.token_norm)
        return self.activation((x - self.pre_bias) @ self.W_enc)

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """Encode activations (tokens, d_in): codes without their zeros.

        Where the code of a feature depends on its own projection alone, some features at a time, so that no tensor of
        d_sae columns is created.
        """
        if not isinstance(self.activation, Elementwise) or self.W_enc.device.type != "cpu":
            return super().encode_sparse(x)
        x = normalise(x.to(self.W_enc.dtype), self.token_norm) - self.pre_bias
        parts = (slice(start, start + FEATURES) for start in range(0, self.d_sae, FEATURES))
        return SparseCodes.from_columns(self.activation.part(part)(x @ self.W_enc[:, part]) for part in parts)

    def _finish_decoding(self, written: Tensor, like: Tensor | None) -> Tensor:
        decoded = undo_token_norm(written, like, self.token_norm if self.norm_undone else "none")
        if self.W_skip is None:
            return decoded
        return decoded + require_input(like, "adds a linear map of its input").to(decoded.dtype) @ self.W_skip

    def tensors(self) -> dict[str, Tensor]:
        """Return its weights by name."""
        own = {name: getattr(self, name) for name in ("W_enc", "W_dec", "b_dec", "pre_bias")}
        if self.W_skip is not None:
            own["W_skip"] = self.W_skip
        return {**own, **self.activation.tensors()}

    def settings(self) -> dict[str, Any]:
        """Return the settings of the activation function and the token norm."""
        settings = {**self.activation.settings(), "token_norm": self.token_norm}
        return settings if self.norm_undone else {**settings, "norm_undone": False}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LinearDecoderSAE:
        """Return the SAE on another device or in another precision."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def map(self, change: Callable[[Tensor], Tensor]) -> LinearDecoderSAE:
        """Apply ``change`` to every tensor and return the new SAE."""
        return dataclasses.replace(
            self,
            W_enc=change(self.W_enc),
            activation=self.activation.map(change),
            W_dec=change(self.W_dec),
            b_dec=change(self.b_dec),
            pre_bias=change(self.pre_bias),
            W_skip=None if self.W_skip is None else change(self.W_skip),
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
