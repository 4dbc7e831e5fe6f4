"""What SAELens' training did to the input, folded into the weights: a factor, a whitening, the decoder's norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_bench.errors import LoadError, near
from sae_bench.sae import TokenNorm
from sae_bench.sae.files.json_config import peek_json
from sae_bench.sae.files.read_tensors import Tensors, read_safetensors
from sae_bench.sae.files.weight_checks import check_weights

SCALER = "activation_scaler.json"
"Written beside training checkpoints; holds the factor that expected_average_only_in multiplies its input by."

WHITENING = "activation_whitening.safetensors"
"Written beside it where training whitened its input."

SCALED = ("expected_average_only_in", "constant_scalar_rescale")
"Words for an input that is multiplied by one factor."

TOKEN_NORMS: dict[str, TokenNorm] = {
    "none": "none",
    "expected_average_only_in": "none",
    "constant_scalar_rescale": "none",
    "covariance_whitening": "none",
    "constant_norm_rescale": "constant_norm_rescale",
    "layer_norm": "layer_norm",
}
"normalize_activations to what is left to do for every token once the rest is folded in."


@dataclass(frozen=True, eq=False)
class Scaler:
    """What a checkpoint's scaler files say."""

    factor: float | None = None
    whitening: Tensors | None = None
    "mean (d,), matrix (d, d), inverse_matrix (d, d): z = (x - mean) @ matrix."


def read_scaler(path: Path) -> Scaler:
    """The scaler files beside a checkpoint; an empty `Scaler` when there are none."""
    whitening = path.with_name(WHITENING)
    return Scaler(peek_json(path).get("scaling_factor"), read_safetensors(whitening) if whitening.is_file() else None)


def fold_input(
    weights: Tensors, config: Mapping[str, Any], scaler: Scaler | None, *, rescaled: bool, subtracts: bool, what: str
) -> Tensors:
    """Weights that do for the raw input what the given ones do for the one that training saw.

    ``rescaled`` says that thresholds are in units of pre-activation times decoder norm, ``subtracts`` that b_dec is
    taken from the input. A `LoadError` when the factor or matrix is not stored.
    """
    norm = config["normalize_activations"]
    if not isinstance(norm, str) or norm not in TOKEN_NORMS:
        raise LoadError(
            f"normalize_activations {norm!r} of {what} cannot be applied from its files"
            f"{near(str(norm), TOKEN_NORMS)}; fold it into the weights before saving"
        )
    if norm == "covariance_whitening":
        return _fold_whitening(weights, None if scaler is None else scaler.whitening, subtracts, what)
    return _fold_scale(weights, _factor(config, scaler, what), rescaled) if norm in SCALED else weights


def fold_norms(weights: Tensors) -> Tensors:
    """Unit decoder rows, their norms in the encoder: what rescale_acts_by_decoder_norm means, exactly."""
    norms = weights["W_dec"].norm(dim=1)
    divisor = torch.where(norms == 0, torch.ones_like(norms), norms)
    return {
        **weights,
        "W_enc": weights["W_enc"] * norms,
        "b_enc": weights["b_enc"] * norms,
        "W_dec": weights["W_dec"] / divisor.unsqueeze(1),
    }


def _factor(config: Mapping[str, Any], scaler: Scaler | None, what: str) -> float:
    """What the input is multiplied by before encoding; the output is divided by it."""
    norm = config["normalize_activations"]
    factor: object = None if scaler is None else scaler.factor
    home = f'a file {SCALER} with {{"scaling_factor": sqrt(d_in) / mean norm in training}}'
    if norm == "constant_scalar_rescale":
        factor, home = config.get("activation_normalization_factor"), "activation_normalization_factor to cfg.json"
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e9:
        raise LoadError(
            f"{what} wants its input scaled ({norm}) but the factor is not stored with it; add {home}, "
            f'or set normalize_activations to "none" in cfg.json if the weights hold the factor already'
        )
    return float(factor)


def _fold_scale(weights: Tensors, scale: float, rescaled: bool) -> Tensors:
    folded = {**weights}
    if "W_enc" in weights:
        folded["W_enc"] = weights["W_enc"] * scale
    for name in ("W_dec", "b_dec"):
        if name in weights:
            folded[name] = weights[name] / scale
    if rescaled and "threshold" in weights:
        # Such thresholds are in units of pre-activation times decoder norm, and the norm has just been divided.
        folded["threshold"] = weights["threshold"] / scale
    return folded


def _fold_whitening(weights: Tensors, whitening: Tensors | None, subtracts: bool, what: str) -> Tensors:
    """Formula: SAELens, ``SAE.fold_activation_whitening``: x enters as (x - mean) @ M, z leaves as z @ M^-1 + mean."""
    if whitening is None:
        raise LoadError(
            f"{what} wants its input whitened (covariance_whitening) but the matrix is not stored with it; add "
            f"{WHITENING} from its checkpoint, or fold it into the weights before saving"
        )
    d_in = weights["W_enc"].shape[0]
    check_weights(
        whitening, {"mean": (d_in,), "matrix": (d_in, d_in), "inverse_matrix": (d_in, d_in)}, f"{WHITENING} of {what}"
    )
    mean, matrix, inverse = (whitening[name].float() for name in ("mean", "matrix", "inverse_matrix"))
    folded = {**weights, "W_enc": matrix @ weights["W_enc"], "W_dec": weights["W_dec"] @ inverse}
    folded["b_dec"] = weights["b_dec"] @ inverse + mean
    if not subtracts:
        shift = mean @ folded["W_enc"]
        for name in ("b_enc", "b_gate"):
            if name in weights:
                folded[name] = weights[name] - shift
        if "b_mag" in weights:
            folded["b_mag"] = weights["b_mag"] - shift * weights["r_mag"].exp()
    return folded
