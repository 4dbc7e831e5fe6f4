"""Statistics of nearest neighbours: in-degrees, modes of the cosines, and bounds on coherence.

A histogram of largest cosines cannot tell pairs of near-copies from a crowd around one hub; the in-degrees of the
graph that points from every feature to its nearest neighbour can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from sae_bench.measure.arrays import Floats
from sae_bench.measure.geometry.neighbours import Neighbours

EDGES: Floats = np.round(np.linspace(-1, 1, 101), 2)
"Bins of cosines, equal for every dictionary, so that histograms can be compared."
_TIE = 1e-6
"Difference of float32 cosines that is rounding."
_SMOOTHING = 1.0
"Standard deviation, in bins, of the smoothing before modes are looked for."
_PEAK_SHARE = 0.01
"Share of the features by which a mode must rise above the dips around it, at least."


def welch_bound(n: int, d: int) -> float:
    """Return the least coherence that n directions in d dimensions can have (Welch 1974); 0 up to n = d."""
    return math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0


def frame_potential_excess(neighbours: Neighbours) -> float:
    """Return ``sum of squared cosines * d / n^2 - 1``, own included: 0 for a tight frame."""
    return neighbours.gram_square * neighbours.d / neighbours.n**2 - 1.0


def rms_cosine(neighbours: Neighbours) -> float:
    """Return the root mean square cosine of two different directions; 0 for a single one."""
    n = neighbours.n
    # Rounding can leave an orthonormal basis slightly below 0.
    return math.sqrt(max(neighbours.gram_square - n, 0.0) / (n * (n - 1))) if n > 1 else 0.0


def neighbour_in_degrees(neighbours: Neighbours, among: NDArray[np.bool_] | None = None) -> Floats:
    """Return (features,) how often each one is the nearest neighbour of another.

    Args:
        among: bool (n,) which directions vote; None: all.

    Nearest neighbours that tie share the vote. Where all neighbours known tie and there are more, as in an orthonormal
    basis, there is no nearest one and no vote.
    """
    cosine = neighbours.cosine.cpu()
    if not cosine.shape[1]:
        return np.zeros(neighbours.n)
    tied = cosine > cosine[:, :1] - _TIE  # (n, k)
    count = tied.sum(1, keepdim=True)
    decided = (count < cosine.shape[1]) | (cosine.shape[1] == neighbours.n - 1)
    # Descending order: tied ones come first, mostly a single one.
    most = int(count.max())
    tied, index = tied[:, :most], neighbours.index[:, :most].cpu()
    if among is not None:
        decided &= torch.from_numpy(among)[:, None]
    weight = (tied & decided).double() / count.clamp_min(1)
    place = torch.searchsorted(neighbours.features.cpu(), index.long().flatten())
    return np.bincount(place.numpy(), weight.flatten().numpy(), minlength=neighbours.n).astype(np.float64)


def gini(values: Floats) -> float:
    """Return the Gini coefficient: 0 when all values are equal, towards 1 when one has everything, 0 when all are 0."""
    total, n = values.sum(), len(values)
    if total == 0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(values) / (n * total))


@dataclass(frozen=True)
class Peak:
    """One mode of the largest cosines, and how concentrated the neighbours of its features are."""

    centre: float
    "Middle of the fullest bin, after smoothing."
    low: float
    "Cosine of the dip below it; -1 for the first mode."
    high: float
    "Cosine of the dip above it; 1 for the last mode."
    features: int
    "Directions between the dips."
    concentration: float
    "Share of them whose nearest neighbour is one and the same feature."
    neighbour: int
    "Index of that feature; -1 where no direction has a nearest neighbour."


def cosine_peaks(neighbours: Neighbours) -> list[Peak]:
    """Return the modes of the histogram of largest cosines, from low to high.

    A mode rises above the dips around it by 1% of the features and by three times the noise of a count of its height.
    """
    nearest = neighbours.nth(1)
    if nearest is None:
        return []
    cosine = nearest.cpu().numpy().astype(np.float64)
    # Empty bins at both ends: a mode at a cosine of 1 needs a slope on either side.
    edges = np.round(np.arange(-54, 55) * 0.02, 2)
    height = gaussian_filter1d(np.histogram(cosine, edges)[0].astype(np.float64), _SMOOTHING)
    noise = np.sqrt(height / (2 * _SMOOTHING * math.sqrt(math.pi)))
    maxima, _ = find_peaks(height, prominence=np.maximum(_PEAK_SHARE * neighbours.n, 3 * noise))
    if not len(maxima):
        return []
    dips = [float(edges[left + int(height[left:right].argmin())] + 0.01) for left, right in pairwise(maxima)]
    centres = (edges[maxima] + edges[maxima + 1]) / 2
    return [
        _peak(neighbours, cosine, float(centre), low, high)
        for centre, (low, high) in zip(centres, pairwise([-math.inf, *dips, math.inf]), strict=True)
    ]


def _peak(neighbours: Neighbours, cosine: Floats, centre: float, low: float, high: float) -> Peak:
    members = (cosine >= low) & (cosine < high)
    in_degree = neighbour_in_degrees(neighbours, members)
    hub = int(in_degree.argmax())
    return Peak(
        centre=round(centre, 4),
        low=max(low, -1.0),
        high=min(high, 1.0),
        features=int(members.sum()),
        concentration=float(in_degree[hub] / max(members.sum(), 1)),
        neighbour=int(neighbours.features[hub]) if in_degree[hub] > 0 else -1,
    )
