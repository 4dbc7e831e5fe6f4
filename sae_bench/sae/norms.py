"""Normalisation of every token before encoding, as SAELens and OpenAI's SAEs do it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

TokenNorm: TypeAlias = Literal["none", "constant_norm_rescale", "layer_norm"]
"""Normalisation of every token: none, to norm sqrt(d), or to mean 0 and (unbiased) standard deviation 1."""


def moments(x: Tensor, norm: TokenNorm) -> tuple[Tensor, Tensor]:
    """Shift and scale (..., 1) of every token of ``x`` (..., d), which encoding removes and decoding restores."""
    if norm == "constant_norm_rescale":
        scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return torch.zeros_like(scale), scale
    return x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)


def normalise(x: Tensor, norm: TokenNorm) -> Tensor:
    """Normalise every token of ``x`` (..., d) for the encoder."""
    if norm == "none":
        return x
    shift, scale = moments(x, norm)
    # SAELens and OpenAI add 1e-5 on the way in of a layer norm and nowhere else; the smallest number keeps a zero
    # token zero.
    epsilon = 1e-5 if norm == "layer_norm" else torch.finfo(scale.dtype).tiny
    return (x - shift) / (scale + epsilon)
