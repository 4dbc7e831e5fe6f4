"""Sound SAEs with one planted defect that occurs in practice; `DEFECTS` and `DEFECTS_ON_DATA` list them by name.

Every function returns a new SAE and leaves its argument as it is. Random ones take a generator. Defects change
weights, so they need an SAE made of tensors (`LinearDecoderSAE`); any other is a `MeasurementError`. The `info` of a
damaged SAE is the sound one's: a gate that compares the two must see the damage in the numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Generator, Tensor

from sae_bench.errors import MeasurementError
from sae_bench.sae import SAE, Gated, JumpReLU, LinearDecoderSAE, ReLU, TopK, decoder_norms
from sae_bench.sae.controls.known_quality import ControlFactory, permuted
from sae_bench.sae.controls.linear_weights import linear_weights, mean_l0, unit_rows

Defect: TypeAlias = Callable[[SAE, Generator], LinearDecoderSAE]

_L0_TOLERANCE = 0.01


def scale_decoder(sae: SAE, factor: float) -> LinearDecoderSAE:
    """Return ``sae`` with every decoder row times ``factor``; `b_dec` stays."""
    base = linear_weights(sae)
    return dataclasses.replace(base, W_dec=base.W_dec * factor)


def scale_features(sae: SAE, factors: Tensor) -> LinearDecoderSAE:
    """Return ``sae`` with decoder row i times ``factors[i]``, (d_sae,)."""
    base = linear_weights(sae)
    return dataclasses.replace(base, W_dec=base.W_dec * factors.to(base.W_dec).unsqueeze(1))


def rotate_decoder(sae: SAE, degrees: float, generator: Generator) -> LinearDecoderSAE:
    """Return ``sae`` with every decoder row turned by exactly ``degrees`` towards a random direction of its own."""
    base = linear_weights(sae)
    norms = base.W_dec.norm(dim=1, keepdim=True)
    along = torch.nn.functional.normalize(base.W_dec, dim=1)
    across = unit_rows(base.d_sae, base.d_out, generator).to(base.W_dec)
    across = torch.nn.functional.normalize(across - (across * along).sum(1, keepdim=True) * along, dim=1)
    angle = math.radians(degrees)
    return dataclasses.replace(base, W_dec=norms * (math.cos(angle) * along + math.sin(angle) * across))


def zero_features(sae: SAE, share: float, generator: Generator) -> LinearDecoderSAE:
    """Return ``sae`` with a random ``share`` of its features dead: they neither fire nor write."""
    base = linear_weights(sae)
    keep = torch.ones(base.d_sae, device=base.W_dec.device)
    keep[_some_features(base, share, generator)] = 0
    return dataclasses.replace(
        base,
        W_enc=base.W_enc * keep,
        activation=base.activation.map(lambda tensor: tensor * keep),
        W_dec=base.W_dec * keep.unsqueeze(1),
    )


def duplicate_features(sae: SAE, share: float, generator: Generator) -> LinearDecoderSAE:
    """Return ``sae`` with a random ``share`` of its features overwritten by copies of others.

    An original and its copy fire alike and write half each, so the original's contribution stays (except under TopK,
    where both count towards k) and the overwritten feature's is lost.
    """
    base = linear_weights(sae)
    copies = _some_features(base, min(share, 0.5), generator)
    is_copy = torch.zeros(base.d_sae, dtype=torch.bool, device=copies.device)
    is_copy[copies] = True
    originals = (~is_copy).nonzero().flatten()
    originals = originals[torch.randperm(len(originals), generator=generator).to(copies.device)[: len(copies)]]
    source = torch.arange(base.d_sae, device=copies.device)
    source[copies] = originals
    halves = torch.ones(base.d_sae, device=copies.device)
    halves[torch.cat([copies, originals])] = 0.5
    return dataclasses.replace(
        base,
        W_enc=base.W_enc[:, source],
        activation=base.activation.map(lambda tensor: tensor[source]),
        W_dec=base.W_dec[source] * halves.unsqueeze(1),
    )


def drop_encoder_bias(sae: SAE) -> LinearDecoderSAE:
    """Return ``sae`` read without its encoder's biases; thresholds stay."""
    base = linear_weights(sae)
    names = ("b_enc", "b_gate", "b_mag")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in base.activation.tensors().items() if name in names}
    return dataclasses.replace(base, activation=dataclasses.replace(base.activation, **zeros))


def drop_decoder_bias(sae: SAE) -> LinearDecoderSAE:
    """Return ``sae`` read without its decoder's bias, neither subtracted from the input nor added to the output."""
    base = linear_weights(sae)
    return dataclasses.replace(base, b_dec=torch.zeros_like(base.b_dec), pre_bias=torch.zeros_like(base.pre_bias))


def lose_threshold(sae: SAE) -> LinearDecoderSAE:
    """Return ``sae`` read as a plain ReLU: the threshold, the k or the gate is lost.

    A `MeasurementError` for an SAE that is a plain ReLU already.
    """
    base = linear_weights(sae)
    activation = base.activation
    if isinstance(activation, Gated):
        return dataclasses.replace(base, W_enc=base.W_enc * activation.r_mag.exp(), activation=ReLU(activation.b_mag))
    if isinstance(activation, JumpReLU | TopK):
        return dataclasses.replace(base, activation=ReLU(activation.b_enc))
    raise MeasurementError(f"a {sae.info.architecture} SAE has no threshold, k or gate that could be lost")


