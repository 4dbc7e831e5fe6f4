"""Gemma Scope's format: ``params.npz`` with W_enc (d_in, d_sae), W_dec (d_sae, d_out), b_enc, b_dec and threshold.

There is no config: model and site are for the registration to say. The decoder's bias is not taken from the input. The
folder's name, ``average_l0_71``, is the only number its makers state.
"""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

import torch

from sae_bench.errors import LoadError
from sae_bench.formats._assemble import check_orientation, check_weights, dtype_name
from sae_bench.formats._tensors import read_npz
from sae_bench.sae import JumpReLU, LinearDecoderSAE, SAEInfo

_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_L0 = re.compile(r"average_l0_(\d+)")


def recognise_file(path: Path, names: Set[str]) -> bool:
    """Whether a weight file with tensors ``names`` is of this family."""
    return path.suffix == ".npz" and set(_NAMES) <= names


def read_file(path: Path) -> LinearDecoderSAE:
    """The SAE in ``path``, in float32 on the CPU; `LoadError` in one sentence when it cannot be read rightly."""
    weights, what = read_npz(path), str(path)
    if weights["W_enc"].ndim != 2 or weights["W_dec"].ndim != 2:
        raise LoadError(f"W_enc or W_dec of {what} is no matrix")
    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,)}
    check_weights(weights, {**shapes, "threshold": (d_sae,)}, what)
    check_orientation(weights["W_enc"], weights["W_dec"], what)
    stored = dtype_name(weights["W_enc"])
    weights = {name: tensor.float() for name, tensor in weights.items()}
    said = _L0.fullmatch(path.parent.name)
    return LinearDecoderSAE(
        info=SAEInfo("gemma_scope", "jumprelu", d_in, d_sae, stored, l0=float(said[1]) if said else None),
        W_enc=weights["W_enc"],
        activation=JumpReLU(weights["b_enc"], weights["threshold"]),
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        pre_bias=torch.zeros(d_in),
    )
