"""Activation functions of encoders, which turn projections of the input into codes, for the known architectures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Activation:
    """Function from projections ``x @ W_enc`` (..., d_sae) to codes of that shape. Every tensor field is (d_sae,)."""

    def __call__(self, projections: Tensor) -> Tensor:
        """Return codes (..., d_sae)."""
        raise NotImplementedError

    def shift(self, delta: Tensor) -> Self:
        """Return the activation whose codes of ``projections`` are this one's of ``projections + delta`` (d_sae,)."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by field name, each (d_sae,)."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    def settings(self) -> dict[str, Any]:
        """Return its name and the fields that are no tensors."""
        tensors = self.tensors()
        plain = [field.name for field in dataclasses.fields(self) if field.name not in tensors]
        return {"activation": type(self).__name__, **{name: getattr(self, name) for name in plain}}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``change`` to each of its tensors and return the new activation."""
        return dataclasses.replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})


@dataclass(frozen=True, eq=False)
class Elementwise(Activation):
    """An activation whose code of a feature follows from the projection of that feature alone."""

    def part(self, features: slice) -> Self:
        """Return the activation of some features."""
        return self.map(lambda tensor: tensor[features])


@dataclass(frozen=True, eq=False)
class Biased(Activation):
    """Any activation of ``pre = projections + b_enc``."""

    b_enc: Tensor

    def shift(self, delta: Tensor) -> Self:
        """See `Activation.shift`."""
        return dataclasses.replace(self, b_enc=self.b_enc + delta)


@dataclass(frozen=True, eq=False)
class ReLU(Biased, Elementwise):
    """``max(0, pre)`` with ``pre = projections + b_enc``."""

    def __call__(self, projections: Tensor) -> Tensor:
        """Return codes (..., d_sae)."""
        return torch.relu(projections + self.b_enc)


@dataclass(frozen=True, eq=False)
class JumpReLU(ReLU):
    """``max(0, pre)`` where ``pre`` is strictly above its feature's threshold, else 0."""

    threshold: Tensor

    def __call__(self, projections: Tensor) -> Tensor:
        """Return codes (..., d_sae)."""
        pre = projections + self.b_enc
        return torch.relu(pre) * (pre > self.threshold)


@dataclass(frozen=True, eq=False)
class TopK(Biased):
    """The k largest pre-activations of each token, negative ones as 0."""

    k: int

    def __call__(self, projections: Tensor) -> Tensor:
        """Return codes (..., d_sae)."""
        pre = projections + self.b_enc
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, indices, torch.relu(values))


@dataclass(frozen=True, eq=False)
class AbsTopK(Biased):
    """The k pre-activations of each token that are largest in magnitude, with their signs."""

    k: int

    def __call__(self, projections: Tensor) -> Tensor:
        """Return codes (..., d_sae), of either sign."""
        pre = projections + self.b_enc
        indices = pre.abs().topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(pre).scatter_(-1, indices, pre.gather(-1, indices))

    def settings(self) -> dict[str, Any]:
        """See `Activation.settings`; says that codes have signs."""
        return {**super().settings(), "signed": True}


@dataclass(frozen=True, eq=False)
class GroupMax(Biased):
    """The largest pre-activation of each of k equal, contiguous groups of features, negative ones as 0."""

    k: int

    def __call__(self, projections: Tensor) -> Tensor:
        """Return codes (..., d_sae)."""
        pre = torch.relu(projections + self.b_enc)
        pre = pre.view(*pre.shape[:-1], self.k, -1)
        values, indices = pre.max(dim=-1, keepdim=True)
        return torch.zeros_like(pre).scatter_(-1, indices, values).flatten(-2)


@dataclass(frozen=True, eq=False)
class Gated(Elementwise):
    """``max(0, projections * exp(r_mag) + b_mag)`` where ``projections + b_gate > 0``, else 0."""

    b_gate: Tensor
    r_mag: Tensor
    b_mag: Tensor

    def __call__(self, projections: Tensor) -> Tensor:
        """Return codes (..., d_sae)."""
        magnitudes = torch.relu(projections * self.r_mag.exp() + self.b_mag)
        return magnitudes * (projections + self.b_gate > 0)

    def shift(self, delta: Tensor) -> Self:
        """See `Activation.shift`."""
        return dataclasses.replace(self, b_gate=self.b_gate + delta, b_mag=self.b_mag + delta * self.r_mag.exp())
