"""SAELens' format: ``cfg.json`` and ``sae_weights.safetensors``, from version 3 to 6.

Tensors: W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_dec (d_in,), and by architecture b_enc, threshold, b_gate, r_mag,
b_mag (d_sae,). BatchTopK and Matryoshka SAEs are saved as jumprelu; their checkpoints hold ``topk_threshold``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_bench.errors import LoadError, near
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
from sae_bench.sae import Activation, Gated, JumpReLU, LinearDecoderSAE, ReLU, SAEInfo, TokenNorm, TopK

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"
"Written beside training checkpoints; holds the factor that expected_average_only_in multiplies its input by."

Tensors = dict[str, Tensor]
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
_METADATA = (
    "model_name",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "hook_name",
    "hook_name_out",
    "hook_head_index",
    "prepend_bos",
    "context_size",
    "dataset_path",
    "neuronpedia_id",
    "seqpos_slice",
    "sae_lens_version",
    "sae_lens_training_version",
)


@dataclass(frozen=True)
class _Architecture:
    tensors: tuple[str, ...]
    "Beyond W_enc, W_dec and b_dec."
    build: Callable[[Tensors, Mapping[str, Any]], Activation]
    has_k: bool = False


_ARCHITECTURES = {
    "standard": _Architecture(("b_enc",), lambda w, _: ReLU(w["b_enc"])),
    "jumprelu": _Architecture(("b_enc", "threshold"), lambda w, _: JumpReLU(w["b_enc"], w["threshold"])),
    "topk": _Architecture(("b_enc",), lambda w, cfg: TopK(w["b_enc"], cfg["k"]), has_k=True),
    "gated": _Architecture(("b_gate", "r_mag", "b_mag"), lambda w, _: Gated(w["b_gate"], w["r_mag"], w["b_mag"])),
    # Names that only training checkpoints bear: at inference they are JumpReLU with one threshold for all features.
    "batchtopk": _Architecture(("b_enc", "threshold"), lambda w, _: JumpReLU(w["b_enc"], w["threshold"])),
    "matryoshka_batchtopk": _Architecture(("b_enc", "threshold"), lambda w, _: JumpReLU(w["b_enc"], w["threshold"])),
}
_TOKEN_NORMS: dict[str, TokenNorm] = {
    "none": "none",
    "expected_average_only_in": "none",
    "constant_scalar_rescale": "none",
    "constant_norm_rescale": "constant_norm_rescale",
    "layer_norm": "layer_norm",
}


def recognise(folder: Path) -> bool:
    """Whether ``folder`` is of this family, also when one of its two files is missing or broken."""
    config = peek_json(folder / CONFIG)
    if "d_sae" in config and ("architecture" in config or "metadata" in config):
        return True
    if "d_sae" in config and ("hook_name" in config or "hook_point" in config):
        return True
    if not (folder / WEIGHTS).is_file() or config:
        return False
    names = peek_names(folder / WEIGHTS)
    return {"W_enc", "W_dec"} <= names or ((folder / CONFIG).is_file() and not names)


def read(folder: Path) -> LinearDecoderSAE:
    """The SAE in ``folder``, in float32 on the CPU; `LoadError` in one sentence when it cannot be read rightly."""
    config = read_json(folder / CONFIG)
    factor = peek_json(folder / SCALER).get("scaling_factor")
    return build(config, read_safetensors(folder / WEIGHTS), what=str(folder), scaling_factor=factor)


def adopt(obj: Any) -> LinearDecoderSAE | None:
    """A loaded SAELens object as an SAE of ours; None for anything else and for architectures unknown here."""
    cfg: Any = getattr(obj, "cfg", None)
    if not type(obj).__module__.startswith("sae_lens.") or not hasattr(cfg, "to_dict"):
        return None
    config = cfg.to_dict()
    if config.get("architecture") not in _ARCHITECTURES:
        return None
    weights = {name: tensor.detach() for name, tensor in obj.state_dict().items()}
    return build(config, weights, what=f"the {type(obj).__name__} object")


def build(
    config: Mapping[str, Any], weights: Tensors, *, what: str, scaling_factor: float | None = None
) -> LinearDecoderSAE:
    """The SAE that ``config`` and ``weights`` describe, in float32.

    ``what`` names it in errors; ``scaling_factor`` is what expected_average_only_in multiplies the input by, if known.
    """
    config = _modern(config)
    metadata = config["metadata"]
    architecture = _architecture(config, what)
    _refuse_other_targets(config, metadata, what)
    d_in, d_sae = positive_int(config, "d_in", what), positive_int(config, "d_sae", what)
    if _ARCHITECTURES[architecture].has_k and positive_int(config, "k", what) > d_sae:
        raise LoadError(f"k of {what} is {config['k']}, more than its {d_sae} features")

    dtype = next(iter(weights.values())).dtype if weights else torch.float32
    weights = _tidy({name: tensor.float() for name, tensor in weights.items()}, config, d_sae, what)
    features = _ARCHITECTURES[architecture].tensors
    check_names(weights, ("W_enc", "W_dec", "b_dec", *features), f"{what} ({architecture})")
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), **dict.fromkeys(features, (d_sae,))}
    for name, shape in shapes.items():
        check_shape(name, weights[name], shape, what)
    check_orientation(weights["W_enc"], weights["W_dec"], what)

    # Training configs of BatchTopK rescale unless they say otherwise; other architectures ignore the key.
    rescaled = "topk" in architecture and bool(config.get("rescale_acts_by_decoder_norm", architecture != "topk"))
    weights = _fold_input_scale(weights, _input_scale(config, what, scaling_factor), rescaled)
    if rescaled:
        weights = _fold_norms(weights)
    subtracts = config.get("apply_b_dec_to_input", True)
    return LinearDecoderSAE(
        info=_info(config, architecture, str(dtype).removeprefix("torch."), what),
        W_enc=weights["W_enc"],
        activation=_ARCHITECTURES[architecture].build(weights, config),
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        pre_bias=weights["b_dec"] if subtracts else torch.zeros_like(weights["b_dec"]),
        token_norm=_TOKEN_NORMS[config["normalize_activations"]],
    )


def _modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of any version in the shape of version 6: metadata apart, today's key names."""
    new = {_RENAMED.get(key, key): value for key, value in config.items()}
    if not isinstance(new.get("metadata"), Mapping):
        new["metadata"] = {key: new[key] for key in _METADATA if key in new}
    kwargs = new.get("activation_fn_kwargs")
    if new.get("activation_fn") == "topk" and isinstance(kwargs, Mapping) and "k" in kwargs:
        new.update(architecture="topk", k=kwargs["k"])
    # Early versions had a flag where later ones have a word.
    norm = new.get("normalize_activations") or "none"
    new["normalize_activations"] = "expected_average_only_in" if norm is True else norm
    return new


