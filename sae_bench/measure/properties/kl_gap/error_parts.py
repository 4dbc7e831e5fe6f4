"""Parts of the SAE's error: the linear function of x in it, and its strongest directions.

Engels et al. (arXiv 2410.14670) find half of an SAE's error linearly predictable from its input. The map is fitted on
the even documents of the whole pinned corpus and scored on odd ones, so it is the same in every tier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.bench import Bench

RIDGE = 1e-6
"Relative to the mean variance of x; only keeps the solve regular."
TOKENS = 1 << 13
"Tokens that are multiplied at once, in float64."
TOP_SHARE = 16
"One component in so many counts as the top of the error."


@dataclass(frozen=True)
class ErrorParts:
    """Linear map from x to its error, and the error's strongest directions."""

    map: Tensor
    "(d + 1, d), the last row is the offset."
    components: Tensor
    "(k, d), orthonormal."

    def linear(self, x: Tensor) -> Tensor:
        """Return the part of the error at ``x`` (..., d) that the map predicts."""
        return x @ self.map[:-1] + self.map[-1]

    def top(self, error: Tensor) -> Tensor:
        """Return ``error`` (..., d) projected on its strongest directions."""
        return (error @ self.components.T) @ self.components


def error_parts(bench: Bench) -> ErrorParts:
    """Return the error's parts, fitted once for a bench."""
    return bench.shared("error_parts", lambda: _fit(bench))


def _fit(bench: Bench) -> ErrorParts:
    import torch

    from sae_bench.engine.devices import send

    pool, device = bench.noise_pool(), bench.settings.device
    width = bench.site_data.x.shape[-1]
    gram = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=device)
    cross = torch.zeros(width + 1, width, dtype=torch.float64, device=device)
    square = torch.zeros(width, width, dtype=torch.float64, device=device)
    even = bench.site_data.keep.nonzero()[:, 0] % 2 == 0  # (tokens,)
    parts = zip(*(torch.split(each, TOKENS) for each in (pool.kept_positions, pool.error_pool, even)), strict=True)
    for positions, errors, is_even in parts:  # some tokens of the whole corpus at a time
        x, error = send(pool.rows[positions[is_even]], device).double(), send(errors, device).double()
        design = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        gram += design.T @ design
        cross += design.T @ error[send(is_even, device)]
        square += error.T @ error
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solution = torch.linalg.solve(gram + ridge, cross)
    components = torch.linalg.eigh(square).eigenvectors.flip(1).T[: max(1, width // TOP_SHARE)]
    return ErrorParts(solution.float(), components.float())
