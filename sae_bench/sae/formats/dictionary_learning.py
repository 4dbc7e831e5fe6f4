"""dictionary_learning's format: ``ae.pt``, a state dict, and ``config.json``, which names the class it belongs to.

Two layouts of tensors: linear layers (``encoder.weight`` (d_sae, d_in), ``decoder.weight`` (d_in, d_sae)) and plain
matrices (``W_enc`` (d_in, d_sae), ``W_dec`` (d_sae, d_in)). The class decides whether the input loses the decoder's
bias.
``ae.pt`` is a pickle; it is read with ``weights_only=True``, which refuses everything but tensors and plain containers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sae_bench.errors import LoadError, near
from sae_bench.sae import Activation, Gated, JumpReLU, LinearDecoderSAE, ReLU, SAEInfo, TopK
from sae_bench.sae.files.json_config import optional_value, peek_json, positive_int, read_json
from sae_bench.sae.files.read_tensors import Tensors, only_tensors, read_pickled
from sae_bench.sae.files.weight_checks import (
    check_k,
    check_names,
    check_orientation,
    check_real,
    check_shape,
    dtype_name,
    hook_name,
    linear_layer_matrices,
)

CONFIG = "config.json"
WEIGHTS = "ae.pt"

_LAYERS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
_SITE = re.compile(r"(resid_pre|resid_post|mlp_out|attn_out)(?:_layer)?_(\d+)")
_ENDS: Mapping[str, tuple[Literal["input", "output"], Literal["input", "output"]]] = {
    "in": ("input", "input"),
    "out": ("output", "output"),
    "in_and_out": ("input", "output"),
}
"Value of the buffer's ``io`` to the ends of the module that are read and written."


@dataclass(frozen=True)
class _Class:
    names: Mapping[str, str]
    "Stored names to ours."
    build: Callable[[Tensors, int], Activation]
    subtracts: bool
    "True when the decoder's bias is subtracted from the input."
    has_k: bool = False


def _jump(weights: Tensors, _: int) -> Activation:
    return JumpReLU(weights["b_enc"], weights["threshold"])


def _relu(weights: Tensors, _: int) -> Activation:
    return ReLU(weights["b_enc"])


_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_BATCH = {"threshold": "threshold"}
_GATE = {"decoder_bias": "b_dec", "r_mag": "r_mag", "gate_bias": "b_gate", "mag_bias": "b_mag"}
_GATED = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", **_GATE}
_CLASSES = {
    "AutoEncoder": _Class({**_LAYERS, "bias": "b_dec"}, _relu, subtracts=True),
    "AutoEncoderNew": _Class({**_LAYERS, "decoder.bias": "b_dec"}, _relu, subtracts=False),
    "GatedAutoEncoder": _Class(_GATED, lambda w, _: Gated(w["b_gate"], w["r_mag"], w["b_mag"]), subtracts=True),
    "JumpReluAutoEncoder": _Class({**_PLAIN, "threshold": "threshold"}, _jump, subtracts=False),
    "AutoEncoderTopK": _Class({**_LAYERS, "b_dec": "b_dec"}, lambda w, k: TopK(w["b_enc"], k), True, has_k=True),
    "BatchTopKSAE": _Class({**_LAYERS, "b_dec": "b_dec", **_BATCH}, _jump, subtracts=True),
    "MatryoshkaBatchTopKSAE": _Class({**_PLAIN, **_BATCH}, _jump, subtracts=True),
}
_UNUSED = {"k", "group_sizes"}
"Buffers of training, which inference does not need."


def recognise(folder: Path) -> bool:
    """Return True when ``folder`` is of this family, also when one of its two files is missing or broken."""
    trainer = peek_json(folder / CONFIG).get("trainer")
    return (isinstance(trainer, dict) and "dict_class" in trainer) or (folder / WEIGHTS).is_file()


def read(folder: Path) -> LinearDecoderSAE:
    """Read the SAE in ``folder``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    config = read_json(folder / CONFIG)
    path = folder / WEIGHTS
    return build(config, only_tensors(read_pickled(path), path), what=str(folder))


def adopt(obj: Any) -> LinearDecoderSAE | None:
    """Convert a loaded dictionary_learning object as an SAE of ours; None for anything else."""
    name = type(obj).__name__
    if not type(obj).__module__.startswith("dictionary_learning.") or name not in _CLASSES:
        return None
    weights = {key: tensor.detach() for key, tensor in obj.state_dict().items()}
    return build({"trainer": {"dict_class": name}}, weights, what=f"the {name} object")


