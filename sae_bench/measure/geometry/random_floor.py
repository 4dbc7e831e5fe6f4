"""What a dictionary without any meaning looks like: the same neighbour statistics of random directions.

Isotropic directions fill the space evenly; covariance-matched ones lie where a site's activations lie, which by itself
makes them less orthogonal. Random directions are alike by construction, so the neighbours of the first `QUERIES` of
each of `SEEDS` dictionaries are found, among all n: nothing in the mean depends on how many are asked.
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

from sae_bench.measure.geometry.composed_features import composed
from sae_bench.measure.geometry.neighbours import nearest_of

RANKS = (1, 10, 100)
"Neighbours reported: the first, tenth and hundredth."
SEEDS = 3
QUERIES = 2048
"Directions of each random dictionary whose neighbours are found."
_SCHEMA = "1"
_WORTH_KEEPING = 2e10
"Products of two numbers, beyond which reading a file is quicker than computing again."


@dataclass(frozen=True, eq=False)
class RandomFloor:
    """Neighbour cosines of random directions, and how many of them others compose."""

    nth: dict[int, NDArray[np.float32]]
    "By rank, (directions asked,) k-th largest cosines; a rank beyond n - 1 is missing."
    composed_share: float

    def mean(self, rank: int) -> float | None:
        """Mean k-th largest cosine; None where there are not so many others."""
        return float(self.nth[rank].mean(dtype=np.float64)) if rank in self.nth else None


_known: dict[tuple[int, int], RandomFloor] = {}


def isotropic_floor(n: int, d: int, folder: Path | None = None) -> RandomFloor:
    """The floor of ``n`` directions evenly spread over ``d`` dimensions: from memory, else from a file, else computed.

    Args:
        folder: where files are kept; None: the user's cache. One that cannot be read, or written to, is no hindrance.
    """
    if (n, d) not in _known:
        kept = (folder or Path(user_cache_dir("pytest-sae-bench"))) / f"isotropic-{n}-{d}.safetensors"
        worth = float(n) * min(n, QUERIES) * d > _WORTH_KEEPING
        found = _read(kept, n, d) if worth else None
        if found is None:
            found = _floor(n, lambda generator: torch.randn(n, d, generator=generator))
            if worth:
                _write(kept, found, n, d)
        _known[n, d] = found
    return _known[n, d]


def covariance_floor(n: int, root: Tensor) -> RandomFloor:
    """The floor of ``n`` directions drawn from a normal law with covariance ``root @ root.T``, (d, d), and mean 0."""
    return _floor(n, lambda generator: torch.randn(n, len(root), generator=generator) @ root.T.float().cpu())


def _floor(n: int, draw: Callable[[torch.Generator], Tensor]) -> RandomFloor:
    queries = min(n, QUERIES)
    cosines: list[Tensor] = []
    found = 0
    for seed in range(SEEDS):
        directions = torch.nn.functional.normalize(draw(torch.Generator().manual_seed(seed)), dim=1)
        cosine, index = nearest_of(queries, directions)
        cosines.append(cosine)
        found += len(composed(directions, torch.arange(queries), cosine, index).sets)
    nearest = torch.cat(cosines)
    return RandomFloor(
        nth={rank: nearest[:, rank - 1].numpy().copy() for rank in RANKS if rank <= nearest.shape[1]},
        composed_share=found / (queries * SEEDS),
    )


def _read(path: Path, n: int, d: int) -> RandomFloor | None:
    """What a file holds; None for one that is missing, of another schema or damaged: it is computed again."""
    try:
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            nth = {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        return None
    if facts.get("of") != _description(n, d) or facts.get("sha256") != _digest(nth):
        return None
    try:
        return RandomFloor(nth, float(facts["composed_share"]))
    except (KeyError, ValueError):
        return None


def _write(path: Path, floor: RandomFloor, n: int, d: int) -> None:
    facts = {
        "of": _description(n, d),
        "sha256": _digest(floor.nth),
        "composed_share": repr(floor.composed_share),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A reader sees the old file or the new one, never half of one.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            save_file({str(rank): values for rank, values in floor.nth.items()}, part, facts)
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
