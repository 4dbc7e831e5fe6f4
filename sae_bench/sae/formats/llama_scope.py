"""Llama Scope's two layouts of linear layers, ``encoder.weight`` (d_sae, d_in) and ``decoder.weight`` (d_out, d_sae).

The first: ``hyperparams.json`` and ``checkpoints/final.safetensors``, one threshold for all features, in the config.
The second (R1-Distill): ``config.json`` and ``sae_weights.safetensors`` with ``log_jumprelu_threshold`` (d_sae,). Both
need the input scaled to a mean norm of sqrt(d_in); the factor follows from the mean norm in training, which they store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_bench.errors import LoadError
from sae_bench.sae import JumpReLU, LinearDecoderSAE, SAEInfo
from sae_bench.sae.files.json_config import optional_value, peek_json, read_json
from sae_bench.sae.files.read_tensors import Tensors, peek_names, read_safetensors
from sae_bench.sae.files.weight_checks import (
    check_orientation,
    check_shape,
    dtype_name,
    hook_name,
    linear_layer_matrices,
)

CONFIG, WEIGHTS = "hyperparams.json", Path("checkpoints", "final.safetensors")
LATER_CONFIG, LATER_WEIGHTS = "config.json", "sae_weights.safetensors"

_NORM = "dataset_average_activation_norm"


def recognise(folder: Path) -> bool:
    """Return True when ``folder`` is of this family, also when its weights are missing or broken."""
    if {"jump_relu_threshold", _NORM} <= set(peek_json(folder / CONFIG)):
        return True
    config = peek_json(folder / LATER_CONFIG)
    return "hook_point_in" in config and "log_jumprelu_threshold" in peek_names(folder / LATER_WEIGHTS)


def read(folder: Path) -> LinearDecoderSAE:
    """Read the SAE in ``folder``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    what = str(folder)
    if (folder / CONFIG).is_file():
        config, weights = read_json(folder / CONFIG), read_safetensors(folder / WEIGHTS)
    else:
        config, weights = read_json(folder / LATER_CONFIG), read_safetensors(folder / LATER_WEIGHTS)
    W_enc, W_dec = linear_layer_matrices(weights, "encoder.weight", "decoder.weight", what)
    d_in, d_sae = W_enc.shape
    d_out = W_dec.shape[1]
    if optional_value(config, "d_model", int, what) not in (None, d_in):
        raise LoadError(
            f"the config of {what} has d_model {config['d_model']} but its encoder reads {d_in} dimensions; "
            f"they belong to different SAEs"
        )
    for name, shape in {"decoder.weight": (d_out, d_sae), "encoder.bias": (d_sae,), "decoder.bias": (d_out,)}.items():
        if name not in weights:
            raise LoadError(f"the weights of {what} lack {name}")
        check_shape(name, weights[name], shape, what)
    site, site_out = (optional_value(config, f"hook_point_{end}", str, what) for end in ("in", "out"))
    if site_out in (None, site):
        check_orientation(W_enc, W_dec, what)
    scale = _scale(config, weights, site, d_in, what)
    scale_out = scale if site_out in (None, site) else _scale(config, weights, site_out, d_out, what, "out")
    return LinearDecoderSAE(
        info=SAEInfo(
            "llama_scope",
            "jumprelu",
            d_in,
            d_sae,
            dtype_name(weights["encoder.weight"]),
            model=optional_value(config, "model_name", str, what),
            site_in=hook_name(site),
            site_out=hook_name(site_out or site),
        ),
        W_enc=W_enc * scale,
        activation=JumpReLU(weights["encoder.bias"].float(), _threshold(config, weights, scale, d_sae, what)),
        W_dec=W_dec / scale_out,
        b_dec=weights["decoder.bias"].float() / scale_out,
        pre_bias=torch.zeros(d_in),
    )


def _threshold(config: Mapping[str, Any], weights: Tensors, scale: float, d_sae: int, what: str) -> Tensor:
    if "log_jumprelu_threshold" in weights:
        logs = weights["log_jumprelu_threshold"]
        check_shape("log_jumprelu_threshold", logs, (d_sae,), what)
        return logs.float().exp()
    threshold = optional_value(config, "jump_relu_threshold", float, what)
    if threshold is None:
        raise LoadError(
            f"{CONFIG} of {what} has no jump_relu_threshold, without which most features would fire; download it again"
        )
    # It is stored in units of the input that is not scaled.
    return torch.full((d_sae,), threshold * scale)


def _scale(
    config: Mapping[str, Any], weights: Tensors, site: str | None, width: int, what: str, end: str = "in"
) -> float:
    """Return the factor of the activation: sqrt(width) over its mean norm in training."""
    norms = config.get(_NORM)
    stored: object = norms.get(end, norms.get(site)) if isinstance(norms, Mapping) else norms
    for name in (f"{_NORM}.{end}", f"{_NORM}.{site}"):
        if name in weights and weights[name].numel() == 1:
            stored = float(weights[name])
    if isinstance(stored, bool) or not isinstance(stored, int | float) or not 0 < stored < 1e9:
        raise LoadError(
            f"{what} needs its input scaled, but {_NORM} of {site or end} is not stored with it; add it to its config"
        )
    return float(width**0.5 / stored)
