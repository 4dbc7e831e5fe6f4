"""Qwen Scope's format: ``layer7.sae.pt`` with W_enc (d_sae, d_in) and W_dec (d_in, d_sae), both transposed.

They are TopK SAEs, and k is stored nowhere but in the repository's name, ``SAE-Res-...-W32K-L0_50``; a downloaded file
keeps that name in its path. The decoder's bias is not subtracted from the input.
"""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

import torch

from sae_bench.errors import LoadError
from sae_bench.sae import LinearDecoderSAE, SAEInfo, TopK
from sae_bench.sae.files.read_tensors import PICKLES, only_tensors, read_pickled
from sae_bench.sae.files.weight_checks import check_k, check_orientation, check_weights, dtype_name

_NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}
_K = re.compile(r"-L0_(\d{1,6})(?:$|[^\d])")
_LAYER = re.compile(r"layer(\d{1,4})\.sae\.pt")


def recognise_file(path: Path, names: Set[str]) -> bool:
    """Return True when a weight file with entries ``names`` is of this family."""
    other_config = path.with_name(f"{path.stem}_cfg.json")
    return path.suffix in PICKLES and names == _NAMES and not other_config.is_file()


def read_file(path: Path) -> LinearDecoderSAE:
    """Read the SAE in ``path``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    weights, what = only_tensors(read_pickled(path), path), str(path)
    if any(weights[name].ndim != 1 for name in ("b_enc", "b_dec")):
        raise LoadError(f"b_enc or b_dec of {what} is not a vector; download the file again")
    d_sae, d_in = len(weights["b_enc"]), len(weights["b_dec"])
    check_weights(weights, {"W_enc": (d_sae, d_in), "W_dec": (d_in, d_sae), "b_enc": (d_sae,), "b_dec": (d_in,)}, what)
    matches = [match for part in path.absolute().parts if (match := _K.search(part))]
    if not matches:
        raise LoadError(
            f"k of {what} is unknown: the file does not store it; put the file into a folder with the name of its "
            f"repository, such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50, whose last number is k"
        )
    k = int(matches[-1][1])
    check_k(k, d_sae, what)
    W_enc, W_dec = weights["W_enc"].float().T.contiguous(), weights["W_dec"].float().T.contiguous()
    check_orientation(W_enc, W_dec, what)
    layer = _LAYER.fullmatch(path.name)
    site = f"blocks.{layer[1]}.hook_resid_post" if layer else None
    return LinearDecoderSAE(
        info=SAEInfo(
            "qwen_scope", "topk", d_in, d_sae, dtype_name(weights["W_enc"]), site_in=site, site_out=site, l0=float(k)
        ),
        W_enc=W_enc,
        activation=TopK(weights["b_enc"].float(), k),
        W_dec=W_dec,
        b_dec=weights["b_dec"].float(),
        pre_bias=torch.zeros(d_in),
    )
