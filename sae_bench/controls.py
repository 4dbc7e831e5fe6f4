"""SAEs of known quality, and sound SAEs with one planted defect.

Controls calibrate a metric's scale: `identity` must be perfect, `constant` is the bad end, `pca` is what a dense basis
of the same activity achieves, `random_like` and `permuted` are dictionaries without meaning. Defects are what goes
wrong in practice; `DEFECTS` and `DEFECTS_ON_DATA` hold them by name, to run a matrix of defects and properties.

Every function returns a new SAE and leaves the given one as it is. What is random takes a generator. Defects change
weights, so they need an SAE made of tensors (`LinearDecoderSAE`); any other is a `MeasurementError`. The `info` of a
damaged SAE is the sound one's: a gate that compares the two must see the damage in the numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias, cast

import torch
from torch import Generator, Tensor

from sae_bench.errors import MeasurementError, UsageError
from sae_bench.extensions import Extensions
from sae_bench.sae import SAE, Gated, JumpReLU, LinearDecoderSAE, ReLU, SAEInfo, TopK, decoder_norms

Defect: TypeAlias = Callable[[SAE, Generator], LinearDecoderSAE]
DataDefect: TypeAlias = Callable[[SAE, Tensor, Generator], LinearDecoderSAE]
"Also given activations of the SAE's site, (tokens, d_in)."

_L0_TOLERANCE = 0.01


def identity(d: int, site: str | None = None) -> LinearDecoderSAE:
    """Two features per dimension, one for either sign: reconstructs (..., d) to the last bit with L0 = d."""
    eye = torch.eye(d)
    return _signed("identity", eye, torch.zeros(d), site)


def pca(x: Tensor, k: int, site: str | None = None) -> LinearDecoderSAE:
    """The k leading principal components of ``x`` (tokens, d), a feature for either sign of each: L0 = k of 2k.

    The best linear reconstruction with k numbers a token; beside an SAE of L0 = k it says what sparsity bought.
    """
    tokens, d = x.shape
    if not 1 <= k <= min(tokens - 1, d):
        most = min(tokens - 1, d)
        raise MeasurementError(f"{tokens} tokens of width {d} have no {k} principal components; take 1 to {most}")
    mean = x.double().mean(0)
    centred = x.double() - mean
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1).T[:k]
    return _signed("pca", components.float(), mean.float(), site)


def constant(value: Tensor, site: str | None = None) -> LinearDecoderSAE:
    """One feature that never fires; decodes everything to ``value`` (d,).

    With zeros this is zero ablation, with the site's mean it is mean ablation.
    """
    d = value.shape[0]
    nothing = torch.zeros(1)
    return LinearDecoderSAE(
        info=_info("constant", d, 1, site),
        W_enc=torch.zeros(d, 1),
        activation=ReLU(nothing),
        W_dec=torch.zeros(1, d),
        b_dec=value.float(),
        pre_bias=torch.zeros(d),
    )


def random_like(sae: SAE, generator: Generator) -> LinearDecoderSAE:
    """``sae`` with random directions: a decoder row and its encoder column keep their norms and share one direction."""
    base = _weights(sae)
    directions = _unit_rows(base.d_sae, base.d_out, generator).to(base.W_dec)
    return dataclasses.replace(
        base,
        W_enc=directions.T * base.W_enc.norm(dim=0),
        W_dec=directions * base.W_dec.norm(dim=1, keepdim=True),
    )


def permuted(sae: SAE, generator: Generator) -> LinearDecoderSAE:
    """``sae`` with its decoder rows permuted against its encoder, none of them left in its place."""
    base = _weights(sae)
    # A cycle through a random order moves every row; a plain permutation leaves about one where it was.
    order = torch.randperm(base.d_sae, generator=generator).to(base.W_dec.device)
    rows = torch.empty_like(order)
    rows[order] = order.roll(1)
    return dataclasses.replace(base, W_dec=base.W_dec[rows])


def scale_decoder(sae: SAE, factor: float) -> LinearDecoderSAE:
    """``sae`` with every decoder row times ``factor``; `b_dec` stays."""
    base = _weights(sae)
    return dataclasses.replace(base, W_dec=base.W_dec * factor)


def scale_features(sae: SAE, factors: Tensor) -> LinearDecoderSAE:
    """``sae`` with decoder row i times ``factors[i]``, (d_sae,)."""
    base = _weights(sae)
    return dataclasses.replace(base, W_dec=base.W_dec * factors.to(base.W_dec).unsqueeze(1))


def rotate_decoder(sae: SAE, degrees: float, generator: Generator) -> LinearDecoderSAE:
    """``sae`` with every decoder row turned by exactly ``degrees`` towards a random direction of its own."""
    base = _weights(sae)
    norms = base.W_dec.norm(dim=1, keepdim=True)
    along = torch.nn.functional.normalize(base.W_dec, dim=1)
    across = _unit_rows(base.d_sae, base.d_out, generator).to(base.W_dec)
    across = torch.nn.functional.normalize(across - (across * along).sum(1, keepdim=True) * along, dim=1)
    angle = math.radians(degrees)
    return dataclasses.replace(base, W_dec=norms * (math.cos(angle) * along + math.sin(angle) * across))


def zero_features(sae: SAE, share: float, generator: Generator) -> LinearDecoderSAE:
    """``sae`` with a random ``share`` of its features dead: they neither fire nor write."""
    base = _weights(sae)
    keep = torch.ones(base.d_sae, device=base.W_dec.device)
    keep[_some_features(base, share, generator)] = 0
    return dataclasses.replace(
        base,
        W_enc=base.W_enc * keep,
        activation=base.activation.map(lambda tensor: tensor * keep),
        W_dec=base.W_dec * keep.unsqueeze(1),
    )


def duplicate_features(sae: SAE, share: float, generator: Generator) -> LinearDecoderSAE:
    """``sae`` with a random ``share`` of its features overwritten by copies of others.

    An original and its copy fire alike and write half each, so the original's contribution is kept (except under TopK,
    where both take a place) and the overwritten feature's is lost.
    """
    base = _weights(sae)
    copies = _some_features(base, min(share, 0.5), generator)
    others = torch.ones(base.d_sae, dtype=torch.bool, device=copies.device)
    others[copies] = False
    originals = others.nonzero().flatten()
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
    """``sae`` read without its encoder's biases; thresholds stay."""
    base = _weights(sae)
    names = ("b_enc", "b_gate", "b_mag")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in base.activation.tensors().items() if name in names}
    return dataclasses.replace(base, activation=dataclasses.replace(base.activation, **zeros))


