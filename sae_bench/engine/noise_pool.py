"""The pool and the seeded random numbers that noise floors draw from.

Shapes: b documents, p positions, d site width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sae_bench.errors import MeasurementError

_THREADED_FROM = 1 << 18
"Count of normal numbers that take longer to draw than threads take to start."


@dataclass(frozen=True, eq=False)
class NoisePool:
    """Activations and errors at the kept positions of the whole corpus, in document order."""

    mean: Tensor
    "(d,) float64"
    covariance: Tensor
    "(d, d) float64"
    rows: Tensor
    "(all positions, d) activations, possibly memory-mapped; only rows named by `kept_positions` are drawn."
    kept_positions: Tensor
    "int64 (N,), indices into `rows`."
    errors: Callable[[], Tensor]
    "Computes (N, d) ``xhat - x`` at the kept positions; called when a floor first needs it."

    @property
    def size(self) -> int:
        """Return the number of kept positions, N."""
        return self.kept_positions.shape[0]

    def x_rows(self, index: Tensor) -> Tensor:
        """Return the activations of pool members ``index`` (...), as (..., d)."""
        members: Tensor = self.rows[self.kept_positions[index.flatten()]]
        return members.view(*index.shape, -1)

    @cached_property
    def error_pool(self) -> Tensor:
        """Compute the (N, d) errors of the SAE over the whole corpus."""
        return self.errors()

    @cached_property
    def nonzero_errors(self) -> Tensor:
        """List the members of `error_pool` that are not zero, int64."""
        return torch.cat([part.any(-1) for part in torch.split(self.error_pool, 4096)]).nonzero().flatten()

    @cached_property
    def root(self) -> Tensor:
        """Factor the covariance: (d, d) float32 lower triangular L with L L' = covariance.

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
    """Random numbers that depend on (seed, document, condition, draw index) only.

    Batches, their order and padding do not change them, and every SAE of a corpus gets the same ones.
    """

    def __init__(
        self, seed: int, documents: tuple[int, ...], lengths: tuple[int, ...], condition: str, draw_index: int
    ) -> None:
        self.documents = documents
        self.lengths = lengths
        self._generators = [keyed_generator(seed, document, condition, draw_index) for document in documents]

    @property
    def inside(self) -> Tensor:
        """Mark the positions before each document's end: bool (b, p)."""
        return torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]

    def normal(self, width: int) -> Tensor:
        """Draw (b, p, width) standard normal numbers, 0 behind a document's end."""
        out = torch.empty(len(self.documents), max(self.lengths), width)

        def fill(row: Tensor, length: int, generator: torch.Generator) -> None:
            row[:length].normal_(generator=generator)
            row[length:] = 0

        columns = (out, self.lengths, self._generators)
        if out.numel() < _THREADED_FROM:
            list(map(fill, *columns))
            return out
        # A generator draws with one core, and what a document draws is its own.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(fill, *columns))
        return out

    def integers(self, high: int, count: int) -> Tensor:
        """Draw int64 (b, p, count) uniform below ``high``, 0 behind a document's end."""
        out = torch.zeros(len(self.documents), max(self.lengths), count, dtype=torch.int64)
        for row, length, generator in zip(out, self.lengths, self._generators, strict=True):
            row[:length] = torch.randint(high, (length, count), generator=generator)
        return out


def keyed_generator(*key: object) -> torch.Generator:
    """Return a torch generator seeded by the SHA-256 of ``key``."""
    return torch.Generator().manual_seed(int.from_bytes(key_digest(key), "little", signed=True))


def key_digest(key: Sequence[object]) -> bytes:
    """Return the first 8 bytes of the SHA-256 of the key's parts, joined by '/'."""
    return hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8]
