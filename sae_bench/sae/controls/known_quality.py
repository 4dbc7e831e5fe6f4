"""Controls: SAEs of known quality, which calibrate the scale of a metric.

`identity` must be perfect, `constant` is the worst case, `pca` is a dense basis of the same L0, `random_like` and
`permuted` are dictionaries without meaning. Every function returns a new SAE and leaves its argument as it is; random
ones take a generator. The last two change weights, so they need an SAE made of tensors
(`LinearDecoderSAE`); any other is a `MeasurementError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias, cast

import torch
from torch import Generator, Tensor

from sae_bench.errors import MeasurementError, UsageError
from sae_bench.registry.extensions import Extensions
from sae_bench.sae import SAE, LinearDecoderSAE, ReLU, SAEInfo
from sae_bench.sae.controls.linear_weights import linear_weights, mean_l0, unit_rows

ControlFactory: TypeAlias = Callable[[SAE, Tensor, Generator], LinearDecoderSAE]
"Creates an SAE from another one and activations that this one reads, (tokens, d_in)."

_NO_VARIANCE = 1e-9
"Directions of the input with less variance than this share of the largest are excluded from a regression."


def identity(d: int, site: str | None = None) -> LinearDecoderSAE:
    """Build the identity: two features per dimension, one for either sign; exact reconstruction with L0 = d."""
    eye = torch.eye(d)
    return _two_sided("identity", eye, eye, torch.zeros(d), torch.zeros(d), (site, site))


def pca(x: Tensor, k: int, site: str | None = None) -> LinearDecoderSAE:
    """Build an SAE of the k leading principal components of ``x`` (tokens, d), two features each: L0 = k of 2k.

    It is the best linear reconstruction with k numbers a token; compared with an SAE of L0 = k it shows the effect of
    sparsity.
    """
    tokens, d = x.shape
    if not 1 <= k <= min(tokens - 1, d):
        most = min(tokens - 1, d)
        raise MeasurementError(f"{tokens} tokens of width {d} have no {k} principal components; take 1 to {most}")
    mean = x.double().mean(0)
    centred = x.double() - mean
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1).T[:k].float()
    return _two_sided("pca", components, components, mean.float(), mean.float(), (site, site))


def reduced_rank(
    read: Tensor, written: Tensor, k: int, sites: tuple[str | None, str | None] = (None, None)
) -> LinearDecoderSAE:
    """Build the best linear map with k numbers a token from ``read`` (tokens, d_in) to ``written`` (tokens, d_out).

    It equals `pca` where both are the same: L0 = k of 2k. Reduced-rank regression (Izenman 1975): the least-squares
    map, projected to the k principal directions of what it predicts.
    """
    (tokens, d_in), d_out = read.shape, written.shape[1]
    most = min(tokens - 1, d_in, d_out)
    if not 1 <= k <= most:
        raise MeasurementError(
            f"{tokens} tokens of widths {d_in} and {d_out} have no map of rank {k}; take 1 to {most}"
        )
    means = read.double().mean(0), written.double().mean(0)
    x, y = read.double() - means[0], written.double() - means[1]
    fitted = torch.linalg.pinv(x.T @ x, rtol=_NO_VARIANCE, hermitian=True) @ (x.T @ y)  # (d_in, d_out)
    predicted = x @ fitted
    out = torch.linalg.eigh(predicted.T @ predicted).eigenvectors.flip(1).T[:k]  # (k, d_out)
    into = out @ fitted.T  # (k, d_in)
    return _two_sided("pca", into.float(), out.float(), means[0].float(), means[1].float(), sites)


def constant(value: Tensor, site: str | None = None) -> LinearDecoderSAE:
    """Build an SAE of one feature that never fires and decodes to ``value`` (d,).

    With zeros this is zero ablation, with the site's mean it is mean ablation.
    """
    d = value.shape[0]
    return LinearDecoderSAE(
        info=_info("constant", d, 1, (site, site)),
        W_enc=value.new_zeros(d, 1, dtype=torch.float32),
        activation=ReLU(value.new_zeros(1, dtype=torch.float32)),
        W_dec=value.new_zeros(1, d, dtype=torch.float32),
        b_dec=value.float(),
        pre_bias=value.new_zeros(d, dtype=torch.float32),
    )


def random_like(sae: SAE, generator: Generator) -> LinearDecoderSAE:
    """Return ``sae`` with random directions; a decoder row and its encoder column keep their norms.

    They share one direction, unless a transcoder reads and writes different widths.
    """
    base = linear_weights(sae)
    out = unit_rows(base.d_sae, base.d_out, generator).to(base.W_dec)
    into = out if base.d_in == base.d_out else unit_rows(base.d_sae, base.d_in, generator).to(base.W_enc)
    return dataclasses.replace(
        base,
        W_enc=into.T * base.W_enc.norm(dim=0),
        W_dec=out * base.W_dec.norm(dim=1, keepdim=True),
    )


def permuted(sae: SAE, generator: Generator) -> LinearDecoderSAE:
    """Return ``sae`` with its decoder rows permuted against its encoder, without a fixed point."""
    base = linear_weights(sae)
    # A cycle through a random order moves every row; a plain permutation leaves about one where it was.
    order = torch.randperm(base.d_sae, generator=generator).to(base.W_dec.device)
    rows = torch.empty_like(order)
    rows[order] = order.roll(1)
    return dataclasses.replace(base, W_dec=base.W_dec[rows])


CONTROLS: Mapping[str, ControlFactory] = MappingProxyType(
    {
        "identity": lambda sae, _, __: identity(sae.d_out, sae.info.site_out),
        "pca": lambda sae, x, _: pca(x, _rank(sae, x), sae.info.site_out),
        "random": lambda sae, _, generator: random_like(sae, generator),
        "permuted": lambda sae, _, generator: permuted(sae, generator),
    }
)
"Controls by name; ``--sae-controls`` measures them for every chosen SAE."

AT_THE_OUTPUT = ("identity",)
"Controls that read the site that a transcoder writes, because only there is a perfect reconstruction possible."


def _checked(name: str, control: object) -> ControlFactory:
    if not callable(control):
        raise UsageError(
            f"control {name!r} is a {type(control).__name__}; register a function of (sae, x, generator) instead"
        )
    return cast(ControlFactory, control)


EXTENSIONS: Extensions[ControlFactory] = Extensions("control", lambda: CONTROLS, _checked)
"Controls of other packages and of this run's ``conftest.py``."


def register_control(name: str, make: ControlFactory) -> None:
    """Add a control; call it in ``conftest.py``.

    ``make(sae, x, generator)`` returns an SAE of known quality from the measured SAE and activations that it reads
    (tokens, d_in). A package names its function in an entry point of the group ``sae_bench.controls``
    instead.

    Raises:
        UsageError: the name is taken.
    """
    EXTENSIONS.register(name, make)


def control_names() -> tuple[str, ...]:
    """Return names of all controls, this package's first."""
    return (*CONTROLS, *EXTENSIONS.names())


