"""Geometry of dictionaries: exact nearest neighbours, who they are, and the same of random directions.

Layer 2: tensors in, numbers out; no SAE, no model.
"""

from sae_bench.measure.geometry.composed_features import CLOSE, Composed, composed
from sae_bench.measure.geometry.crosstalk import crosstalk, power
from sae_bench.measure.geometry.matching import MOST_PAIRS, SAME, Matching, compare, cosines, largest_matching
from sae_bench.measure.geometry.neighbour_statistics import (
    EDGES,
    Peak,
    frame_potential_excess,
    gini,
    peaks,
    rms_cosine,
    votes,
    welch_bound,
)
from sae_bench.measure.geometry.neighbours import NEIGHBOURS, Neighbours, finite_norms, neighbours
from sae_bench.measure.geometry.random_floor import RANKS, SEEDS, RandomFloor, covariance_floor, isotropic_floor

__all__ = [
    "CLOSE",
    "EDGES",
    "MOST_PAIRS",
    "NEIGHBOURS",
    "RANKS",
    "SAME",
    "SEEDS",
    "Composed",
    "Matching",
    "Neighbours",
    "Peak",
    "RandomFloor",
    "compare",
    "composed",
    "cosines",
    "covariance_floor",
    "crosstalk",
    "finite_norms",
    "frame_potential_excess",
    "gini",
    "isotropic_floor",
    "largest_matching",
    "neighbours",
    "peaks",
    "power",
    "rms_cosine",
    "votes",
    "welch_bound",
]
