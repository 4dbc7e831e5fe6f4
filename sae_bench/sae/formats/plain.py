"""A safetensors file with W_enc, W_dec, b_enc and b_dec, and a ``cfg.json`` in its folder that describes them.

The config must have ``activation`` ("relu", "topk" with ``k``, or "jumprelu" with a tensor threshold) and
``apply_b_dec_to_input``; it may have ``model``, ``site`` and ``output_site``. W_enc (d_in, d_sae) and W_dec (d_sae,
d_out) may each be stored transposed; the lengths of the biases show which. Where d_in and d_sae are equal they cannot
show it, and the file is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_bench.errors import LoadError, near
from sae_bench.sae import Activation, JumpReLU, LinearDecoderSAE, ReLU, SAEInfo, TopK
from sae_bench.sae.files.json_config import optional_value, peek_json, positive_int
from sae_bench.sae.files.read_tensors import Tensors, read_safetensors
from sae_bench.sae.files.weight_checks import check_k, check_names, check_shape, dtype_name

CONFIG = "cfg.json"

_ACTIVATIONS = ("relu", "topk", "jumprelu")


def recognise_file(path: Path, names: Set[str]) -> bool:
    """Return True when a weight file with tensors ``names`` is of this family."""
    return path.suffix == ".safetensors" and {"W_enc", "W_dec"} <= names


def read_file(path: Path) -> LinearDecoderSAE:
    """Read the SAE in ``path``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    weights, config, what = read_safetensors(path), peek_json(path.with_name(CONFIG)), str(path)
    name, subtracts = (
        optional_value(config, "activation", str, what),
        optional_value(config, "apply_b_dec_to_input", bool, what),
    )
    if name is None or subtracts is None:
        raise LoadError(
            f"{what} has no {CONFIG} with activation and apply_b_dec_to_input; put one into its folder, with "
            f'{{"activation": "relu", "topk" or "jumprelu", "k": for topk, "apply_b_dec_to_input": true or false}}'
        )
    check_names(weights, ("W_enc", "W_dec", "b_enc", "b_dec", *(["threshold"] if name == "jumprelu" else [])), what)
    W_enc, W_dec = _oriented(weights, what)
    (d_in, d_sae), d_out = W_enc.shape, W_dec.shape[1]
    if subtracts and d_out != d_in:
        raise LoadError(
            f"{what} reads {d_in} dimensions and writes {d_out}, so b_dec cannot be subtracted from its input; set "
            f"apply_b_dec_to_input to false in {CONFIG}"
        )
    b_dec = weights["b_dec"].float()
    return LinearDecoderSAE(
        info=SAEInfo(
            "plain",
            name,
            d_in,
            d_sae,
            dtype_name(weights["W_enc"]),
            model=optional_value(config, "model", str, what),
            site_in=optional_value(config, "site", str, what),
            site_out=optional_value(config, "output_site", str, what) or optional_value(config, "site", str, what),
            l0=optional_value(config, "l0", float, what),
        ),
        W_enc=W_enc,
        activation=_activation(name, config, weights, d_sae, what),
        W_dec=W_dec,
        b_dec=b_dec,
        pre_bias=b_dec if subtracts else torch.zeros(d_in),
    )


def _oriented(weights: Tensors, what: str) -> tuple[Tensor, Tensor]:
    """Return W_enc (d_in, d_sae) and W_dec (d_sae, d_out), transposed if the lengths of the biases require it."""
    d_sae, d_out = (weights[name].numel() for name in ("b_enc", "b_dec"))
    matrices = []
    for name, at in (("W_enc", 1), ("W_dec", 0)):
        matrix = weights[name].float()
        if matrix.ndim != 2 or d_sae not in matrix.shape:
            raise LoadError(f"{name} of {what} has shape {tuple(matrix.shape)}, which does not fit {d_sae} features")
        if matrix.shape[0] == matrix.shape[1]:
            raise LoadError(
                f"{name} of {what} is square, so its shape does not show whether it is transposed; save it in a format "
                f"that fixes the orientation, such as SAELens'"
            )
        matrices.append(matrix if matrix.shape[at] == d_sae else matrix.T.contiguous())
    check_shape("W_dec, transposed if b_enc requires it,", matrices[1], (d_sae, d_out), what)
    return matrices[0], matrices[1]


def _activation(name: str, config: Mapping[str, Any], weights: Tensors, d_sae: int, what: str) -> Activation:
    bias = weights["b_enc"].float()
    if name == "relu":
        return ReLU(bias)
    if name == "topk":
        k = positive_int(config, "k", what)
        check_k(k, d_sae, what)
        return TopK(bias, k)
    if name == "jumprelu":
        check_shape("threshold", weights["threshold"], (d_sae,), what)
        return JumpReLU(bias, weights["threshold"].float())
    raise LoadError(f"unknown activation {name!r} of {what}{near(name, _ACTIVATIONS)}")
