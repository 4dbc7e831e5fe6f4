"""Neighbour statistics of random directions: the floor that a dictionary is compared with.

Isotropic directions fill the space evenly. Covariance-matched ones are drawn where a site's activations are, which by
itself makes them less orthogonal. All directions of a random dictionary have the same distribution, so the neighbours
of the first `QUERIES` of each of `SEEDS` dictionaries, among all n, are enough: the mean does not depend on how many
are queried.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from sae_bench.measure.geometry.composed_features import find_composed_sets
from sae_bench.measure.geometry.neighbours import neighbours_of_queries

RANKS = (1, 10, 100)
"Neighbours reported: the first, tenth and hundredth."
SEEDS = 3
QUERIES = 2048
"Directions of each random dictionary whose neighbours are computed."
_SCHEMA = "1"
_WORTH_STORING = 2e10
"Products of two numbers above which reading a file is faster than computing again."


@dataclass(frozen=True, eq=False)
class RandomFloor:
    """Neighbour cosines of random directions, and the share of them that others compose."""

    nth: dict[int, NDArray[np.float32]]
    "By rank, (queries,) k-th largest cosines; ranks above n - 1 are missing."
    composed_share: float

    def mean(self, rank: int) -> float | None:
        """Return the mean k-th largest cosine; None where there are not so many others."""
        return float(self.nth[rank].mean(dtype=np.float64)) if rank in self.nth else None


_in_memory: dict[tuple[int, int], RandomFloor] = {}


def isotropic_floor(n: int, d: int, folder: Path | None = None) -> RandomFloor:
    """Return the floor of ``n`` isotropic directions in ``d`` dimensions, from memory, a file or a computation.

    Args:
        folder: of the stored floors; None: the user's cache. A folder that cannot be read or written is ignored.
    """
    if (n, d) not in _in_memory:
        file = (folder or Path(user_cache_dir("pytest-sae-bench"))) / f"isotropic-{n}-{d}.safetensors"
        stored = float(n) * min(n, QUERIES) * d > _WORTH_STORING
        floor = _read(file, n, d) if stored else None
        if floor is None:
            floor = _floor(n, lambda generator: torch.randn(n, d, generator=generator))
            if stored:
                _write(file, floor, n, d)
        _in_memory[n, d] = floor
    return _in_memory[n, d]


def covariance_floor(n: int, root: Tensor) -> RandomFloor:
    """Return the floor of ``n`` directions drawn from a normal law with mean 0 and covariance ``root @ root.T``."""
    return _floor(n, lambda generator: torch.randn(n, len(root), generator=generator) @ root.T.float().cpu())


def _floor(n: int, draw: Callable[[torch.Generator], Tensor]) -> RandomFloor:
    queries = min(n, QUERIES)
    cosines: list[Tensor] = []
    sets = 0
    for seed in range(SEEDS):
        directions = torch.nn.functional.normalize(draw(torch.Generator().manual_seed(seed)), dim=1)
        cosine, index = neighbours_of_queries(queries, directions)
        cosines.append(cosine)
        sets += len(find_composed_sets(directions, torch.arange(queries), cosine, index).sets)
    nearest = torch.cat(cosines)
    return RandomFloor(
        nth={rank: nearest[:, rank - 1].numpy().copy() for rank in RANKS if rank <= nearest.shape[1]},
        composed_share=sets / (queries * SEEDS),
    )


def _read(path: Path, n: int, d: int) -> RandomFloor | None:
    """Read a stored floor; None for a missing or damaged file and for another schema."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            nth = {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        return None
    if metadata.get("of") != _description(n, d) or metadata.get("sha256") != _digest(nth):
        return None
    try:
        return RandomFloor(nth, float(metadata["composed_share"]))
    except (KeyError, ValueError):
        return None


def _write(path: Path, floor: RandomFloor, n: int, d: int) -> None:
    metadata = {
        "of": _description(n, d),
        "sha256": _digest(floor.nth),
        "composed_share": repr(floor.composed_share),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A reader sees the old file or the new one, never half of one.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            save_file({str(rank): values for rank, values in floor.nth.items()}, part, metadata)
            os.replace(part, path)
    except OSError:
        return


def _description(n: int, d: int) -> str:
    return json.dumps({"schema": _SCHEMA, "n": n, "d": d, "seeds": SEEDS, "queries": QUERIES}, sort_keys=True)


def _digest(nth: dict[int, NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for rank, values in sorted(nth.items()):
        digest.update(f"{rank}:{values.shape}:".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
