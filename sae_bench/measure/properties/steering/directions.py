"""Directions with which steered features are compared, all of norm 1.

Random ones follow from (seed, condition, rank) alone, so every SAE of a site gets the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sae_bench.engine.noise_pool import keyed_generator
from sae_bench.measure.shared.keyed_random import keyed_order


def covariance_directions(count: int, root: Tensor, seed: int) -> Tensor:
    """Draw (count, d) unit vectors along normal draws with covariance ``root @ root.T`` (d, d)."""
    rows = [
        torch.randn(len(root), generator=keyed_generator(seed, "covariance_direction", rank)).to(root)
        for rank in range(count)
    ]
    return functional.normalize(torch.stack(rows) @ root.T, dim=-1)


def other_features(alive: Sequence[int], steered: Sequence[int], count: int, seed: int) -> tuple[int, ...]:
    """Return alive features to compare ``steered`` with: at most ``count``, no fewer than ``steered``.

    First another one for each of ``wanted``, by one permutation of ``alive`` that leaves none in its place; then others
    in that permutation's order. A feature of ``wanted`` may be among them, for another one's sake.
    """
    # A cycle through a random order moves every row; a plain permutation leaves about one where it was.
    shuffled = keyed_order(alive, seed, "permuted_decoder")
    following = dict(zip(shuffled, [*shuffled[1:], shuffled[0]], strict=True))
    partners = [following[feature] for feature in steered]
    rest = set(alive) - set(partners)
    return (*partners, *[feature for feature in shuffled if feature in rest])[:count]
