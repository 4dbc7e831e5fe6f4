"""SAEs made of tensors: one linear map, an activation, one linear map back. What every reader of files returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor

from sae_bench.errors import LoadError, MeasurementError
from sae_bench.sae.protocol import SAEInfo

TokenNorm: TypeAlias = Literal["none", "constant_norm_rescale", "layer_norm"]
"How every token is normalised before encoding; undone after decoding."


@dataclass(frozen=True, eq=False)
class Activation:
    """From projections ``x @ W_enc`` (..., d_sae) to codes of the same shape. Every tensor field is (d_sae,)."""

    def __call__(self, projections: Tensor) -> Tensor:
        """Codes (..., d_sae)."""
        raise NotImplementedError

    def shift(self, delta: Tensor) -> Self:
        """The activation that gives for ``projections`` what this one gives for ``projections + delta`` (d_sae,)."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by field name, each (d_sae,)."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    def settings(self) -> dict[str, Any]:
        """Its name and the fields that are no tensors."""
        tensors = self.tensors()
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in tensors}
        return {"activation": type(self).__name__, **plain}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same activation with ``change`` applied to each of its tensors."""
        return dataclasses.replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})


@dataclass(frozen=True, eq=False)
class ReLU(Activation):
    """``max(0, pre)`` with ``pre = projections + b_enc``."""

    b_enc: Tensor

    def __call__(self, projections: Tensor) -> Tensor:
        """Codes (..., d_sae)."""
        return torch.relu(projections + self.b_enc)

    def shift(self, delta: Tensor) -> Self:
        """See `Activation.shift`."""
        return dataclasses.replace(self, b_enc=self.b_enc + delta)


@dataclass(frozen=True, eq=False)
class JumpReLU(ReLU):
    """``max(0, pre)`` where ``pre`` is strictly above its feature's threshold, else 0."""

    threshold: Tensor

    def __call__(self, projections: Tensor) -> Tensor:
        """Codes (..., d_sae)."""
        pre = projections + self.b_enc
        return torch.relu(pre) * (pre > self.threshold)


@dataclass(frozen=True, eq=False)
class TopK(ReLU):
    """The k largest pre-activations of each token, negative ones as 0."""

    k: int

    def __call__(self, projections: Tensor) -> Tensor:
        """Codes (..., d_sae)."""
        pre = projections + self.b_enc
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, indices, torch.relu(values))


@dataclass(frozen=True, eq=False)
class Gated(Activation):
    """``max(0, projections * exp(r_mag) + b_mag)`` where ``projections + b_gate > 0``, else 0."""

    b_gate: Tensor
    r_mag: Tensor
    b_mag: Tensor

    def __call__(self, projections: Tensor) -> Tensor:
        """Codes (..., d_sae)."""
        magnitudes = torch.relu(projections * self.r_mag.exp() + self.b_mag)
        return magnitudes * (projections + self.b_gate > 0)

    def shift(self, delta: Tensor) -> Self:
        """See `Activation.shift`."""
        return dataclasses.replace(self, b_gate=self.b_gate + delta, b_mag=self.b_mag + delta * self.r_mag.exp())


@dataclass(frozen=True, eq=False)
class LinearDecoderSAE:
    """``codes = activation((norm(x) - pre_bias) @ W_enc)``, ``x_hat = unnorm(codes @ W_dec + b_dec)``; an `SAE`."""

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
        for name, shape in expected.items():
            tensor = self.tensors()[name]
            if tuple(tensor.shape) != shape:
                raise LoadError(
                    f"{name} has shape {_shape(tensor)} but W_enc {_shape(self.W_enc)} asks for {shape}; "
                    f"the weights do not belong together or are transposed"
                )
        if isinstance(self.activation, TopK) and not 1 <= self.activation.k <= d_sae:
            raise LoadError(f"k is {self.activation.k}, it must lie between 1 and d_sae {d_sae}")

    @property
    def d_in(self) -> int:
        """Width read."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.W_enc.shape[1]

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

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., d_sae) of activations (..., d_in), in the precision of the weights."""
        x = x.to(self.W_enc.dtype)
        if self.token_norm != "none":
            shift, scale = self._token_moments(x)
            x = (x - shift) / (scale + self._epsilon(scale))
        return self.activation((x - self.pre_bias) @ self.W_enc)

    def decode(self, codes: Tensor, like: Tensor | None = None) -> Tensor:
        """Reconstruction (..., d_out) of codes (..., d_sae); ``like`` (..., d_in) is needed under a token norm."""
        decoded = codes.to(self.W_dec.dtype) @ self.W_dec + self.b_dec
        if self.token_norm == "none":
            return decoded
        if like is None:
            raise MeasurementError(
                f"this SAE normalises every token ({self.token_norm}), so its codes alone do not say how large the "
                f"reconstruction is; pass the input they came from, decode(codes, like=x)"
            )
        shift, scale = self._token_moments(like.to(self.W_dec.dtype))
        return decoded * scale + shift

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name."""
        own = {name: getattr(self, name) for name in ("W_enc", "W_dec", "b_dec", "pre_bias")}
        return {**own, **self.activation.tensors()}

    def settings(self) -> dict[str, Any]:
        """The activation's settings and the token norm."""
        return {**self.activation.settings(), "token_norm": self.token_norm}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LinearDecoderSAE:
        """The same SAE elsewhere or in another precision."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def map(self, change: Callable[[Tensor], Tensor]) -> LinearDecoderSAE:
        """The same SAE with ``change`` applied to every tensor."""
        return dataclasses.replace(
            self,
            W_enc=change(self.W_enc),
            activation=self.activation.map(change),
            W_dec=change(self.W_dec),
            b_dec=change(self.b_dec),
            pre_bias=change(self.pre_bias),
        )

    def _token_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale (..., 1) of every token, taken out before encoding and put back after decoding."""
        if self.token_norm == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            return torch.zeros_like(scale), scale
        return x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)

    def _epsilon(self, scale: Tensor) -> float:
        # SAELens adds 1e-5 on the way in of a layer norm and nowhere else; the smallest number keeps a zero token zero.
        return 1e-5 if self.token_norm == "layer_norm" else torch.finfo(scale.dtype).tiny


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
