"""sparsify's format: ``cfg.json`` and ``sae.safetensors`` in a folder named after the hookpoint.

Tensors: ``encoder.weight`` (d_sae, d_in), ``encoder.bias`` (d_sae,), ``W_dec`` (d_sae, d_in), which is not transposed
against the encoder, ``b_dec`` (d_in,), subtracted from the input unless it is a transcoder, and ``W_skip`` (d_out,
d_in). The hookpoint is a Hugging Face module name; a transcoder reads the module's input and writes its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_bench.errors import LoadError, near
from sae_bench.sae import Activation, GroupMax, LinearDecoderSAE, SAEInfo, TopK
from sae_bench.sae.files.json_config import optional_value, peek_json, positive_int, read_json
from sae_bench.sae.files.read_tensors import Tensors, peek_names, read_safetensors
from sae_bench.sae.files.weight_checks import check_k, check_orientation, check_weights, dtype_name, hook_name

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"

_ACTIVATIONS = {"topk": TopK, "groupmax": GroupMax}


def recognise(folder: Path) -> bool:
    """Return True when ``folder`` is of this family, also when one of its two files is missing or broken."""
    config = peek_json(folder / CONFIG)
    if {"d_in", "k", "expansion_factor"} <= set(config):
        return True
    return (folder / WEIGHTS).is_file() and (not config or {"encoder.weight", "W_dec"} <= peek_names(folder / WEIGHTS))


def read(folder: Path) -> LinearDecoderSAE:
    """Read the SAE in ``folder``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    config = read_json(folder / CONFIG)
    weights = read_safetensors(folder / WEIGHTS)
    # The run's own config lies one folder up and is the only place that names the model.
    model = optional_value(peek_json(folder.parent / "config.json"), "model", str, str(folder.parent))
    return build(config, weights, what=str(folder), hookpoint=folder.name, model=model)


def adopt(obj: Any) -> LinearDecoderSAE | None:
    """Convert a loaded sparsify object as an SAE of ours; None for anything else."""
    if not type(obj).__module__.startswith("sparsify.") or not hasattr(obj, "cfg"):
        return None
    config = {**vars(obj.cfg), "d_in": obj.d_in}
    weights = {key: tensor.detach() for key, tensor in obj.state_dict().items()}
    return build(config, weights, what=f"the {type(obj).__name__} object")


def build(
    config: Mapping[str, Any], weights: Tensors, *, what: str, hookpoint: str = "", model: str | None = None
) -> LinearDecoderSAE:
    """Build the SAE of a ``config`` and ``weights``, in float32; ``what`` names it in errors."""
    if config.get("signed"):
        raise LoadError(
            f"{what} has signed codes (signed: true), which are not supported; register load=, a function that returns "
            f"an object with encode and decode"
        )
    transcodes, skips = bool(config.get("transcode")), bool(config.get("skip_connection"))
    d_in, k = positive_int(config, "d_in", what), positive_int(config, "k", what)
    # num_latents of 0 means that the expansion factor decides.
    d_sae = optional_value(config, "num_latents", int, what) or d_in * positive_int(config, "expansion_factor", what)
    shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    check_weights(weights, shapes | ({"W_skip": (d_in, d_in)} if skips else {}), what)
    W_enc, W_dec, b_dec = weights["encoder.weight"].float().T.contiguous(), weights["W_dec"].float(), weights["b_dec"]
    if not transcodes:
        check_orientation(W_enc, W_dec, what)
    keys = ("activation", "k", "normalize_decoder", "multi_topk", "transcode")
    return LinearDecoderSAE(
        info=SAEInfo(
            format="sparsify",
            architecture=optional_value(config, "activation", str, what) or "topk",
            d_in=d_in,
            d_sae=d_sae,
            dtype=dtype_name(weights["W_dec"]),
            model=model,
            site_in=hook_name(hookpoint, "input" if transcodes else "output"),
            site_out=hook_name(hookpoint),
            extra={key: config[key] for key in keys if key in config},
        ),
        W_enc=W_enc,
        activation=_activation(config, weights["encoder.bias"].float(), k, d_sae, what),
        W_dec=W_dec,
        b_dec=b_dec.float(),
        pre_bias=torch.zeros(d_in) if transcodes else b_dec.float(),
        W_skip=weights["W_skip"].float().T.contiguous() if skips else None,
    )


def _activation(config: Mapping[str, Any], bias: Tensor, k: int, d_sae: int, what: str) -> Activation:
    name = optional_value(config, "activation", str, what) or "topk"
    if name not in _ACTIVATIONS:
        raise LoadError(f"unknown activation {name!r} of {what}{near(name, _ACTIVATIONS)}")
    check_k(k, d_sae, what)
    if name == "groupmax" and d_sae % k:
        raise LoadError(f"k of {what} is {k}, which does not divide its {d_sae} features into equal groups")
    return _ACTIVATIONS[name](bias, k)