def drop_decoder_bias(sae: SAE) -> LinearDecoderSAE:
    """``sae`` read without its decoder's bias, neither subtracted from the input nor added to the output."""
    base = _weights(sae)
    return dataclasses.replace(base, b_dec=torch.zeros_like(base.b_dec), pre_bias=torch.zeros_like(base.pre_bias))


def lose_threshold(sae: SAE) -> LinearDecoderSAE:
    """``sae`` read as a plain ReLU: the threshold, the k or the gate is lost.

    A `MeasurementError` for an SAE that is a plain ReLU already.
    """
    base = _weights(sae)
    activation = base.activation
    if isinstance(activation, Gated):
        return dataclasses.replace(base, W_enc=base.W_enc * activation.r_mag.exp(), activation=ReLU(activation.b_mag))
    if isinstance(activation, JumpReLU | TopK):
        return dataclasses.replace(base, activation=ReLU(activation.b_enc))
    raise MeasurementError(f"a {sae.info.architecture} SAE has no threshold, k or gate that could be lost")


def nan_weight(sae: SAE, generator: Generator) -> LinearDecoderSAE:
    """``sae`` with one decoder weight, drawn at random, that is NaN."""
    base = _weights(sae)
    W_dec = base.W_dec.clone()
    W_dec.view(-1)[int(torch.randint(W_dec.numel(), (1,), generator=generator))] = math.nan
    return dataclasses.replace(base, W_dec=W_dec)


def in_bfloat16(sae: SAE) -> LinearDecoderSAE:
    """``sae`` with its weights rounded to bfloat16 and kept in their own precision: saved in half, read in full."""
    return _weights(sae).map(lambda tensor: tensor.to(torch.bfloat16).to(tensor.dtype))


def end_to_end_like(sae: SAE, harmless: Tensor, generator: Generator, gain: float = 2.0) -> LinearDecoderSAE:
    """``sae`` with a large error in directions the model does not read, as SAEs trained on the model's loss have.

    Each decoder row gets a random vector in the span of ``harmless`` (n, d_out) of ``gain`` times its norm. Under
    LayerNorm, for one, the vector of ones is such a direction.
    """
    base = _weights(sae)
    basis = torch.linalg.qr(harmless.T.double()).Q.T.to(base.W_dec)
    towards = _unit_rows(base.d_sae, basis.shape[0], generator).to(base.W_dec) @ basis
    return dataclasses.replace(base, W_dec=base.W_dec + gain * base.W_dec.norm(dim=1, keepdim=True) * towards)


def more_l0(sae: SAE, x: Tensor, factor: float = 2.0) -> LinearDecoderSAE:
    """``sae`` with ``factor`` times as many active features a token on ``x`` (tokens, d_in), within 1%.

    TopK gets a larger k; elsewhere thresholds are lowered, or gates or biases raised, by one amount for all features. A
    `MeasurementError` when the SAE cannot become that dense.
    """
    base = _weights(sae)
    activation = base.activation
    if isinstance(activation, TopK):
        k = round(activation.k * factor)
        if k > base.d_sae:
            raise MeasurementError(f"k {activation.k} times {factor} is more than the {base.d_sae} features")
        return dataclasses.replace(base, activation=dataclasses.replace(activation, k=k))
    target = factor * _l0(base, x)
    low, high = 0.0, 1e-3
    while _l0(_eased(base, high), x) < target:
        low, high = high, 2 * high
        if high > 1e9:
            raise MeasurementError(
                f"L0 {target / factor:.3g} of a {sae.info.architecture} SAE cannot be made {factor} times as large "
                f"by moving its thresholds"
            )
    for _ in range(60):
        middle = (low + high) / 2
        reached = _l0(_eased(base, middle), x)
        if abs(reached - target) <= _L0_TOLERANCE * target:
            return _eased(base, middle)
        low, high = (middle, high) if reached < target else (low, middle)
    raise MeasurementError(f"no threshold gives L0 {target:.3g} within 1% on {x.shape[0]} tokens; give more tokens")


