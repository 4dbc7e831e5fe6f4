"""The SAE's error taken apart: what of it is linear in x, and what lies in its few strongest directions.

Engels et al. (arXiv 2410.14670) find half of an SAE's error linearly predictable from its input. The map is fitted on
the even documents of the whole pinned corpus and scored on odd ones, so it is the same in every tier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.bench import Bench

RIDGE = 1e-6
"Relative to the mean variance of x; only keeps the solve regular."
TOP_SHARE = 16
"One component in so many counts as the top of the error."


@dataclass(frozen=True)
class ErrorParts:
    """A linear map from x to its error, and the error's strongest directions."""

    map: Tensor
    "(d + 1, d), the last row is the offset."
    components: Tensor
    "(k, d), orthonormal."

    def linear(self, x: Tensor) -> Tensor:
        """The part of the error at ``x`` (..., d) that the map predicts."""
        return x @ self.map[:-1] + self.map[-1]

    def top(self, error: Tensor) -> Tensor:
        """``error`` (..., d) projected on its strongest directions."""
        return (error @ self.components.T) @ self.components


def error_parts(bench: Bench) -> ErrorParts:
    """Fitted once for a bench."""
    return bench.shared("error_parts", lambda: _fit(bench))


def _fit(bench: Bench) -> ErrorParts:
    import torch

    pool = bench.pool()
    x, error = pool.x_pool.double(), pool.error_pool.double()  # (tokens, d) of the whole corpus
    even = bench.site_data.keep.nonzero()[:, 0] % 2 == 0  # (tokens,)
    ones = x.new_ones(int(even.sum()), 1)
    design = torch.cat([x[even], ones], dim=1)
    gram = design.T @ design
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solution = torch.linalg.solve(gram + ridge, design.T @ error[even])
    components = torch.linalg.eigh(error.T @ error).eigenvectors.flip(1).T[: max(1, x.shape[1] // TOP_SHARE)]
    return ErrorParts(solution.to(bench.site_data.x.dtype), components.to(bench.site_data.x.dtype))