def _architecture(config: Mapping[str, Any], what: str) -> str:
    name = said(config, "architecture", str, what) or "standard"
    if name in _ARCHITECTURES:
        activation = config.get("activation_fn", "relu")
        if name != "topk" and activation != "relu":
            raise LoadError(f"activation function {activation!r} of {what} is not known here; known: relu, topk")
        return name
    if "transcoder" in name:
        raise LoadError(f"{what} is a transcoder ({name}): it predicts another site; only autoencoders are measured")
    raise LoadError(
        f"unknown architecture {name!r} of {what}{near(name, _ARCHITECTURES)}; "
        f"to measure it all the same, register it with load=, a function that returns an object with encode and decode"
    )


def _refuse_other_targets(config: Mapping[str, Any], metadata: Mapping[str, Any], what: str) -> None:
    site, site_out = metadata.get("hook_name"), metadata.get("hook_name_out")
    if site_out not in (None, site) or config.get("d_out") not in (None, config.get("d_in")):
        raise LoadError(
            f"{what} is a transcoder (it reads {site} and writes {site_out or 'another width'}); "
            f"only autoencoders are measured"
        )
    if (head := metadata.get("hook_head_index")) is not None:
        raise LoadError(f"{what} reads head {head} of {site} only; only SAEs on whole sites are measured")


