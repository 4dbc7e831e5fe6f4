"""Noise floors: replacements of the activation that are as large as the SAE's error, and ablations.

A floor is one function ``f(x, error, pool, draw) -> x'`` on a batch, with ``error = xhat - x``, under the decorator
`register_noise_floor`. The property ``kl_gap`` measures every registered floor and declares its metrics. A noise floor
moves every token by exactly its own error norm, whatever the direction; the two theta floors keep the cosine of x and
xhat instead. Where the error is zero the result is x. Formulas: Gurnee 2024 (isotropic, theta, corrected norms), Lee
and Heimersheim 2410.12555 (covariance and real differences); shuffled and reflected errors keep the error's own
directions.

Functions import torch when they are called, because listing metrics must not import it.

Shapes: b documents, p positions, d site width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from sae_bench.errors import MeasurementError, UsageError
from sae_bench.registry.extensions import Extensions

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.noise_pool import NoisePool, SeededDraws

FloorFunction: TypeAlias = "Callable[[Tensor, Tensor, NoisePool, SeededDraws], Tensor]"
F = TypeVar("F", bound=Callable[..., object])

_ATTRIBUTE = "sae_bench_noise_floor"
"Set on a registered function: its `NoiseFloor`, which an entry point that names the function needs."
_ROUNDS = 128
"Draws of a pair of activations before it is concluded that the corpus holds no two different ones."


@dataclass(frozen=True)
class NoiseFloor:
    """A registered noise floor."""

    name: str
    replacement: FloorFunction
    meaning: str
    'The replacement in words, a noun phrase that follows "KL with".'
    draws: bool
    "True when it uses random numbers: its metrics are averaged over several draws a token."
    ratio: bool = False
    "True when kl_gap also reports KL of the reconstruction over KL of this floor."
    ablation: bool = False
    "True when it depends on the site alone, so that all SAEs of a site share one measurement."
    version: int = 1
    "Raised whenever the formula changes; reports of another version are not compared."


_BUILT_IN: dict[str, NoiseFloor] = {}


def _checked(name: str, registered: object) -> NoiseFloor:
    floor = registered if isinstance(registered, NoiseFloor) else getattr(registered, _ATTRIBUTE, None)
    if isinstance(floor, NoiseFloor) and floor.name == name:
        return floor
    raise UsageError(
        f"noise floor {name!r} is a {type(registered).__name__}, not a function of that name under "
        f"@register_noise_floor(draws=..., meaning=...)"
    )


EXTENSIONS: Extensions[NoiseFloor] = Extensions("noise floor", lambda: _BUILT_IN, _checked)
"Noise floors of other packages and of this run's ``conftest.py``."


def register_noise_floor(
    *, draws: bool, meaning: str, ratio: bool = False, ablation: bool = False, version: int = 1
) -> Callable[[F], F]:
    """Register the decorated function as a noise floor of its name; kl_gap measures it in every tier.

    Args:
        draws: whether it takes random numbers from its argument ``draw``.
        meaning: the replacement in words, a noun phrase that follows "KL with".
        ratio: also report ``ratio_<name>``, KL of the reconstruction over KL of this floor.
        ablation: it depends on the site alone, neither on the SAE nor on random numbers; also report ``ce_<name>``.
        version: raise it whenever the formula changes.

    Raises:
        UsageError: the name is taken, or an ablation draws.
    """

    def register(function: F) -> F:
        name = function.__name__
        if draws and ablation:
            raise UsageError(
                f"noise floor {name!r} is an ablation, which all SAEs of a site share, and cannot draw random numbers; "
                f"leave out draws=True or ablation=True"
            )
        floor = NoiseFloor(name, function, meaning, draws, ratio, ablation, version)  # type: ignore[arg-type]
        setattr(function, _ATTRIBUTE, floor)
        if function.__module__ == __name__:
            _BUILT_IN[name] = floor
        elif not EXTENSIONS.names_module(name, function.__module__):
            EXTENSIONS.register(name, floor)
        return function

    return register


def noise_floors() -> tuple[NoiseFloor, ...]:
    """Return every registered floor: the built-in ones in the order of this file, then others by name."""
    return (*_BUILT_IN.values(), *added_floors())


def added_floors() -> tuple[NoiseFloor, ...]:
    """Return the noise floors of other packages and of this run's ``conftest.py``, by name."""
    return tuple(EXTENSIONS.load(name) for name in EXTENSIONS.names())


def move(x: Tensor, error: Tensor, direction: Tensor) -> Tensor:
    """Return ``x + |error| direction/|direction|``, moved by the error's own norm; x where either vector is 0."""
    unit = _quotient(direction, _norm(direction))
    return x + _norm(error) * unit


