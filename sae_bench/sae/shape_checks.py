"""Cheap checks when an SAE is loaded, so that a broken file never looks like a bad SAE."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_bench.errors import LoadError
from sae_bench.sae.protocol import SAE


def check_outputs(sae: SAE, x: Tensor | None = None) -> None:
    """Finite weights, right shapes, finite codes and reconstructions; a `LoadError` in one sentence otherwise.

    Tried on 16 standard normal vectors drawn from a fixed seed, or on ``x`` (tokens, d_in) when given.
    """
    for name, tensor in sae.tensors().items():
        _check_finite(f"weight {name}", tensor)
    if x is None:
        device = next(iter(sae.tensors().values())).device
        x = torch.randn(16, sae.d_in, generator=torch.Generator().manual_seed(0)).to(device)
    codes = sae.encode(x)
    _check_output("encode", codes, x, sae.d_sae)
    _check_output("decode", sae.decode(codes, x), x, sae.d_out)


def check_width(sae: SAE, width: int, site: object, source: tuple[int, object] | None = None) -> None:
    """`LoadError` unless the SAE writes ``width`` dimensions, the width of the model at ``site``, and reads as many.

    ``source`` is width and name of the site it reads, where that is another one.
    """
    written = (width, site)
    for verb, size, (wide, where) in (("reads", sae.d_in, source or written), ("writes", sae.d_out, written)):
        if size != wide:
            raise LoadError(
                f"the SAE {verb} {size} dimensions but the model is {wide} wide at {where}; "
                f"it belongs to another model or site, give the right ones with model=... and site=..."
            )


def _check_finite(what: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        nan = int(torch.isnan(tensor).sum())
        raise LoadError(
            f"{what} holds {nan} NaN and {bad - nan} infinite of {tensor.numel()} values; "
            f"the SAE is damaged or its training diverged"
        )


def _check_output(method: str, result: Tensor, x: Tensor, width: int) -> None:
    expected = (*x.shape[:-1], width)
    if tuple(result.shape) != expected:
        raise LoadError(
            f"{method} gives shape {tuple(result.shape)} where {expected} is due for an input of shape {tuple(x.shape)}"
        )
    _check_finite(f"the output of {method} on finite input", result)