def _tidy(weights: Tensors, config: Mapping[str, Any], d_sae: int, what: str) -> Tensors:
    """Older and training-only spellings of tensors as their modern ones."""
    weights = dict(weights)
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    if "topk_threshold" in weights:
        weights["threshold"] = weights.pop("topk_threshold").expand(d_sae).clone()
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factors = weights.pop(name, None)
        if factors is None or bool((factors == 1).all()):
            continue
        if not config.get("finetuning_scaling_factor"):
            raise LoadError(
                f"{what} stores {name} other than 1 but its config does not say that codes are scaled by it; "
                f"set finetuning_scaling_factor to true in its {CONFIG} if they are, else remove the tensor"
            )
        weights["W_dec"] = weights["W_dec"] * factors.unsqueeze(1)
    return weights


def _input_scale(config: Mapping[str, Any], what: str, scaling_factor: float | None) -> float:
    """What the input is multiplied by before encoding; the output is divided by it."""
    norm = config["normalize_activations"]
    if not isinstance(norm, str) or norm not in _TOKEN_NORMS:
        raise LoadError(
            f"normalize_activations {norm!r} of {what} cannot be applied from its files"
            f"{near(str(norm), _TOKEN_NORMS)}; fold it into the weights before saving"
        )
    factor, home = scaling_factor, f'a file {SCALER} with {{"scaling_factor": sqrt(d_in) / mean norm in training}}'
    if norm == "constant_scalar_rescale":
        factor, home = config.get("activation_normalization_factor"), f"activation_normalization_factor to {CONFIG}"
    elif norm != "expected_average_only_in":
        return 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e9:
        raise LoadError(
            f"{what} wants its input scaled ({norm}) but the factor is not stored with it; add {home}, "
            f'or set normalize_activations to "none" in {CONFIG} if the weights hold the factor already'
        )
    return float(factor)


def _fold_input_scale(weights: Tensors, scale: float, rescaled: bool) -> Tensors:
    """Weights that do for ``x`` what the given ones do for ``scale * x``, with the output divided by ``scale``."""
    if scale == 1.0:
        return weights
    folded = {**weights, "W_enc": weights["W_enc"] * scale}
    for name in ("W_dec", "b_dec"):
        folded[name] = weights[name] / scale
    if rescaled and "threshold" in weights:
        # Such thresholds are in units of pre-activation times decoder norm, and the norm has just been divided.
        folded["threshold"] = weights["threshold"] / scale
    return folded


def _fold_norms(weights: Tensors) -> Tensors:
    """Unit decoder rows, their norms in the encoder: what rescale_acts_by_decoder_norm means, exactly."""
    norms = weights["W_dec"].norm(dim=1)
    divisor = torch.where(norms == 0, torch.ones_like(norms), norms)
    return {
        **weights,
        "W_enc": weights["W_enc"] * norms,
        "b_enc": weights["b_enc"] * norms,
        "W_dec": weights["W_dec"] / divisor.unsqueeze(1),
    }


def _info(config: Mapping[str, Any], architecture: str, dtype: str, what: str) -> SAEInfo:
    metadata = config["metadata"]
    known = {"model_name", "model_from_pretrained_kwargs", "hook_name", "hook_name_out", "prepend_bos", "context_size"}
    site = said(metadata, "hook_name", str, what)
    kwargs = metadata.get("model_from_pretrained_kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise LoadError(f"model_from_pretrained_kwargs of {what} is {kwargs!r}, it must be an object or null")
    extra = {key: value for key, value in metadata.items() if key not in known}
    if (reshape := config.get("reshape_activations", "none")) != "none":
        extra["reshape_activations"] = reshape
    return SAEInfo(
        format="sae_lens",
        architecture=said(metadata, "training_architecture", str, what) or architecture,
        d_in=config["d_in"],
        d_sae=config["d_sae"],
        dtype=dtype,
        model=said(metadata, "model_name", str, what),
        model_kwargs=dict(kwargs),
        site_in=site,
        site_out=site,
        prepend_bos=said(metadata, "prepend_bos", bool, what),
        context_size=said(metadata, "context_size", int, what),
        l0=said(metadata, "l0", float, what),
        neuronpedia=said(metadata, "neuronpedia_id", str, what),
        extra=extra,
    )
