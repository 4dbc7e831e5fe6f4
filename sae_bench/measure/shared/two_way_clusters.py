"""Ratios of tables of rows and prompts, clustered by feature and by prompt. numpy only.

Shapes: R rows (directions), P prompts, K strengths, S clusters of prompts, F features. A feature may own several rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sae_bench.measure.arrays import Bools, Floats, Ints
from sae_bench.measure.measurement import Influence


@dataclass(frozen=True, eq=False)
class Grid:
    """Cluster of every prompt and feature of every row."""

    cluster_of: Ints
    "(P,) index into the clusters."
    feature_of: Ints
    "(R,) index into the features."

    @cached_property
    def clusters(self) -> int:
        """Return the number S of clusters."""
        return int(self.cluster_of.max()) + 1

    @cached_property
    def features(self) -> int:
        """Return the number F of features."""
        return int(self.feature_of.max()) + 1

    def cells(self, values: Floats) -> Floats:
        """Return (F, S) sums of a table (R, P)."""
        out = np.zeros((self.features, self.clusters))
        np.add.at(out, (self.feature_of[:, None], self.cluster_of[None, :]), values)
        return out

    def without_cluster(self, cluster: int) -> Bools:
        """Return bool (P,) False for the prompts of a cluster."""
        return np.asarray(self.cluster_of != cluster)

    def without_feature(self, feature: int) -> Bools:
        """Return bool (R,) False for the rows of a feature."""
        return np.asarray(self.feature_of != feature)


def two_way_ratio(
    numerator: Floats, denominator: Floats, grid: Grid, change: float = 1.0, value: float | None = None
) -> Influence:
    """Return ``sum(numerator) / sum(denominator)`` of two (R, P) tables, clustered by prompt and by feature.

    ``change`` is the derivative of the value by that ratio where the value is a function of it, ``value`` then the
    function's value.
    """
    total = math.fsum(denominator.ravel())
    ratio = math.fsum(numerator.ravel()) / total
    cells = grid.cells(numerator - ratio * denominator) * (change / total)
    full = ratio if value is None else value
    return Influence(full, cells.sum(0), cells.sum(1), float(np.square(cells).sum()))


def two_way_mean(cells: Floats, grid: Grid) -> Influence:
    """Return the mean of a (R, P) table, clustered by prompt and by feature."""
    return two_way_ratio(cells, np.ones_like(cells), grid)
