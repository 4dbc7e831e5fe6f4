"""SAELens' format: ``cfg.json`` and ``sae_weights.safetensors``, from version 3 to 6.

Tensors: W_enc (d_in, d_sae), W_dec (d_sae, d_out), b_dec (d_out,), and by architecture b_enc, threshold, b_gate, r_mag,
b_mag (d_sae,), W_skip (d_out, d_in). BatchTopK and Matryoshka SAEs are saved as jumprelu; their checkpoints hold
``topk_threshold``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sae_bench.errors import LoadError, near
from sae_bench.sae import SAE, AbsTopK, Activation, Gated, JumpReLU, LinearDecoderSAE, PursuitSAE, ReLU, SAEInfo, TopK
from sae_bench.sae.files.json_config import optional_value, peek_json, positive_int, read_json
from sae_bench.sae.files.read_tensors import Tensors, peek_names, read_safetensors
from sae_bench.sae.files.weight_checks import check_k, check_orientation, check_real, check_weights
from sae_bench.sae.formats.sae_lens.config_versions import info_of, modern
from sae_bench.sae.formats.sae_lens.input_scale import (
    SCALED,
    SCALER,
    TOKEN_NORMS,
    Scaler,
    fold_input,
    fold_norms,
    read_scaler,
)
from sae_bench.sae.formats.sae_lens.published_l0 import SPARSITY, published_l0

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"


@dataclass(frozen=True)
class _Architecture:
    tensors: tuple[str, ...]
    "Names of tensors in addition to W_enc, W_dec and b_dec, all (d_sae,)."
    build: Callable[[Tensors, Mapping[str, Any]], Activation]
    has_k: bool = False
    transcodes: bool = False
    skips: bool = False


def _relu(weights: Tensors, _: Mapping[str, Any]) -> Activation:
    return ReLU(weights["b_enc"])


def _jump(weights: Tensors, _: Mapping[str, Any]) -> Activation:
    return JumpReLU(weights["b_enc"], weights["threshold"])


_B, _JUMP = ("b_enc",), ("b_enc", "threshold")
_ARCHITECTURES = {
    "standard": _Architecture(_B, _relu),
    "jumprelu": _Architecture(_JUMP, _jump),
    "topk": _Architecture(_B, lambda w, cfg: TopK(w["b_enc"], cfg["k"]), has_k=True),
    "abstopk": _Architecture(_B, lambda w, cfg: AbsTopK(w["b_enc"], cfg["k"]), has_k=True),
    "gated": _Architecture(("b_gate", "r_mag", "b_mag"), lambda w, _: Gated(w["b_gate"], w["r_mag"], w["b_mag"])),
    # Names of training checkpoints: at inference they are JumpReLU with one threshold for all features.
    "batchtopk": _Architecture(_JUMP, _jump),
    "matryoshka_batchtopk": _Architecture(_JUMP, _jump),
    "transcoder": _Architecture(_B, _relu, transcodes=True),
    "skip_transcoder": _Architecture(_B, _relu, transcodes=True, skips=True),
    "jumprelu_transcoder": _Architecture(_JUMP, _jump, transcodes=True),
    "jumprelu_skip_transcoder": _Architecture(_JUMP, _jump, transcodes=True, skips=True),
}
_PURSUIT = "matching_pursuit"
_REFUSED = {
    "temporal": "its codes depend on earlier tokens, and every metric assumes that they depend on one token",
}


def recognise(folder: Path) -> bool:
    """Return True when ``folder`` is of this family, also when one of its two files is missing or broken."""
    config = peek_json(folder / CONFIG)
    if "d_sae" in config and ("architecture" in config or "metadata" in config):
        return True
    if "d_sae" in config and ("hook_name" in config or "hook_point" in config):
        return True
    if not (folder / WEIGHTS).is_file() or config:
        return False
    names = peek_names(folder / WEIGHTS)
    return {"W_enc", "W_dec"} <= names or ((folder / CONFIG).is_file() and not names)


def read(folder: Path) -> LinearDecoderSAE | PursuitSAE:
    """Read the SAE in ``folder``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    config = read_json(folder / CONFIG)
    weights = read_safetensors(folder / WEIGHTS)
    sae = build(config, weights, what=str(folder), scaler=read_scaler(folder / SCALER))
    if sae.info.l0 is not None or not (folder / SPARSITY).is_file():
        return sae
    return replace(sae, info=replace(sae.info, l0=published_l0(folder / SPARSITY, sae.d_sae)))


def adopt(obj: Any) -> SAE | None:
    """Convert a loaded SAELens object as an SAE of ours; None for anything else and for architectures unknown here."""
    cfg: Any = getattr(obj, "cfg", None)
    if not type(obj).__module__.startswith("sae_lens.") or not hasattr(cfg, "to_dict"):
        return None
    config = cfg.to_dict()
    if config.get("architecture") not in {*_ARCHITECTURES, *_REFUSED, _PURSUIT}:
        return None
    weights = {name: tensor.detach() for name, tensor in obj.state_dict().items()}
    return build(config, weights, what=f"the {type(obj).__name__} object")


def build(
    config: Mapping[str, Any], weights: Tensors, *, what: str, scaler: Scaler | None = None
) -> LinearDecoderSAE | PursuitSAE:
    """Build the SAE of a ``config`` and ``weights``, in float32.

    ``what`` names it in errors; ``scaler`` is the stored scaling of the input in training, if there is one.
    """
    config = modern(config)
    architecture = _architecture(config, what)
    for name, tensor in weights.items():
        check_real(name, tensor, what)
    info = info_of(config, architecture, weights, what)
    weights = _tidy({name: tensor.float() for name, tensor in weights.items()}, config, info.d_sae, what)
    if architecture == _PURSUIT:
        return _pursuit(config, weights, info, scaler, what)
    return _linear(config | {"architecture": architecture}, weights, info, scaler, what)