CONTROLS: Mapping[str, DataDefect] = MappingProxyType(
    {
        "identity": lambda sae, _, __: identity(_one_width(sae), sae.info.site_out),
        "pca": lambda sae, x, _: pca(x, max(1, min(round(_l0(sae, x)), _one_width(sae))), sae.info.site_out),
        "random": lambda sae, _, generator: random_like(sae, generator),
        "permuted": lambda sae, _, generator: permuted(sae, generator),
    }
)
"What a property is read beside, by name; ``--sae-controls`` measures them beside every chosen SAE."


def _checked(name: str, found: object) -> DataDefect:
    if not callable(found):
        raise UsageError(f"control {name!r} is a {type(found).__name__}; it must be a function of (sae, x, generator)")
    return cast(DataDefect, found)


EXTENSIONS: Extensions[DataDefect] = Extensions("control", lambda: CONTROLS, _checked)
"Controls of other packages and of this run's ``conftest.py``."


def register_control(name: str, make: DataDefect) -> None:
    """Add a control; call it in ``conftest.py``.

    ``make(sae, x, generator)`` returns an SAE of known quality, given the SAE it stands beside and activations of its
    site (tokens, d_in). A package names its function in an entry point of the group ``sae_bench.controls`` instead.

    Raises:
        UsageError: the name is taken.
    """
    EXTENSIONS.register(name, make)


def control_names() -> tuple[str, ...]:
    """Names of all controls, this package's first."""
    return (*CONTROLS, *EXTENSIONS.names())


def load_control(name: str) -> DataDefect:
    """The control called ``name``, which must be in `control_names`."""
    return CONTROLS[name] if name in CONTROLS else EXTENSIONS.load(name)


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

DEFECTS_ON_DATA: Mapping[str, DataDefect] = MappingProxyType({"l0_doubled": lambda sae, x, _: more_l0(sae, x)})
"Defects whose size is set on activations of the site, by name."


def _weights(sae: SAE) -> LinearDecoderSAE:
    if isinstance(sae, LinearDecoderSAE):
        return sae
    raise MeasurementError(
        f"a {sae.info.architecture} SAE of format {sae.info.format} gives no access to its weights, "
        f"so no control can be made from it; read it from files"
    )


def _signed(name: str, components: Tensor, offset: Tensor, site: str | None) -> LinearDecoderSAE:
    """Features for either sign of the orthonormal ``components`` (k, d), after subtracting ``offset`` (d,)."""
    k, d = components.shape
    both = torch.cat([components, -components])
    return LinearDecoderSAE(
        info=_info(name, d, 2 * k, site),
        W_enc=both.T.contiguous(),
        activation=ReLU(torch.zeros(2 * k)),
        W_dec=both,
        b_dec=offset,
        pre_bias=offset,
    )


def _one_width(sae: SAE) -> int:
    if sae.d_in == sae.d_out:
        return sae.d_in
    raise MeasurementError(
        f"an SAE that reads {sae.d_in} numbers and writes {sae.d_out} has no identity or PCA to be read beside; "
        f"leave out --sae-controls for it"
    )


def _info(name: str, d: int, d_sae: int, site: str | None) -> SAEInfo:
    return SAEInfo(format="control", architecture=name, d_in=d, d_sae=d_sae, site_in=site, site_out=site)


def _unit_rows(rows: int, columns: int, generator: Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator), dim=1)


def _some_features(sae: LinearDecoderSAE, share: float, generator: Generator) -> Tensor:
    """A random ``share`` of the features that write anything, at least one; indices (n,)."""
    writing = decoder_norms(sae).nonzero().flatten()
    count = max(1, round(share * sae.d_sae))
    chosen = torch.randperm(len(writing), generator=generator)[:count].to(writing.device)
    return writing[chosen]


def _eased(sae: LinearDecoderSAE, delta: float) -> LinearDecoderSAE:
    """``sae`` firing wherever a pre-activation misses its threshold by less than ``delta``."""
    activation = sae.activation
    if isinstance(activation, JumpReLU):
        lower = dataclasses.replace(activation, threshold=activation.threshold - delta)
        return dataclasses.replace(sae, activation=lower)
    return dataclasses.replace(sae, activation=activation.shift(torch.full_like(sae.W_enc[0], delta)))


def _l0(sae: SAE, x: Tensor) -> float:
    return float((sae.encode(x) != 0).sum(-1).double().mean())
