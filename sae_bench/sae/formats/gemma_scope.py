"""Gemma Scope's format: ``params.npz`` with W_enc (d_in, d_sae), W_dec (d_sae, d_out), b_enc, b_dec and threshold.

There is no config: the registration must give model and site. The decoder's bias is not subtracted from the input. The
folder's name, ``average_l0_71``, gives the published L0.
"""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

import torch

from sae_bench.sae import JumpReLU, LinearDecoderSAE, SAEInfo
from sae_bench.sae.files.read_tensors import read_npz
from sae_bench.sae.files.weight_checks import canonical_weights, dtype_name

_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_L0 = re.compile(r"average_l0_(\d+)")


def recognise_file(path: Path, names: Set[str]) -> bool:
    """Return True when a weight file with tensors ``names`` is of this family."""
    return path.suffix == ".npz" and set(_NAMES) <= names


def read_file(path: Path) -> LinearDecoderSAE:
    """Read the SAE in ``path``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    stored = read_npz(path)
    weights = canonical_weights(stored, str(path), threshold=True)
    d_in, d_sae = weights["W_enc"].shape
    l0 = _L0.fullmatch(path.parent.name)
    return LinearDecoderSAE(
        info=SAEInfo(
            "gemma_scope",
            "jumprelu",
            d_in,
            d_sae,
            dtype_name(stored["W_enc"]),
            l0=float(l0[1]) if l0 else None,
        ),
        W_enc=weights["W_enc"],
        activation=JumpReLU(weights["b_enc"], weights["threshold"]),
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        pre_bias=torch.zeros(d_in),
    )
