"""Clauses of `contract`: each tests one input and returns a violation in words, or None.

Letters: x (tokens, d_in) activations, codes (tokens, d_sae), xhat (tokens, d_out).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sae_bench.measure.properties.contract.inputs import InputBuilder

Clause: TypeAlias = Callable[[Any, Tensor, InputBuilder], str | None]
_FLIPS = 2
"Features of a token that may fire in one batch and not in another: a near tie under TopK swaps two."
_DISTINCT = 64
"Fewest different values among codes that show their precision."


def not_finite(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Test that finite activations have finite codes and reconstructions."""
    codes = sae.encode(x)
    for call, values in (("encode", codes), ("decode(encode(x))", sae.decode(codes, like=x))):
        if broken := int((~torch.isfinite(values)).sum()):
            return f"{call} of finite activations holds {broken} NaN or infinite of {values.numel()} values"
    return None


def not_deterministic(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Test that the same activations have the same codes to the last bit, whatever was encoded in between."""
    first = sae.encode(x)
    if not _same(first, sae.encode(x)):
        return "encode gives other codes when it is called again"
    sae.encode(inputs.real[: len(x) + 1].to(x.dtype))
    if not _same(first, sae.encode(x)):
        return "encode gives other codes after it has encoded something else"
    xhat = sae.decode(first, like=x)
    return (
        None
        if _same(xhat, sae.decode(first, like=x))
        else "decode gives another reconstruction when it is called again"
    )


def batch_dependent(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Test that a token's codes do not depend on the other tokens of its batch, nor on their order."""
    codes = sae.encode(x)
    alone = torch.cat([sae.encode(row[None]) for row in x])
    if difference := _differ(codes, alone, x):
        return f"encode of a token depends on the batch it is in: {difference}"
    if difference := _differ(codes.flip(0), sae.encode(x.flip(0)), x.flip(0)):
        return f"encode of a token depends on the order of the batch: {difference}"
    with_another_token = sae.encode(torch.cat([x, inputs.real[:1].to(x) * 3]))[: len(x)]
    difference = _differ(codes, with_another_token, x)
    return f"encode of a token changes when another token joins the batch: {difference}" if difference else None


def decode_not_affine(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Test that ``decode`` is a matrix and a constant: it keeps means of codes, and doubles with the codes."""
    codes = sae.encode(x)
    other_codes = codes.roll(1, 0) if len(x) > 1 else sae.encode(inputs.real[:1].to(x.dtype))
    zero = sae.decode(torch.zeros_like(codes), like=x).double()
    first, second = sae.decode(codes, like=x).double(), sae.decode(other_codes, like=x).double()
    scale = float(torch.stack([zero, first, second]).abs().max()) + torch.finfo(torch.float32).tiny
    allowed = _tolerance(codes.dtype) * scale
    if float((sae.decode((codes + other_codes) / 2, like=x).double() - (first + second) / 2).abs().max()) > allowed:
        return "decode of the mean of two codes is not the mean of what they decode to"
    if float((sae.decode(2 * codes, like=x).double() - (2 * first - zero)).abs().max()) > 2 * allowed:
        return "decode of twice a code is not twice what it adds to the bias"
    return None


def wrong_sign(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Test that codes are not negative, unless the SAE's settings say ``signed``."""
    if sae.settings().get("signed") or sae.info.extra.get("signed"):
        return None
    codes = sae.encode(x)
    negative = int((codes < 0).sum())
    return f"{negative} codes are negative, the least {float(codes.min()):.3g}" if negative else None


def wrong_dtype_or_shape(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Test that codes (tokens, d_sae) and reconstruction (tokens, d_out) have the weights' precision."""
    codes = sae.encode(x)
    for call, values, width in (("encode", codes, sae.d_sae), ("decode", sae.decode(codes, like=x), sae.d_out)):
        if tuple(values.shape) != (len(x), int(width)):
            return f"{call} gives shape {tuple(values.shape)} instead of {(len(x), int(width))}"
        if values.dtype != inputs.dtype:
            return f"{call} gives {_name(values.dtype)}, and the weights are {_name(inputs.dtype)}"
    return None


def nan_hidden(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Test that a token with a NaN has NaN codes or reconstruction, or an error: never a number."""
    x = x.clone()
    x[0, -1] = torch.nan
    try:
        codes = sae.encode(x)
        xhat = sae.decode(codes, like=x)
    except Exception:  # An error is what the clause allows, of whatever kind the object raises.
        return None
    if bool(torch.isfinite(codes[0]).all() & torch.isfinite(xhat[0]).all()):
        return "an activation with a NaN is encoded and decoded to numbers"
    return None


def rounded(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Test that codes of float32 weights have more digits than a half precision."""
    if inputs.dtype not in (torch.float32, torch.float64):
        return None
    codes = sae.encode(x)
    fired = codes[codes != 0]
    if len(fired.unique()) < _DISTINCT:
        return None
    for half in (torch.bfloat16, torch.float16):
        if torch.equal(fired, fired.to(half).to(fired.dtype)):
            return f"all {len(fired)} codes are numbers of {_name(half)}, though the weights are {_name(inputs.dtype)}"
    return None


def encoding_difference(codes: Tensor, other: Tensor, x: Tensor) -> str | None:
    """Return the difference of two encodings of ``x`` beyond rounding, in words; None without one."""
    return _differ(codes, other, x)


def _differ(codes: Tensor, other: Tensor, x: Tensor) -> str | None:
    first, second = codes.double(), other.double()
    scale = torch.maximum(first.abs().amax(-1), x.double().norm(dim=-1))  # (tokens,)
    fires = (first != 0) & (second != 0)
    change = ((first - second).abs() * fires).amax(-1)
    if bool((change > _tolerance(codes.dtype) * scale).any()):
        token = int((change / scale.clamp_min(1e-300)).argmax())
        feature = int(((first - second).abs() * fires)[token].argmax())
        return f"feature {feature} is {first[token, feature]:.4g} once and {second[token, feature]:.4g} another time"
    flips = ((first != 0) != (second != 0)).sum(-1)
    if bool((flips > _FLIPS).any()):
        return f"{int(flips.max())} features of one token fire once and do not another time"
    return None


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.nan_to_num(), second.nan_to_num())


def _tolerance(dtype: torch.dtype) -> float:
    """Return the largest rounding error as a share of the largest number: 3e-4 in float32, 0.09 in bfloat16."""
    return float(torch.finfo(dtype).eps ** 0.5) if dtype != torch.float64 else 1e-6


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
