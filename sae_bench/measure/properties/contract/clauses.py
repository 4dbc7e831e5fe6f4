"""The clauses of `contract`: each looks at one input and returns what is wrong with what the SAE makes of it, or None.

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
"Different values among codes from which on their precision can be told."


def not_finite(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Finite activations have finite codes and reconstructions."""
    codes = sae.encode(x)
    for what, found in (("encode", codes), ("decode(encode(x))", sae.decode(codes, like=x))):
        if bad := int((~torch.isfinite(found)).sum()):
            return f"{what} of finite activations holds {bad} NaN or infinite of {found.numel()} values"
    return None


def not_deterministic(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """The same activations have the same codes, to the last bit, whatever was encoded in between."""
    first = sae.encode(x)
    if not _same(first, sae.encode(x)):
        return "encode gives other codes when it is asked again"
    sae.encode(inputs.real[: len(x) + 1].to(x.dtype))
    if not _same(first, sae.encode(x)):
        return "encode gives other codes after it has encoded something else"
    xhat = sae.decode(first, like=x)
    return None if _same(xhat, sae.decode(first, like=x)) else "decode gives something else when it is asked again"


def batch_dependent(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """A token's codes do not depend on which tokens share its batch, nor on their order."""
    codes = sae.encode(x)
    alone = torch.cat([sae.encode(row[None]) for row in x])
    if wrong := _differ(codes, alone, x):
        return f"encode of a token depends on the batch it is in: {wrong}"
    if wrong := _differ(codes.flip(0), sae.encode(x.flip(0)), x.flip(0)):
        return f"encode of a token depends on the order of the batch: {wrong}"
    beside = sae.encode(torch.cat([x, inputs.real[:1].to(x) * 3]))[: len(x)]
    wrong = _differ(codes, beside, x)
    return f"encode of a token changes when another token joins the batch: {wrong}" if wrong else None


def decode_not_affine(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """``decode`` is a matrix and a constant: it keeps means of codes, and twice a code is twice its direction."""
    codes = sae.encode(x)
    other = codes.roll(1, 0) if len(x) > 1 else sae.encode(inputs.real[:1].to(x.dtype))
    zero = sae.decode(torch.zeros_like(codes), like=x).double()
    one, two = sae.decode(codes, like=x).double(), sae.decode(other, like=x).double()
    scale = float(torch.stack([zero, one, two]).abs().max()) + torch.finfo(torch.float32).tiny
    allowed = _tolerance(codes.dtype) * scale
    if float((sae.decode((codes + other) / 2, like=x).double() - (one + two) / 2).abs().max()) > allowed:
        return "decode of the mean of two codes is not the mean of what they decode to"
    if float((sae.decode(2 * codes, like=x).double() - (2 * one - zero)).abs().max()) > 2 * allowed:
        return "decode of twice a code is not twice what it adds to the bias"
    return None


def wrong_sign(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Codes are not negative, unless the SAE's settings say ``signed``."""
    if sae.settings().get("signed") or sae.info.extra.get("signed"):
        return None
    codes = sae.encode(x)
    negative = int((codes < 0).sum())
    return f"{negative} codes are negative, the least {float(codes.min()):.3g}" if negative else None


def wrong_dtype_or_shape(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """Whatever precision goes in, codes (tokens, d_sae) and reconstruction (tokens, d_out) come in the weights' own."""
    codes = sae.encode(x)
    for what, found, width in (("encode", codes, sae.d_sae), ("decode", sae.decode(codes, like=x), sae.d_out)):
        if tuple(found.shape) != (len(x), int(width)):
            return f"{what} gives shape {tuple(found.shape)} where {(len(x), int(width))} is due"
        if found.dtype != inputs.dtype:
            return f"{what} gives {_name(found.dtype)}, and the weights are {_name(inputs.dtype)}"
    return None


def nan_hidden(sae: Any, x: Tensor, inputs: InputBuilder) -> str | None:
    """A token with a NaN has NaN codes or reconstruction, or an error: never a number."""
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
    """Codes of float32 weights hold more than a half precision does: nothing rounds on the way."""
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


def encoding_difference(codes: Tensor, again: Tensor, x: Tensor) -> str | None:
    """How two encodings of ``x`` differ beyond rounding; None when they do not."""
    return _differ(codes, again, x)


def _differ(codes: Tensor, again: Tensor, x: Tensor) -> str | None:
    here, there = codes.double(), again.double()
    scale = torch.maximum(here.abs().amax(-1), x.double().norm(dim=-1))  # (tokens,)
    fires = (here != 0) & (there != 0)
    moved = ((here - there).abs() * fires).amax(-1)
    if bool((moved > _tolerance(codes.dtype) * scale).any()):
        token = int((moved / scale.clamp_min(1e-300)).argmax())
        feature = int(((here - there).abs() * fires)[token].argmax())
        return f"feature {feature} is {here[token, feature]:.4g} once and {there[token, feature]:.4g} another time"
    flips = ((here != 0) != (there != 0)).sum(-1)
    if bool((flips > _FLIPS).any()):
        return f"{int(flips.max())} features of one token fire once and do not another time"
    return None


def _same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.nan_to_num(), right.nan_to_num())


def _tolerance(dtype: torch.dtype) -> float:
    """Share of the largest number that products of other sizes may differ by: 3e-4 in float32, 0.09 in bfloat16."""
    return float(torch.finfo(dtype).eps ** 0.5) if dtype != torch.float64 else 1e-6


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