def nan_weight(sae: SAE, generator: Generator) -> LinearDecoderSAE:
    """Return ``sae`` with one decoder weight, drawn at random, that is NaN."""
    base = linear_weights(sae)
    W_dec = base.W_dec.clone()
    W_dec.view(-1)[int(torch.randint(W_dec.numel(), (1,), generator=generator))] = math.nan
    return dataclasses.replace(base, W_dec=W_dec)


def in_bfloat16(sae: SAE) -> LinearDecoderSAE:
    """Return ``sae`` with its weights rounded to bfloat16 and back: saved in half precision, read in full."""
    return linear_weights(sae).map(lambda tensor: tensor.to(torch.bfloat16).to(tensor.dtype))


def end_to_end_like(sae: SAE, harmless: Tensor, generator: Generator, gain: float = 2.0) -> LinearDecoderSAE:
    """Return ``sae`` with a large error in directions that the model ignores, like SAEs trained on the model's loss.

    Each decoder row gets a random vector in the span of ``harmless`` (n, d_out) of ``gain`` times its norm. Under
    LayerNorm, for one, the vector of ones is such a direction.
    """
    base = linear_weights(sae)
    basis = torch.linalg.qr(harmless.T.double()).Q.T.to(base.W_dec)
    towards = unit_rows(base.d_sae, basis.shape[0], generator).to(base.W_dec) @ basis
    return dataclasses.replace(base, W_dec=base.W_dec + gain * base.W_dec.norm(dim=1, keepdim=True) * towards)


def more_l0(sae: SAE, x: Tensor, factor: float = 2.0) -> LinearDecoderSAE:
    """Return ``sae`` with ``factor`` times as many active features a token on ``x`` (tokens, d_in), within 1%.

    TopK gets a larger k; for others thresholds are lowered, or gates or biases raised, by one amount for all features.
    A `MeasurementError` when the SAE cannot become that dense.
    """
    base = linear_weights(sae)
    activation = base.activation
    if isinstance(activation, TopK):
        k = round(activation.k * factor)
        if k > base.d_sae:
            raise MeasurementError(f"k {activation.k} times {factor} is more than the {base.d_sae} features")
        return dataclasses.replace(base, activation=dataclasses.replace(activation, k=k))
    target = factor * mean_l0(base, x)
    low, high = 0.0, 1e-3
    while mean_l0(_eased(base, high), x) < target:
        low, high = high, 2 * high
        if high > 1e9:
            raise MeasurementError(
                f"L0 {target / factor:.3g} of a {sae.info.architecture} SAE cannot be made {factor} times as large "
                f"by moving its thresholds"
            )
    for _ in range(60):
        middle = (low + high) / 2
        reached = mean_l0(_eased(base, middle), x)
        if abs(reached - target) <= _L0_TOLERANCE * target:
            return _eased(base, middle)
        low, high = (middle, high) if reached < target else (low, middle)
    raise MeasurementError(f"no threshold gives L0 {target:.3g} within 1% on {x.shape[0]} tokens; give more tokens")


DEFECTS: Mapping[str, Defect] = MappingProxyType(
    {
        "decoder_scaled": lambda sae, _: scale_decoder(sae, 0.9),
        "features_scaled": lambda sae, generator: scale_features(
            sae, 0.7 + 0.6 * torch.rand(sae.d_sae, generator=generator)
        ),
        "decoder_rotated": lambda sae, generator: rotate_decoder(sae, 5.0, generator),
        "features_zeroed_5": lambda sae, generator: zero_features(sae, 0.05, generator),
        "features_zeroed_50": lambda sae, generator: zero_features(sae, 0.5, generator),
        "features_duplicated": lambda sae, generator: duplicate_features(sae, 0.05, generator),
        "decoder_permuted": permuted,
        "encoder_bias_dropped": lambda sae, _: drop_encoder_bias(sae),
        "decoder_bias_dropped": lambda sae, _: drop_decoder_bias(sae),
        "threshold_lost": lambda sae, _: lose_threshold(sae),
        "nan_weight": nan_weight,
        "bfloat16": lambda sae, _: in_bfloat16(sae),
    }
)
"Defects of weights alone, by name."

DEFECTS_ON_DATA: Mapping[str, ControlFactory] = MappingProxyType({"l0_doubled": lambda sae, x, _: more_l0(sae, x)})
"Defects whose size is set on activations of the site, by name."


def _some_features(sae: LinearDecoderSAE, share: float, generator: Generator) -> Tensor:
    """Return a random ``share`` of the features that write anything, at least one; indices (n,)."""
    writing = decoder_norms(sae).nonzero().flatten()
    count = max(1, round(share * sae.d_sae))
    chosen = torch.randperm(len(writing), generator=generator)[:count].to(writing.device)
    return writing[chosen]


def _eased(sae: LinearDecoderSAE, delta: float) -> LinearDecoderSAE:
    """Return ``sae`` with every threshold lowered by ``delta``."""
    activation = sae.activation
    if isinstance(activation, JumpReLU):
        lower = dataclasses.replace(activation, threshold=activation.threshold - delta)
        return dataclasses.replace(sae, activation=lower)
    return dataclasses.replace(sae, activation=activation.shift(torch.full_like(sae.W_enc[0], delta)))
