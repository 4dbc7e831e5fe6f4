"""Save an SAE so that SAELens 6 loads it with the same codes and reconstructions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sae_bench.errors import UsageError
from sae_bench.sae import SAE, AbsTopK, Gated, JumpReLU, LinearDecoderSAE, ReLU, TopK
from sae_bench.sae.formats.sae_lens import CONFIG, WEIGHTS

_NAMES = {ReLU: "standard", JumpReLU: "jumprelu", TopK: "topk", AbsTopK: "abstopk", Gated: "gated"}
_FORMAT_VERSION = "6.0.0"
"Version in the config; without one of at least 6 SAELens renames the keys as those of an older config."


def write_sae_lens(sae: SAE, folder: Path) -> None:
    """Write ``cfg.json`` and ``sae_weights.safetensors`` to ``folder``, which is made when it is missing.

    Only SAEs made of tensors (`LinearDecoderSAE`) with an activation SAELens knows can be written; others are a
    `UsageError`. Codes and reconstructions stay the same to rounding.
    """
    if not isinstance(sae, LinearDecoderSAE) or type(sae.activation) not in _NAMES:
        raise UsageError(
            f"a {sae.info.architecture} SAE of format {sae.info.format} cannot be written in SAELens' format; "
            f"only SAEs read from files with a ReLU, JumpReLU, TopK, AbsTopK or gated encoder can"
        )
    if sae.W_skip is not None or not sae.norm_undone or sae.site_out != sae.site_in or sae.d_out != sae.d_in:
        raise UsageError(f"a transcoder ({sae.site_in} to {sae.site_out}) cannot be written in SAELens' format")
    sae = _with_known_bias(sae)
    tensors = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec, **sae.activation.tensors()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS)
    text = json.dumps(_config(sae), indent=2, sort_keys=True, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _with_known_bias(sae: LinearDecoderSAE) -> LinearDecoderSAE:
    """Return the SAE with an input bias of `b_dec` or zero, the two that SAELens can express."""
    if torch.equal(sae.pre_bias, sae.b_dec) or not bool(sae.pre_bias.any()):
        return sae
    shift = -(sae.pre_bias.double() @ sae.W_enc.double()).to(sae.W_enc.dtype)
    return dataclasses.replace(sae, activation=sae.activation.shift(shift), pre_bias=torch.zeros_like(sae.pre_bias))


def _config(sae: LinearDecoderSAE) -> dict[str, Any]:
    info = sae.info
    extra = dict(info.extra)
    config: dict[str, Any] = {
        "architecture": _NAMES[type(sae.activation)],
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": bool(sae.pre_bias.any()),
        "normalize_activations": sae.token_norm,
        "reshape_activations": extra.pop("reshape_activations", "none"),
    }
    if isinstance(sae.activation, TopK | AbsTopK):
        config |= {"k": sae.activation.k, "rescale_acts_by_decoder_norm": False}
    named = {
        "model_name": info.model,
        "model_from_pretrained_kwargs": dict(info.model_kwargs) or None,
        "hook_name": info.site_in,
        "prepend_bos": info.prepend_bos,
        "context_size": info.context_size,
        "neuronpedia_id": info.neuronpedia,
        "l0": info.l0,
        "training_architecture": info.architecture,
    }
    metadata = {**extra, **{key: value for key, value in named.items() if value is not None}}
    config["metadata"] = {"sae_lens_training_version": None, **metadata, "sae_lens_version": _FORMAT_VERSION}
    return config