def load_control(name: str) -> ControlFactory:
    """Return the control called ``name``, which must be in `control_names`."""
    return CONTROLS[name] if name in CONTROLS else EXTENSIONS.load(name)


def make_control(name: str, sae: SAE, read: Tensor, written: Tensor, generator: Generator) -> LinearDecoderSAE:
    """Build the control called ``name`` of ``sae``, on the device of ``read``.

    Args:
        name: one of `control_names`.
        sae: the measured SAE.
        read: activations that the SAE reads, (tokens, d_in).
        written: activations that it reconstructs, (tokens, d_out); the same tensor unless it is a transcoder.
        generator: source of random numbers.
    """
    if name == "pca" and written is not read:
        return reduced_rank(read, written, _rank(sae, read), (sae.info.site_in, sae.info.site_out))
    return load_control(name)(sae, read, generator).to(read.device)


def _rank(sae: SAE, x: Tensor) -> int:
    """Return the rank that equals the mean number of active features of ``sae`` on ``x`` (tokens, d_in)."""
    return max(1, min(round(mean_l0(sae, x)), sae.d_in, sae.d_out))


def _two_sided(
    name: str, into: Tensor, out: Tensor, mean_in: Tensor, mean_out: Tensor, sites: tuple[str | None, str | None]
) -> LinearDecoderSAE:
    """Build two features, one for either sign, of each row of ``into`` (k, d_in), written as ``out`` (k, d_out)."""
    return LinearDecoderSAE(
        info=_info(name, into.shape[1], 2 * len(into), sites),
        W_enc=torch.cat([into, -into]).T.contiguous(),
        activation=ReLU(into.new_zeros(2 * len(into))),
        W_dec=torch.cat([out, -out]),
        b_dec=mean_out,
        pre_bias=mean_in,
    )


def _info(name: str, d_in: int, d_sae: int, sites: tuple[str | None, str | None]) -> SAEInfo:
    return SAEInfo("control", name, d_in, d_sae, site_in=sites[0], site_out=sites[1])
