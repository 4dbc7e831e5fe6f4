"""Checks of shapes and finite values when an SAE is loaded, so that a broken file is an error and not a bad SAE."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_bench.errors import LoadError
from sae_bench.sae.protocol import SAE


def check_outputs(sae: SAE, x: Tensor | None = None) -> None:
    """Check for finite weights, codes and reconstructions of the right shapes; a `LoadError` in one sentence otherwise.

    The input is ``x`` (tokens, d_in), by default 16 standard normal vectors drawn from a fixed seed.
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
    """Raise a `LoadError` unless the SAE reads and writes ``width`` dimensions, the width of the model at ``site``.

    ``source`` is width and name of the site it reads, where that is another one.
    """
    written = (width, site)
    for verb, size, (wide, where) in (("reads", sae.d_in, source or written), ("writes", sae.d_out, written)):
        if size != wide:
            raise LoadError(
                f"the SAE {verb} {size} dimensions but the model is {wide} wide at {where}; "
                f"it belongs to another model or site: register it with the right model=... and site=..."
            )


def _check_finite(what: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        nan = int(torch.isnan(tensor).sum())
        raise LoadError(
            f"{what} has {nan} NaN and {bad - nan} infinite of {tensor.numel()} values; "
            f"the SAE is damaged or its training diverged"
        )


def _check_output(method: str, result: Tensor, x: Tensor, width: int) -> None:
    expected = (*x.shape[:-1], width)
    if tuple(result.shape) != expected:
        raise LoadError(
            f"{method} returns shape {tuple(result.shape)} instead of {expected} for an input of shape "
            f"{tuple(x.shape)}; correct {method}() of the object, or the weights it was made from"
        )
    _check_finite(f"the output of {method} on finite input", result)
