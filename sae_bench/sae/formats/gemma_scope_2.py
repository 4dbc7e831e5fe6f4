"""Gemma Scope 2's format: ``config.json`` and ``params.safetensors``.

Tensors: w_enc (d_in, d_sae), w_dec (d_sae, d_out), b_enc, b_dec, threshold, and for a transcoder with a linear path
affine_skip_connection (d_in, d_out). The decoder's bias is not subtracted from the input.
"""

from __future__ import annotations

from pathlib import Path

import torch

from sae_bench.errors import LoadError
from sae_bench.sae import JumpReLU, LinearDecoderSAE, SAEInfo
from sae_bench.sae.files.json_config import optional_value, peek_json, read_json
from sae_bench.sae.files.read_tensors import read_safetensors
from sae_bench.sae.files.weight_checks import canonical_weights, dtype_name, hook_name

CONFIG = "config.json"
WEIGHTS = "params.safetensors"

_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}
_SKIP = "affine_skip_connection"


def recognise(folder: Path) -> bool:
    """Return True when ``folder`` is of this family, also when its weights are missing or broken."""
    return {"architecture", "hf_hook_point_in"} <= set(peek_json(folder / CONFIG))


def read(folder: Path) -> LinearDecoderSAE:
    """Read the SAE in ``folder``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    config, what = read_json(folder / CONFIG), str(folder)
    architecture = optional_value(config, "architecture", str, what)
    if architecture != "jump_relu":
        raise LoadError(f"architecture of {what} is {architecture!r}; only jump_relu can be read in this format")
    tensors = read_safetensors(folder / WEIGHTS)
    # A file with both spellings keeps both, and is refused for it.
    stored = {name if _NAMES.get(name) in tensors else _NAMES.get(name, name): tensors[name] for name in tensors}
    if any(stored[name].ndim > 2 for name in _NAMES.values() if name in stored):
        raise LoadError(f"{what} is a transcoder across layers, which cannot be measured; give one of a single layer")
    skips = _SKIP in stored
    if bool(config.get("affine_connection", skips)) != skips:
        raise LoadError(
            f"affine_connection of {what} is {config['affine_connection']!r}, but its weights "
            f"{'have' if skips else 'lack'} {_SKIP}; {CONFIG} and {WEIGHTS} belong to different SAEs"
        )
    site_in, site_out = (optional_value(config, f"hf_hook_point_{end}", str, what) for end in ("in", "out"))
    weights = canonical_weights(
        stored, what, threshold=True, skip=_SKIP if skips else None, autoencodes=site_out in (None, site_in)
    )
    d_in, d_sae = weights["W_enc"].shape
    return LinearDecoderSAE(
        info=SAEInfo(
            "gemma_scope_2",
            "jumprelu",
            d_in,
            d_sae,
            dtype_name(stored["W_enc"]),
            model=optional_value(config, "model_name", str, what),
            site_in=hook_name(site_in),
            site_out=hook_name(site_out or site_in),
            l0=optional_value(config, "l0", float, what),
        ),
        W_enc=weights["W_enc"],
        activation=JumpReLU(weights["b_enc"], weights["threshold"]),
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        pre_bias=torch.zeros(d_in),
        W_skip=weights.get(_SKIP),
    )
