"""sparsify's format: ``cfg.json`` and ``sae.safetensors`` in a folder named after the hookpoint.

Tensors: ``encoder.weight`` (d_sae, d_in), ``encoder.bias`` (d_sae,), ``W_dec`` (d_sae, d_in), which is not transposed
against the encoder, and ``b_dec`` (d_in,), subtracted from the input. The hookpoint is a Hugging Face module name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_bench.errors import LoadError, UsageError, near
from sae_bench.formats._files import (
    check_names,
    check_orientation,
    check_shape,
    peek_json,
    peek_names,
    positive_int,
    read_json,
    read_safetensors,
    said,
)
from sae_bench.sae import Activation, LinearDecoderSAE, ReLU, SAEInfo, TopK
from sae_bench.site import parse_site

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"

Tensors = dict[str, Tensor]
_NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


@dataclass(frozen=True, eq=False)
class GroupMax(ReLU):
    """The largest pre-activation of each of k equal, contiguous groups of features, negative ones as 0."""

    k: int

    def __call__(self, projections: Tensor) -> Tensor:
        """Codes (..., d_sae)."""
        pre = torch.relu(projections + self.b_enc)
        pre = pre.view(*pre.shape[:-1], self.k, -1)
        values, indices = pre.max(dim=-1, keepdim=True)
        return torch.zeros_like(pre).scatter_(-1, indices, values).flatten(-2)


_ACTIVATIONS = {"topk": TopK, "groupmax": GroupMax}


def recognise(folder: Path) -> bool:
    """Whether ``folder`` is of this family, also when one of its two files is missing or broken."""
    config = peek_json(folder / CONFIG)
    if {"d_in", "k", "expansion_factor"} <= set(config):
        return True
    return (folder / WEIGHTS).is_file() and (not config or {"encoder.weight", "W_dec"} <= peek_names(folder / WEIGHTS))


def read(folder: Path) -> LinearDecoderSAE:
    """The SAE in ``folder``, in float32 on the CPU; `LoadError` in one sentence when it cannot be read rightly."""
    config = read_json(folder / CONFIG)
    weights = read_safetensors(folder / WEIGHTS)
    # The run's own config lies one folder up and is the only place that names the model.
    model = said(peek_json(folder.parent / "config.json"), "model", str, str(folder.parent))
    return build(config, weights, what=str(folder), hookpoint=folder.name, model=model)


def adopt(obj: Any) -> LinearDecoderSAE | None:
    """A loaded sparsify object as an SAE of ours; None for anything else."""
    if not type(obj).__module__.startswith("sparsify.") or not hasattr(obj, "cfg"):
        return None
    config = {**vars(obj.cfg), "d_in": obj.d_in}
    weights = {key: tensor.detach() for key, tensor in obj.state_dict().items()}
    return build(config, weights, what=f"the {type(obj).__name__} object")


def build(
    config: Mapping[str, Any], weights: Tensors, *, what: str, hookpoint: str = "", model: str | None = None
) -> LinearDecoderSAE:
    """The SAE that ``config`` and ``weights`` describe, in float32; ``what`` names it in errors."""
    if config.get("transcode"):
        raise LoadError(f"{what} is a transcoder (transcode is true); only autoencoders are measured")
    if config.get("skip_connection") or "W_skip" in weights:
        raise LoadError(f"{what} adds a linear map of its input (skip_connection); only autoencoders are measured")
    if config.get("signed"):
        raise LoadError(f"{what} selects features by magnitude and keeps their sign (signed), which is not known here")
    check_names(weights, _NAMES, what)
    d_in, k = positive_int(config, "d_in", what), positive_int(config, "k", what)
    # A stored number of latents of 0 means that the expansion factor decides.
    d_sae = said(config, "num_latents", int, what) or d_in * positive_int(config, "expansion_factor", what)
    shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    for name, shape in shapes.items():
        check_shape(name, weights[name], shape, what)
    W_enc, W_dec = weights["encoder.weight"].float().T.contiguous(), weights["W_dec"].float()
    check_orientation(W_enc, W_dec, what)
    site = _site(hookpoint)
    keys = ("activation", "k", "normalize_decoder", "multi_topk")
    return LinearDecoderSAE(
        info=SAEInfo(
            format="sparsify",
            architecture=said(config, "activation", str, what) or "topk",
            d_in=d_in,
            d_sae=d_sae,
            dtype=str(weights["W_dec"].dtype).removeprefix("torch."),
            model=model,
            site_in=site,
            site_out=site,
            extra={key: config[key] for key in keys if key in config},
        ),
        W_enc=W_enc,
        activation=_activation(config, weights["encoder.bias"].float(), k, d_sae, what),
        W_dec=W_dec,
        b_dec=weights["b_dec"].float(),
        pre_bias=weights["b_dec"].float(),
    )


def _activation(config: Mapping[str, Any], bias: Tensor, k: int, d_sae: int, what: str) -> Activation:
    name = said(config, "activation", str, what) or "topk"
    if name not in _ACTIVATIONS:
        raise LoadError(f"unknown activation {name!r} of {what}{near(name, _ACTIVATIONS)}")
    if k > d_sae:
        raise LoadError(f"k of {what} is {k}, more than its {d_sae} features")
    if name == "groupmax" and d_sae % k:
        raise LoadError(f"k of {what} is {k}, which does not divide its {d_sae} features into equal groups")
    return _ACTIVATIONS[name](bias, k)


def _site(hookpoint: str) -> str | None:
    try:
        return str(parse_site(hookpoint))
    except UsageError:
        return None
