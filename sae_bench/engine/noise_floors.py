"""Noise floors: what else of the error's size could stand in the activation's place.

Every floor is ``f(x, error, pool, draw) -> x'`` on a batch, with ``error = xhat - x``. A noise arm moves every token
by exactly its own error norm, whatever the direction; the two theta arms keep the cosine of x and xhat instead. Where
the error is zero the result is x. Formulas: Gurnee 2024 (isotropic, theta, corrected norms), Lee and Heimersheim
2410.12555 (covariance and real differences); shuffled and reflected errors keep the error's own directions.

Shapes: b documents, p positions, d site width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from sae_bench.engine.devices import send
from sae_bench.errors import MeasurementError

_ROUNDS = 128
_MANY = 1 << 18
"Normal numbers that take longer to draw than threads to start."


@dataclass(frozen=True, eq=False)
class NoisePool:
    """What noise arms draw from, over the kept positions of the whole corpus in document order."""

    mean: Tensor
    "(d,) float64"
    covariance: Tensor
    "(d, d) float64"
    rows: Tensor
    "(all positions, d) activations, possibly memory-mapped; only rows named by `kept` are drawn."
    kept: Tensor
    "int64 (N,), rows of the kept positions."
    errors: Callable[[], Tensor]
    "Computes (N, d) ``xhat - x`` at the kept positions, when an arm first asks for it."

    @property
    def size(self) -> int:
        """Kept positions, N."""
        return self.kept.shape[0]

    def x_rows(self, index: Tensor) -> Tensor:
        """Activations of pool members ``index`` (...), as (..., d)."""
        members: Tensor = self.rows[self.kept[index.flatten()]]
        return members.view(*index.shape, -1)

    @cached_property
    def error_pool(self) -> Tensor:
        """(N, d) errors of the SAE over the whole corpus."""
        return self.errors()

    @cached_property
    def nonzero_errors(self) -> Tensor:
        """int64, members of `error_pool` that are not zero."""
        return torch.cat([part.any(-1) for part in torch.split(self.error_pool, 4096)]).nonzero().flatten()

    @cached_property
    def root(self) -> Tensor:
        """(d, d) float32 lower triangular L with L L' = covariance.

        Covariances are singular where weights were centred or the site is low-rank: the diagonal is raised until the
        factor exists, by a share of the mean variance between 1e-10 and 1e-4 that no direction of the data notices.
        """
        scale = self.covariance.diagonal().mean()
        if not torch.isfinite(scale) or scale <= 0:
            raise MeasurementError("the site's activations do not vary over the corpus: there is no covariance floor")
        for power in range(-10, -3):
            raised = self.covariance + 10.0**power * scale * torch.eye(len(self.mean), dtype=torch.float64)
            factor, failed = torch.linalg.cholesky_ex(raised)
            if int(failed) == 0:
                root: Tensor = factor.float()
                return root
        raise MeasurementError("the covariance of the site's activations is not positive: there is no covariance floor")


class SeededDraws:
    """Random numbers that belong to (seed, document, arm, draw) and to nothing else.

    Batches, their order and padding leave them untouched, and every SAE of a corpus meets the same ones.
    """

    def __init__(
        self, seed: int, documents: tuple[int, ...], lengths: tuple[int, ...], condition: str, draw_index: int
    ) -> None:
        self.documents = documents
        self.lengths = lengths
        self._generators = [_generator(seed, document, condition, draw_index) for document in documents]

    @property
    def inside(self) -> Tensor:
        """bool (b, p), true up to each document's end."""
        return torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]

    def normal(self, width: int) -> Tensor:
        """(b, p, width) standard normal, 0 behind a document's end."""
        out = torch.empty(len(self.documents), max(self.lengths), width)

        def fill(row: Tensor, length: int, generator: torch.Generator) -> None:
            row[:length].normal_(generator=generator)
            row[length:] = 0

        each = (out, self.lengths, self._generators)
        if out.numel() < _MANY:
            list(map(fill, *each))
            return out
        # A generator draws with one core, and what a document draws is its own.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(fill, *each))
        return out

    def integers(self, high: int, count: int) -> Tensor:
        """int64 (b, p, count) uniform below ``high``, 0 behind a document's end."""
        out = torch.zeros(len(self.documents), max(self.lengths), count, dtype=torch.int64)
        for row, length, generator in zip(out, self.lengths, self._generators, strict=True):
            row[:length] = torch.randint(high, (length, count), generator=generator)
        return out


Floor: TypeAlias = Callable[[Tensor, Tensor, NoisePool, SeededDraws], Tensor]