def build(config: Mapping[str, Any], weights: Tensors, *, what: str) -> LinearDecoderSAE:
    """Build the SAE of a ``config`` and a state dict ``weights``, in float32; ``what`` names it in errors."""
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping):
        raise LoadError(f"{CONFIG} of {what} has no object 'trainer', which names the class of its weights")
    name = optional_value(trainer, "dict_class", str, what)
    if name is None or name not in _CLASSES:
        raise LoadError(f"unknown dict_class {name!r} of {what}{near(str(name), _CLASSES)}")
    kind = _CLASSES[name]
    k = _k(trainer, weights, what) if kind.has_k else 0
    surplus = _UNUSED | ({"threshold"} if kind.has_k else set())
    stored = {key: tensor for key, tensor in weights.items() if key not in surplus}
    check_names(stored, kind.names, f"{what} ({name})")
    dtype = dtype_name(stored["W_enc" if "W_enc" in stored else "encoder.weight"])

    for key, tensor in stored.items():
        check_real(key, tensor, what)
    tensors = {kind.names[key]: tensor.float() for key, tensor in stored.items()}
    if "encoder.weight" in kind.names:
        # Linear layers keep (out, in).
        tensors["W_enc"], tensors["W_dec"] = linear_layer_matrices(stored, "encoder.weight", "decoder.weight", what)
    elif tensors["W_enc"].ndim != 2:
        raise LoadError(f"W_enc of {what} is no matrix")
    d_in, d_sae = tensors["W_enc"].shape
    _check_config_values(trainer, {"activation_dim": d_in, "dict_size": d_sae}, what)
    check_shape("the decoder", tensors["W_dec"], (d_sae, d_in), what)
    io = _io(config, what)
    if io != "in_and_out":
        check_orientation(tensors["W_enc"], tensors["W_dec"], what)
    if "threshold" in tensors:
        tensors["threshold"] = _threshold(tensors["threshold"], d_sae, what)
    if kind.has_k:
        check_k(k, d_sae, what)
    return LinearDecoderSAE(
        info=_info(config, trainer, SAEInfo("dictionary_learning", name, d_in, d_sae, dtype), io, what),
        W_enc=tensors["W_enc"],
        activation=kind.build(tensors, k),
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        pre_bias=tensors["b_dec"] if kind.subtracts else torch.zeros_like(tensors["b_dec"]),
    )


def _k(trainer: Mapping[str, Any], weights: Tensors, what: str) -> int:
    if "k" not in weights:
        return positive_int(trainer, "k", what)
    if weights["k"].numel() != 1 or weights["k"].is_complex():
        raise LoadError(f"k of {what} has shape {tuple(weights['k'].shape)}, it must be one number")
    stored = int(weights["k"])
    _check_config_values(trainer, {"k": stored}, what)
    return positive_int({"k": stored}, "k", what)


def _check_config_values(trainer: Mapping[str, Any], weights: Mapping[str, int], what: str) -> None:
    for key, value in weights.items():
        if trainer.get(key, value) != value:
            raise LoadError(
                f"the config of {what} says {key} {trainer[key]!r} but its weights say {value}; "
                f"{CONFIG} and {WEIGHTS} belong to different SAEs"
            )


def _threshold(threshold: Tensor, d_sae: int, what: str) -> Tensor:
    if bool((threshold == -1).any()):
        raise LoadError(
            f"the threshold of {what} is -1: its training stopped before one was estimated, and every feature above 0 "
            f"would fire; train past threshold_start_step, or set threshold in {WEIGHTS} to the intended one"
        )
    return threshold.expand(d_sae).clone() if threshold.ndim == 0 else threshold


def _io(config: Mapping[str, Any], what: str) -> str:
    """Return the buffer's ``io``, the ends of the module that it was trained on."""
    buffer = config.get("buffer")
    io = optional_value(buffer, "io", str, what) if isinstance(buffer, Mapping) else None
    if io not in (None, *_ENDS):
        raise LoadError(f"io of the buffer of {what} is {io!r}{near(str(io), _ENDS)}")
    return io or "out"


def _info(config: Mapping[str, Any], trainer: Mapping[str, Any], known: SAEInfo, io: str, what: str) -> SAEInfo:
    buffer = config.get("buffer")
    buffer = buffer if isinstance(buffer, Mapping) else {}
    keys = ("submodule_name", "layer", "trainer_class", "steps", "seed", "k")
    submodule = trainer.get("submodule_name")
    read, written = _ENDS[io]
    return dataclasses.replace(
        known,
        model=optional_value(trainer, "lm_name", str, what),
        site_in=_site(submodule, read, io),
        site_out=_site(submodule, written, io),
        context_size=optional_value(buffer, "ctx_len", int, what),
        extra={key: trainer[key] for key in keys if key in trainer},
    )


def _site(submodule: object, end: Literal["input", "output"], io: str) -> str | None:
    """Return the hook name of ``resid_post_layer_8`` or of one end of a module; None for anything less certain."""
    if isinstance(submodule, str) and (match := _SITE.fullmatch(submodule)):
        # Such names are of recorded activations, which are outputs of modules.
        return f"blocks.{match[2]}.hook_{match[1]}" if io == "out" else None
    return hook_name(submodule, end)