@register_noise_floor(draws=True, ratio=True, meaning="noise of the error's norm in any direction")
def isotropic(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """Return ``x + |error| g/|g|``, g standard normal."""
    return move(x, error, _like(x, draw.normal(x.shape[-1])))


@register_noise_floor(draws=True, meaning="noise with the reconstruction's norm and its cosine to x")
def theta_sae_norm(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """Return a vector with the norm of xhat and the cosine of (x, xhat), the direction across x at random."""
    import torch

    turned, _ = _theta(x, error, draw)
    return torch.where(_norm(error) > 0, turned, x)


@register_noise_floor(draws=True, meaning="noise with the norm of x and the reconstruction's cosine to x")
def theta_true_norm(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """Return a vector with the norm of x and the cosine of (x, xhat), the direction across x at random."""
    import torch

    turned, xhat = _theta(x, error, draw)
    return torch.where(_norm(error) > 0, turned * _quotient(_norm(x), _norm(xhat)), x)


@register_noise_floor(draws=True, ratio=True, meaning="noise of the error's norm with the activations' covariance")
def covariance(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """Return ``x + |error| v/|v|``, v normal with the site's covariance: a difference of two such draws has no mean."""
    return move(x, error, _like(x, draw.normal(x.shape[-1])) @ pool.root.to(x).T)


@register_noise_floor(draws=True, ratio=True, meaning="a difference of two real activations, at the error's norm")
def real_difference(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """Return ``x + |error| v/|v|``, v the difference of two activations of the pool; equal ones are drawn again."""
    import torch

    inside = draw.inside[..., None]
    difference = torch.zeros(*x.shape)
    for _ in range(_ROUNDS):
        # Every token draws in every round, so that what one document needs never moves another's numbers.
        index = draw.integers(pool.size, 2)
        candidate = pool.x_rows(index[..., 0]) - pool.x_rows(index[..., 1])
        difference = torch.where(_norm(difference) > 0, difference, candidate)
        if bool(((_norm(difference) > 0) | ~inside).all()):
            return move(x, error, _like(x, difference))
    raise MeasurementError(
        "the corpus holds hardly any activations that differ, so there is no difference to draw; use more texts"
    )


@register_noise_floor(draws=True, ratio=True, meaning="another token's error, at the error's norm")
def shuffled_error(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """Return ``x + |error| v/|v|``, v the error of another token, drawn from the pool's errors that are not zero."""
    if not bool((error != 0).any()):
        return x.clone()
    members = pool.nonzero_errors
    if len(members) == 0:
        raise MeasurementError("no error of the corpus differs from zero, so there is none to shuffle")
    chosen = members[draw.integers(len(members), 1)[..., 0]]
    return move(x, error, _like(x, pool.error_pool[chosen]))


@register_noise_floor(draws=False, meaning="the error with its sign turned")
def reflected_error(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws | None = None) -> Tensor:
    """Return ``x - error``: the same line, the other way."""
    return x - error


@register_noise_floor(draws=False, meaning="the reconstruction at the norm of x")
def norm_corrected(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws | None = None) -> Tensor:
    """Return ``xhat |x|/|xhat|``: the reconstruction's direction with the activation's norm."""
    xhat = x + error
    return xhat * _quotient(_norm(x), _norm(xhat))


@register_noise_floor(draws=False, meaning="x at the norm of the reconstruction")
def sae_norm(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws | None = None) -> Tensor:
    """Return ``x |xhat|/|x|``: the activation's direction with the reconstruction's norm."""
    return x * _quotient(_norm(x + error), _norm(x))


@register_noise_floor(draws=False, ablation=True, meaning="the site's mean")
def mean_ablation(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws | None = None) -> Tensor:
    """Return the mean activation over the kept positions of the corpus."""
    return pool.mean.to(x).expand_as(x)


@register_noise_floor(draws=False, ablation=True, meaning="zero")
def zero_ablation(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws | None = None) -> Tensor:
    """Return zeros."""
    import torch

    return torch.zeros_like(x)


def _norm(vectors: Tensor) -> Tensor:
    import torch

    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norms


def _like(x: Tensor, drawn: Tensor) -> Tensor:
    """Send a tensor drawn on the CPU to the device of ``x``, in its precision."""
    from sae_bench.engine.devices import send

    return send(drawn, x.device).to(x.dtype)


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; 0 where the denominator is 0."""
    import torch

    return torch.where(denominator > 0, numerator / denominator.clamp_min(torch.finfo(denominator.dtype).tiny), 0.0)


def _theta(x: Tensor, error: Tensor, draw: SeededDraws) -> tuple[Tensor, Tensor]:
    """Return a vector with xhat's norm and xhat's cosine with x, its other part at random; and xhat."""
    xhat = x + error
    unit = _quotient(x, _norm(x))
    along = (xhat * unit).sum(-1, keepdim=True) * unit
    noise = _like(x, draw.normal(x.shape[-1]))
    # Twice, because one projection leaves rounding that is as large as the part across when the error is small.
    for _ in range(2):
        noise = noise - (noise * unit).sum(-1, keepdim=True) * unit
    return along + _norm(xhat - along) * _quotient(noise, _norm(noise)), xhat