def _linear(
    config: Mapping[str, Any], weights: Tensors, info: SAEInfo, scaler: Scaler | None, what: str
) -> LinearDecoderSAE:
    architecture, d_in, d_sae = config["architecture"], info.d_in, info.d_sae
    known = _ARCHITECTURES[architecture]
    d_out = positive_int(config, "d_out", what) if known.transcodes else d_in
    if known.has_k:
        check_k(positive_int(config, "k", what), d_sae, what)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    shapes |= dict.fromkeys(known.tensors, (d_sae,)) | ({"W_skip": (d_out, d_in)} if known.skips else {})
    check_weights(weights, shapes, f"{what} ({architecture})")
    if not known.transcodes:
        check_orientation(weights["W_enc"], weights["W_dec"], what)
    subtracts = not known.transcodes and bool(config.get("apply_b_dec_to_input", True))
    # Training configs of BatchTopK rescale unless they say otherwise; other architectures ignore the key.
    rescaled = "topk" in architecture and bool(config.get("rescale_acts_by_decoder_norm", "batch" in architecture))
    if rescaled and config["normalize_activations"] == "covariance_whitening":
        # The matrix changes the norms; those that chose the features in training are the ones before.
        weights, rescaled = fold_norms(weights), False
    weights = fold_input(weights, config, scaler, rescaled=rescaled, subtracts=subtracts, what=what)
    if rescaled:
        weights = fold_norms(weights)
    return LinearDecoderSAE(
        info=info,
        W_enc=weights["W_enc"],
        activation=known.build(weights, config),
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        pre_bias=weights["b_dec"] if subtracts else torch.zeros(d_in),
        token_norm=TOKEN_NORMS[config["normalize_activations"]],
        norm_undone=not known.transcodes,
        W_skip=weights["W_skip"].T.contiguous() if known.skips else None,
    )


def _pursuit(
    config: Mapping[str, Any], weights: Tensors, info: SAEInfo, scaler: Scaler | None, what: str
) -> PursuitSAE:
    d_in = info.d_in
    if config["normalize_activations"] == "covariance_whitening":
        raise LoadError(
            f"{what} needs its input whitened (covariance_whitening), which is not defined for {_PURSUIT}: its encoder "
            f"is its decoder, and the matrix can be folded into only one of them; give an SAE without whitening"
        )
    check_weights(weights, {"W_dec": (info.d_sae, d_in), "b_dec": (d_in,)}, f"{what} ({_PURSUIT})")
    threshold = optional_value(config, "residual_threshold", float, what)
    threshold = 0.01 if threshold is None else threshold
    b_dec = weights["b_dec"] if config.get("apply_b_dec_to_input", True) else torch.zeros(d_in)
    # Encoder and decoder are one matrix: scaling the input scales codes, bias and threshold, and leaves the rows alone.
    scaled = fold_input({"b_dec": b_dec}, config, scaler, rescaled=False, subtracts=True, what=what)
    scale = 1.0 if scaler is None or scaler.factor is None else scaler.factor
    duplicate = optional_value(config, "stop_on_duplicate_support", bool, what)
    return PursuitSAE(
        info=info,
        W_dec=weights["W_dec"],
        b_dec=scaled["b_dec"],
        residual_threshold=threshold / scale if config["normalize_activations"] in SCALED else threshold,
        max_iterations=optional_value(config, "max_iterations", int, what) or d_in,
        stop_on_duplicate_support=True if duplicate is None else duplicate,
        token_norm=TOKEN_NORMS[config["normalize_activations"]],
    )


def _architecture(config: Mapping[str, Any], what: str) -> str:
    name = optional_value(config, "architecture", str, what) or "standard"
    if name in _REFUSED:
        raise LoadError(f"{what} is a {name} SAE, which cannot be measured: {_REFUSED[name]}")
    if name not in _ARCHITECTURES and name != _PURSUIT:
        raise LoadError(
            f"unknown architecture {name!r} of {what}{near(name, _ARCHITECTURES)}; to measure it, register it with "
            f"load=, a function that returns an object with encode and decode"
        )
    activation = config.get("activation_fn", "relu")
    if name != "topk" and activation != "relu":
        raise LoadError(
            f"activation function {activation!r} of {what} is not supported, only relu and topk are; register it with "
            f"load=, a function that returns an object with encode and decode"
        )
    transcodes = name in _ARCHITECTURES and _ARCHITECTURES[name].transcodes
    site, site_out = (config["metadata"].get(key) for key in ("hook_name", "hook_name_out"))
    if not transcodes and (site_out not in (None, site) or config.get("d_out") not in (None, config.get("d_in"))):
        raise LoadError(
            f"the config of {what} reads {site} and writes {site_out or 'another width'}, but its architecture {name} "
            f"is an autoencoder's; correct its {CONFIG}"
        )
    return name


def _tidy(weights: Tensors, config: Mapping[str, Any], d_sae: int, what: str) -> Tensors:
    """Rename tensors of older versions and of training to their modern names."""
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
                f"{what} stores {name} other than 1, but finetuning_scaling_factor is not true in its {CONFIG}; "
                f"set it to true if codes are scaled by the tensor, else remove the tensor"
            )
        weights["W_dec"] = weights["W_dec"] * factors.unsqueeze(1)
    return weights