def _generator(seed: int, document: int, condition: str, draw_index: int) -> torch.Generator:
    key = hashlib.sha256(f"{seed}/{document}/{condition}/{draw_index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))


def _norm(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norms


def _on(x: Tensor, drawn: Tensor) -> Tensor:
    """What was drawn on the CPU, where ``x`` is and in its precision."""
    return send(drawn, x.device).to(x.dtype)


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 where the denominator is 0."""
    return torch.where(denominator > 0, numerator / denominator.clamp_min(torch.finfo(denominator.dtype).tiny), 0.0)


def move(x: Tensor, error: Tensor, direction: Tensor) -> Tensor:
    """``x + |error| direction/|direction|``: moved by the error's own norm; x where either vector is 0."""
    unit = _over(direction, _norm(direction))
    return x + _norm(error) * unit


def isotropic(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """``x + |error| g/|g|``, g standard normal."""
    return move(x, error, _on(x, draw.normal(x.shape[-1])))


def covariance(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """``x + |error| v/|v|``, v normal with the site's covariance: a difference of two such draws has no mean."""
    return move(x, error, _on(x, draw.normal(x.shape[-1])) @ pool.root.to(x).T)


def real_difference(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """``x + |error| v/|v|``, v the difference of two activations drawn from the pool; equal ones are drawn again."""

    inside = draw.inside[..., None]
    chosen = torch.zeros(*x.shape)
    for _ in range(_ROUNDS):
        # Every token draws in every round, so that what one document needs never moves another's numbers.
        index = draw.integers(pool.size, 2)
        candidate = pool.x_rows(index[..., 0]) - pool.x_rows(index[..., 1])
        chosen = torch.where(_norm(chosen) > 0, chosen, candidate)
        if bool(((_norm(chosen) > 0) | ~inside).all()):
            return move(x, error, _on(x, chosen))
    raise MeasurementError("the corpus holds hardly any activations that differ, so there is no difference to draw")


def shuffled_error(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """``x + |error| v/|v|``, v the error of another token, drawn from the pool's errors that are not zero."""
    if not bool((error != 0).any()):
        return x.clone()
    members = pool.nonzero_errors
    if len(members) == 0:
        raise MeasurementError("no error of the corpus differs from zero, so there is none to shuffle")
    chosen = members[draw.integers(len(members), 1)[..., 0]]
    return move(x, error, _on(x, pool.error_pool[chosen]))


def _theta(x: Tensor, error: Tensor, draw: SeededDraws) -> tuple[Tensor, Tensor]:
    """A vector with xhat's norm and xhat's cosine with x, its other part at random; and xhat."""
    xhat = x + error
    unit = _over(x, _norm(x))
    along = (xhat * unit).sum(-1, keepdim=True) * unit
    noise = _on(x, draw.normal(x.shape[-1]))
    # Twice, because one projection leaves rounding that is as large as the part across when the error is small.
    for _ in range(2):
        noise = noise - (noise * unit).sum(-1, keepdim=True) * unit
    return along + _norm(xhat - along) * _over(noise, _norm(noise)), xhat


def theta_sae_norm(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """Norm of xhat and cosine of (x, xhat), the direction across x at random."""
    turned, _ = _theta(x, error, draw)
    return torch.where(_norm(error) > 0, turned, x)


def theta_true_norm(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws) -> Tensor:
    """Norm of x and cosine of (x, xhat), the direction across x at random."""
    turned, xhat = _theta(x, error, draw)
    return torch.where(_norm(error) > 0, turned * _over(_norm(x), _norm(xhat)), x)


def norm_corrected(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws | None = None) -> Tensor:
    """``xhat |x|/|xhat|``: the reconstruction's direction with the activation's norm."""
    xhat = x + error
    return xhat * _over(_norm(x), _norm(xhat))


def sae_norm(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws | None = None) -> Tensor:
    """``x |xhat|/|x|``: the activation's direction with the reconstruction's norm."""
    return x * _over(_norm(x + error), _norm(x))


def reflected_error(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws | None = None) -> Tensor:
    """``x - error``: the same line, the other way."""
    return x - error


def mean_ablation(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws | None = None) -> Tensor:
    """The mean activation over the kept positions of the corpus."""
    return pool.mean.to(x).expand_as(x)


def zero_ablation(x: Tensor, error: Tensor, pool: NoisePool, draw: SeededDraws | None = None) -> Tensor:
    """Zero."""
    return torch.zeros_like(x)


NOISE: Mapping[str, Floor] = {
    "isotropic": isotropic,
    "theta_sae_norm": theta_sae_norm,
    "theta_true_norm": theta_true_norm,
    "covariance": covariance,
    "real_difference": real_difference,
    "shuffled_error": shuffled_error,
}
"Arms that draw; averaged over several draws a token."

DETERMINISTIC: Mapping[str, Floor] = {
    "norm_corrected": norm_corrected,
    "sae_norm": sae_norm,
    "reflected_error": reflected_error,
    "mean_ablation": mean_ablation,
    "zero_ablation": zero_ablation,
}
"Arms without a draw; the last two do not depend on the SAE."
