"""Geometry of dictionaries: exact nearest neighbours, their statistics, and the same statistics of random directions.

Functions take tensors and return numbers; they know neither SAEs nor models.
"""

from sae_bench.measure.geometry.composed_features import CLOSE_COSINE, ComposedSets, find_composed_sets
from sae_bench.measure.geometry.crosstalk import code_power, crosstalk
from sae_bench.measure.geometry.matching import (
    MOST_PAIRS,
    SAME_COSINE,
    Matching,
    largest_matching,
    match_directions,
    row_cosines,
)
from sae_bench.measure.geometry.neighbour_statistics import (
    EDGES,
    Peak,
    cosine_peaks,
    frame_potential_excess,
    gini,
    neighbour_in_degrees,
    rms_cosine,
    welch_bound,
)
from sae_bench.measure.geometry.neighbours import NEIGHBOURS, Neighbours, finite_norms, nearest_neighbours
from sae_bench.measure.geometry.random_floor import RANKS, SEEDS, RandomFloor, covariance_floor, isotropic_floor

__all__ = [
    "CLOSE_COSINE",
    "EDGES",
    "MOST_PAIRS",
    "NEIGHBOURS",
    "RANKS",
    "SAME_COSINE",
    "SEEDS",
    "ComposedSets",
    "Matching",
    "Neighbours",
    "Peak",
    "RandomFloor",
    "code_power",
    "cosine_peaks",
    "covariance_floor",
    "crosstalk",
    "find_composed_sets",
    "finite_norms",
    "frame_potential_excess",
    "gini",
    "isotropic_floor",
    "largest_matching",
    "match_directions",
    "nearest_neighbours",
    "neighbour_in_degrees",
    "rms_cosine",
    "row_cosines",
    "welch_bound",
]
