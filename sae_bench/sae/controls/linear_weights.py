"""Access to the weights of an SAE, random directions and L0, for controls and defects."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sae_bench.errors import MeasurementError
from sae_bench.sae import SAE, LinearDecoderSAE


def linear_weights(sae: SAE) -> LinearDecoderSAE:
    """Return ``sae`` itself when it is made of tensors; a `MeasurementError` otherwise."""
    if isinstance(sae, LinearDecoderSAE):
        return sae
    raise MeasurementError(
        f"a {sae.info.architecture} SAE of format {sae.info.format} gives no access to its weights, "
        f"so no control can be made from it; read it from files"
    )


def unit_rows(rows: int, columns: int, generator: Generator) -> Tensor:
    """Draw random directions of norm 1, (rows, columns)."""
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator), dim=1)


def mean_l0(sae: SAE, x: Tensor) -> float:
    """Return mean number of active features on ``x`` (tokens, d_in)."""
    return float((sae.encode(x) != 0).sum(-1).double().mean())
