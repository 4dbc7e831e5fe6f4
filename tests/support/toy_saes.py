"""SAEs small enough for milliseconds."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_bench.sae import JumpReLU, LinearDecoderSAE, ReLU, SAEInfo

WIDTH = 8


class Tied:
    """An object of a user's: one feature for either sign of every coordinate, which reconstructs exactly."""

    d_in = WIDTH

    def __init__(self) -> None:
        eye = torch.eye(WIDTH)
        self.W_dec = torch.cat([eye, -eye])

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W_dec.T)

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self.W_dec


def linear(scale: float = 1.0, threshold: float | None = None) -> LinearDecoderSAE:
    """The same from tensors, with a decoder of norm ``scale``."""
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    none = torch.zeros(2 * WIDTH)
    activation = ReLU(none) if threshold is None else JumpReLU(none, torch.full_like(none, threshold))
    return LinearDecoderSAE(
        info=SAEInfo(format="test", architecture="standard", d_in=WIDTH, d_sae=2 * WIDTH),
        W_enc=both.T.contiguous(),
        activation=activation,
        W_dec=scale * both,
        b_dec=torch.zeros(WIDTH),
        pre_bias=torch.zeros(WIDTH),
    )
