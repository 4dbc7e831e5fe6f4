"""Fold the input scaling of SAELens' training into the weights: a factor, a whitening matrix, the decoder norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_bench.errors import LoadError, near
from sae_bench.sae import TokenNorm
from sae_bench.sae.files.json_config import peek_json
from sae_bench.sae.files.read_tensors import Tensors, read_safetensors
from sae_bench.sae.files.weight_checks import check_weights
from sae_bench.sae.protocol import nonzero_norms

SCALER = "activation_scaler.json"
"File of a training checkpoint with the factor by which expected_average_only_in multiplies its input."

WHITENING = "activation_whitening.safetensors"
"File of a training checkpoint whose input was whitened."

SCALED = ("expected_average_only_in", "constant_scalar_rescale")
"Values of normalize_activations for an input that is multiplied by one factor."

TOKEN_NORMS: dict[str, TokenNorm] = {
    "none": "none",
    "expected_average_only_in": "none",
    "constant_scalar_rescale": "none",
    "covariance_whitening": "none",
    "constant_norm_rescale": "constant_norm_rescale",
    "layer_norm": "layer_norm",
}
"normalize_activations to the token norm that remains after the rest is folded into the weights."


@dataclass(frozen=True, eq=False)
class Scaler:
    """Contents of a checkpoint's scaler files."""

    factor: float | None = None
    whitening: Tensors | None = None
    "mean (d,), matrix (d, d), inverse_matrix (d, d): z = (x - mean) @ matrix."


def read_scaler(path: Path) -> Scaler:
    """Read the scaler files of a checkpoint; an empty `Scaler` when there are none."""
    whitening = path.with_name(WHITENING)
    return Scaler(peek_json(path).get("scaling_factor"), read_safetensors(whitening) if whitening.is_file() else None)


def fold_input(
    weights: Tensors, config: Mapping[str, Any], scaler: Scaler | None, *, rescaled: bool, subtracts: bool, what: str
) -> Tensors:
    """Fold the scaling of the input into the weights, so that they apply to the raw activation.

    ``rescaled``: thresholds are in units of pre-activation times decoder norm. ``subtracts``: b_dec is subtracted from
    the input. A `LoadError` when the factor or matrix is not stored.
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
    """Scale decoder rows to norm 1 and the encoder by their norms, as rescale_acts_by_decoder_norm means exactly."""
    norms = weights["W_dec"].norm(dim=1)
    return {
        **weights,
        "W_enc": weights["W_enc"] * norms,
        "b_enc": weights["b_enc"] * norms,
        "W_dec": weights["W_dec"] / nonzero_norms(norms).unsqueeze(1),
    }


def _factor(config: Mapping[str, Any], scaler: Scaler | None, what: str) -> float:
    """Return the factor of the input before encoding, by which the output is divided."""
    norm = config["normalize_activations"]
    factor: object = None if scaler is None else scaler.factor
    remedy = f'a file {SCALER} with {{"scaling_factor": sqrt(d_in) / mean norm in training}}'
    if norm == "constant_scalar_rescale":
        factor, remedy = config.get("activation_normalization_factor"), "activation_normalization_factor to cfg.json"
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e9:
        raise LoadError(
            f"{what} needs its input scaled ({norm}), but the factor is not stored with it; add {remedy}, "
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
    """Fold the whitening of the input, (x - mean) @ M, and of the output, z @ M^-1 + mean, into the weights.

    Formula: SAELens, ``SAE.fold_activation_whitening``.
    """
    if whitening is None:
        raise LoadError(
            f"{what} needs its input whitened (covariance_whitening), but the matrix is not stored with it; add "
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
