"""Random numbers that follow from a key alone, so that SAEs, tiers and batch sizes do not change one another's draws.

Shapes: d site width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sae_bench.engine.noise_pool import key_digest, keyed_generator


def keyed_order(features: Sequence[int], *key: object) -> list[int]:
    """Return ``features`` in random order, sorted by a number that follows from ``key`` and the feature's index.

    One feature more or less moves no other one. A permutation of positions would reorder nearly all features when
    weights are rounded to half precision and a single feature drops out.
    """
    if not len(features):
        return []
    number = np.random.default_rng(int.from_bytes(key_digest(key), "little")).random(int(max(features)) + 1)
    return sorted((int(feature) for feature in features), key=lambda feature: (number[feature], feature))


def random_directions(count: int, width: int, seed: int) -> Tensor:
    """Draw (count, width) unit vectors uniformly on the sphere; every SAE of a site gets the same ones."""
    rows = [torch.randn(width, generator=keyed_generator(seed, "random_direction", rank)) for rank in range(count)]
    return functional.normalize(torch.stack(rows), dim=-1)
