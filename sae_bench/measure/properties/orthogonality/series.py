"""Distributions and tables of `orthogonality`: cosines of neighbours, hubs, modes and composed features."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_bench.measure.measurement import Series

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sae_bench.measure.arrays import Floats
    from sae_bench.measure.geometry import Neighbours, Peak, RandomFloor

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_LISTED = 20


def neighbour_distributions(neighbours: Neighbours, floors: Mapping[str, RandomFloor]) -> dict[str, Series]:
    """Return histograms of the k-th largest cosines and the floors', scaled to one number, and quantiles."""
    from sae_bench.measure.geometry import EDGES, RANKS

    series: dict[str, Series] = {}
    quantiles: dict[str, list[float]] = {"q": list(QUANTILES)}
    for rank in RANKS:
        nearest = neighbours.nth(rank)
        if nearest is None:
            continue
        samples: dict[str, NDArray[np.float32]] = {"features": nearest.cpu().numpy()}
        samples |= {name: floor.nth[rank] for name, floor in floors.items() if rank in floor.nth}
        counts = {
            name: np.histogram(values.clip(-1, 1), EDGES)[0] * (neighbours.n / len(values))
            for name, values in samples.items()
        }
        series[f"nn{rank}"] = _histogram(EDGES, counts, f"Cosine with the {_ordinal(rank)} direction")
        for name, values in samples.items():
            quantiles[f"nn{rank}" if name == "features" else f"{name}_nn{rank}"] = [
                float(value) for value in np.quantile(values.astype(np.float64), QUANTILES)
            ]
    series["nn_quantiles"] = Series(
        "quantiles", quantiles, "Quantiles of cosines with near directions", "cosine", chart="near_directions", order=45
    )
    return series


def neighbour_tables(
    in_degree: Floats, neighbours: Neighbours, modes: list[Peak], sets: NDArray[np.int64]
) -> dict[str, Series]:
    """Return hubs with most in-neighbours, modes of the nn1 histogram, and the first composed features."""
    ids = neighbours.features.cpu().numpy()
    hubs = np.argsort(-in_degree, kind="stable")[: min(_LISTED, int((in_degree > 0).sum()))]
    return {
        "hubs": Series(
            "table",
            {"feature": ids[hubs].tolist(), "nearest_neighbour_of": in_degree[hubs].tolist()},
            "Features that are the nearest neighbour of most others",
        ),
        "peaks": Series(
            "table",
            {
                "cosine": [peak.centre for peak in modes],
                "from": [peak.low for peak in modes],
                "to": [peak.high for peak in modes],
                "features": [peak.features for peak in modes],
                "same_neighbour_share": [peak.concentration for peak in modes],
                "that_neighbour": [peak.neighbour for peak in modes],
            },
            "Modes of the largest cosines: is it one neighbour, or many?",
        ),
        "composed": Series(
            "table",
            {
                "feature": sets[:_LISTED, 0].tolist(),
                "explained_by": [", ".join(str(atom) for atom in row if atom >= 0) for row in sets[:_LISTED, 1:]],
            },
            "Features that two or three others compose (the first found)",
        ),
    }


def alive_mask(neighbours: Neighbours, n: int) -> Series:
    """Return the mask of features behind the numbers: n bits, packed, compressed and written in base64."""
    mask = np.zeros(n, dtype=bool)
    mask[neighbours.features.cpu().numpy()] = True
    packed = base64.b64encode(zlib.compress(np.packbits(mask).tobytes(), 9)).decode()
    columns: dict[str, list[Any]] = {"features": [n], "alive": [neighbours.n], "mask": [packed]}
    return Series("table", columns, "Alive features, bit by bit", accepted=True)


def _histogram(edges: Floats, counts: Mapping[str, Floats], x: str) -> Series:
    """Return a histogram without the empty bins at both ends."""
    used = np.flatnonzero(sum(counts.values()))
    low, high = int(used[0]), int(used[-1]) + 1
    columns: dict[str, list[float]] = {"edges": edges[low : high + 1].tolist()}
    columns |= {name: np.round(values[low:high], 3).tolist() for name, values in counts.items()}
    return Series("histogram", columns, x, "cosine")


def _ordinal(rank: int) -> str:
    return "nearest" if rank == 1 else f"{rank}th nearest"
