"""Worlds whose true numbers are known beforehand: activations, and what stands for an SAE on them.

Needs torch alone: SAEBench's package has this project's import name, so that its values are recorded by a process that
cannot import this project (``record_saebench.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DOCUMENTS, POSITIONS, DIM = 32, 64, 16


@dataclass(frozen=True, eq=False)
class Affine:
    """``x`` becomes ``centre + keep (x - centre) + offset + kick sign(x_0)``; its codes are x - centre, by sign."""

    centre: Tensor
    "(d,)"
    keep: float = 1.0
    offset: Tensor | float = 0.0
    kick: Tensor | float = 0.0

    @property
    def d_in(self) -> int:
        """Width read and written."""
        return len(self.centre)

    @property
    def d_sae(self) -> int:
        """A feature for either sign of each dimension."""
        return 2 * self.d_in

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., 2 d)."""
        apart = x - self.centre
        return torch.relu(torch.cat([apart, -apart], dim=-1))

    def decode(self, codes: Tensor) -> Tensor:
        """Reconstruction (..., d)."""
        apart = codes[..., : self.d_in] - codes[..., self.d_in :]
        return self.centre + self.keep * apart + self.offset + self.kick * torch.sign(apart[..., :1])


@dataclass(frozen=True, eq=False)
class World:
    """Activations (documents, positions, d) and what stands for an SAE on them."""

    x: Tensor
    sae: Affine

    def explained(self) -> float:
        """1 - squared error over squared deviation from the mean, in float64 and in one piece."""
        x = self.x.double().flatten(0, 1)
        xhat = self.sae.decode(self.sae.encode(x))
        return 1 - float((xhat - x).square().sum() / (x - x.mean(0)).square().sum())


def shrunk(scale: float = 1.0) -> World:
    """Far from the origin, and a fifth of the variance of every dimension is lost: 0.80 is explained (pitfall 1)."""
    x = (3 + _white()) * scale
    return World(x, Affine(x.mean((0, 1)), keep=1 - 0.2**0.5))


def uneven() -> World:
    """Nine tokens in ten hardly vary, and all have one size of error: 0.96 of the variance is explained (pitfall 2)."""
    x = _white()
    x[..., -1] = 0
    x = x / x.norm(dim=-1, keepdim=True)
    x[:, ::10] *= 20
    return World(x, Affine(torch.zeros(DIM), kick=_last(0.04 * _variance(x))))


def offset() -> World:
    """Every reconstruction is off by one and the same vector, of half the variance: 0.50 is explained (pitfall 15)."""
    x = _white()
    return World(x, Affine(torch.zeros(DIM), offset=_last(0.5 * _variance(x))))


def two_batches() -> World:
    """One error in two halves, of which the second varies a hundred times as much as the first (pitfall 15).

    The error is half the variance of the first half, so that 1 - 1/101 of all variance is explained.
    """
    x = _white()
    x[..., -1] = 0
    x[..., 0] = 3 * torch.tensor([1.0, -1.0]).repeat(POSITIONS // 2)
    x /= _variance(x) ** 0.5
    x[DOCUMENTS // 2 :] *= 10
    return World(x, Affine(torch.zeros(DIM), kick=_last(0.5)))


def _white() -> Tensor:
    """(documents, positions, d) normal numbers, of mean 0 and variance 1 in every dimension to the last digit."""
    x = torch.randn(DOCUMENTS, POSITIONS, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x -= x.mean((0, 1))
    return (x / x.square().mean((0, 1)).sqrt()).float()


def _variance(x: Tensor) -> float:
    return float((x - x.mean((0, 1))).square().sum(-1).mean())


def _last(square: float) -> Tensor:
    """A vector along the last dimension, of squared length ``square``."""
    vector = torch.zeros(DIM)
    vector[-1] = square**0.5
    return vector
