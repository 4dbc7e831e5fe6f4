"""Checks and conversions between a weight file and an SAE: names, shapes, orientation, k, hook names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from sae_bench.errors import LoadError, UsageError
from sae_bench.registry.site import parse_site
from sae_bench.sae.files.read_tensors import Tensors


def check_names(weights: Mapping[str, Tensor], expected: Iterable[str], what: str) -> None:
    """Raise a `LoadError` that names missing and surplus tensors unless ``weights`` holds exactly ``expected``."""
    missing, surplus = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or surplus:
        clauses = [f"lack {', '.join(missing)}"] if missing else []
        clauses += [f"have {', '.join(surplus)} too many"] if surplus else []
        raise LoadError(
            f"the weights of {what} {' and '.join(clauses)} (expected {', '.join(sorted(expected))}); "
            f"the config names the architecture of other weights; put the config of this SAE next to them"
        )


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raise a `LoadError` unless ``tensor`` has ``shape`` and holds real numbers; says so when it is the transpose."""
    check_real(name, tensor, what)
    if tuple(tensor.shape) == shape:
        return
    hint = "transposed" if tuple(tensor.shape) == shape[::-1] else "like a tensor of another SAE"
    raise LoadError(
        f"{name} of {what} has shape {tuple(tensor.shape)} where its config requires {shape}; it looks {hint}"
    )


def check_orientation(W_enc: Tensor, W_dec: Tensor, what: str) -> None:
    """Raise a `LoadError` when exactly one of two square matrices is transposed, which shapes cannot show.

    An encoder column and the decoder row of its feature point the same way in any trained SAE; here they are compared
    in both orientations, W_enc (d_in, d_sae), W_dec (d_sae, d_in). Weights without such alignment pass.
    """
    if W_enc.shape[0] != W_enc.shape[1]:
        return
    stored = float(torch.nn.functional.cosine_similarity(W_enc.T.float(), W_dec.float(), dim=1).mean())
    turned = float(torch.nn.functional.cosine_similarity(W_enc.float(), W_dec.float(), dim=1).mean())
    if turned > 0.2 and stored < turned / 2:
        raise LoadError(
            f"W_enc or W_dec of {what} is transposed: encoder and decoder directions have mean cosine {stored:.2f} "
            f"as stored and {turned:.2f} with one transposed; save W_enc as (d_in, d_sae), W_dec as (d_sae, d_in)"
        )


def check_weights(weights: Tensors, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise a `LoadError` unless ``weights`` are exactly the tensors of ``shapes``, each of its shape and real."""
    check_names(weights, shapes, what)
    for name, shape in shapes.items():
        check_shape(name, weights[name], shape, what)


def canonical_weights(
    weights: Tensors, what: str, *, threshold: bool = False, skip: str | None = None, autoencodes: bool = True
) -> Tensors:
    """Check weights in the layout of most formats and return them in float32.

    The layout is W_enc (d_in, d_sae), W_dec (d_sae, d_out), b_enc (d_sae,), b_dec (d_out,).

    Args:
        weights: tensors as stored.
        what: name of the SAE in errors.
        threshold: True when a tensor threshold (d_sae,) is required as well.
        skip: name of a map from input to output, (d_in, d_out).
        autoencodes: True when the SAE reads and writes one site, so that orientation can be checked.

    Raises:
        LoadError: tensors are missing or surplus, of wrong shapes, or transposed.
    """
    for name in ("W_enc", "W_dec"):
        if name not in weights or weights[name].ndim != 2:
            raise LoadError(f"the weights of {what} have no matrix {name}")
    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,)}
    shapes |= {"threshold": (d_sae,)} if threshold else {}
    check_weights(weights, shapes | ({} if skip is None else {skip: (d_in, d_out)}), what)
    if autoencodes:
        check_orientation(weights["W_enc"], weights["W_dec"], what)
    return {name: tensor.float() for name, tensor in weights.items()}


def check_real(name: str, tensor: Tensor, what: str) -> None:
    """Raise a `LoadError` unless ``tensor`` holds floating-point numbers."""
    if not tensor.is_floating_point():
        raise LoadError(
            f"{name} of {what} holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
        )


def check_k(k: int, d_sae: int, what: str) -> None:
    """Raise a `LoadError` unless ``k`` is between 1 and ``d_sae``."""
    if not 1 <= k <= d_sae:
        raise LoadError(f"k of {what} is {k}; it must be between 1 and its number of features, {d_sae}")


def linear_layer_matrices(weights: Tensors, encoder: str, decoder: str, what: str) -> tuple[Tensor, Tensor]:
    """Return W_enc (d_in, d_sae) and W_dec (d_sae, d_out) in float32 from two linear layers stored as (out, in)."""
    for name in (encoder, decoder):
        if name not in weights or weights[name].ndim != 2:
            raise LoadError(f"the weights of {what} have no matrix {name}")
        check_real(name, weights[name], what)
    return weights[encoder].float().T.contiguous(), weights[decoder].float().T.contiguous()


def hook_name(name: object, end: Literal["input", "output"] = "output") -> str | None:
    """Return the hook name of ``name``, or of one end of a Hugging Face module; None for anything less certain."""
    if not isinstance(name, str):
        return None
    try:
        return str(parse_site(name, end))
    except UsageError:
        return None


def dtype_name(tensor: Tensor) -> str:
    """Return the dtype as ``float32``, ``bfloat16`` ..."""
    return str(tensor.dtype).removeprefix("torch.")
