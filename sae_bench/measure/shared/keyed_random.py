"""Random numbers that follow from a key alone, so that SAEs, tiers and batch sizes do not change one another's draws.

Shapes: d site width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def keyed_generator(*key: object) -> torch.Generator:
    """Return a torch generator seeded by the SHA-256 of ``key``."""
    return torch.Generator().manual_seed(int.from_bytes(key_digest(key), "little", signed=True))


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


def key_digest(key: Sequence[object]) -> bytes:
    """Return the first 8 bytes of the SHA-256 of the key's parts, joined by '/'."""
    return hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8]
