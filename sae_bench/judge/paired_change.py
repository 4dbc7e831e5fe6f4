"""Compare a measurement with its accepted values by cluster id, over the clusters that both have.

A change over some of the accepted clusters has to stand for all of them. Where a few clusters hold much of a quantity
(1% of the documents, 18% of the KL), a run without those few is calm, its error is too small, and nothing in the run
tells. The accepted report tells: it holds the accepted values of the clusters that the run left out. So the variance
of a change is the shared clusters' times the ratio in which the accepted values vary more over all clusters than over
the shared ones, if that is above 1: Isaki's estimator of a variance by an auxiliary variable whose variance is known
(JASA 78, 1983), never used to narrow an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Estimate, Exact, Influence, Ratio, Summary, Undefined
from sae_bench.measure.uncertainty import NUMERIC_FLOOR, degrees_of_freedom, standard_error


def restrict(estimate: Estimate, clusters: Sequence[int], shared: Sequence[int]) -> Estimate | None:
    """Return the estimate over ``shared`` clusters, in that order; ``clusters`` are the ids that it has now.

    Exact for a `Ratio`. An `Influence` has no value on a subset: None unless the clusters are the same ones.
    None as well when a wanted cluster is not there, and for a `Summary`, which has none.
    """
    if isinstance(estimate, Exact | Undefined):
        return estimate
    if isinstance(estimate, Summary):
        return None
    place = {cluster: row for row, cluster in enumerate(clusters)}
    if any(cluster not in place for cluster in shared):
        return None
    rows = [place[cluster] for cluster in shared]
    if isinstance(estimate, Ratio):
        return Ratio(estimate.numerator[rows], estimate.denominator[rows])
    return replace(estimate, influence=estimate.influence[rows]) if len(rows) == len(place) else None


@dataclass(frozen=True)
class Change:
    """Change of an estimate since it was accepted, over the clusters that both have."""

    value: float
    se: float | None
    "Of the paired difference; None for exact values and for fewer than two clusters."
    clusters: tuple[int, ...]
    "The shared cluster ids; empty for exact values."
    now_value: float
    accepted_value: float
    now: Estimate
    "The new estimate on the shared clusters."
    accepted: Estimate
    "The accepted estimate on the shared clusters."
    inflation: float = 1.0
    "Factor in `se` for shared clusters that vary less than all of the accepted ones; at least 1."

    @property
    def exact(self) -> bool:
        """True when both values are properties of the weights alone."""
        return isinstance(self.now, Exact)

    @property
    def dof(self) -> int:
        """Degrees of freedom of the paired difference."""
        return min(degrees_of_freedom(self.now), degrees_of_freedom(self.accepted))

    def se_against(self, relative: float, absolute: float) -> float | None:
        """Return the standard error of the change in units of ``relative * |accepted| + absolute``.

        The accepted value that a percentage refers to is itself an estimate from the same clusters: by the delta
        method the change in that unit has the influences ``now - accepted - change / unit * relative * |accepted|``.
        A decoder that scales every document's KL by one factor then has no error at all, as it should.
        """
        width = relative * abs(self.accepted_value) + absolute
        if self.se is None or relative == 0 or width == 0:
            return self.se
        share = self.value / width * relative * math.copysign(1, self.accepted_value)
        return paired_error(self.now, self.accepted, self.inflation, 1 + share)


def _difference(now: Estimate, accepted: Estimate, weight: float = 1.0) -> Estimate:
    """Return ``now - weight * accepted`` over the same clusters."""
    assert isinstance(now, Ratio | Influence)
    assert isinstance(accepted, Ratio | Influence)
    second = None
    if isinstance(now, Influence) and isinstance(accepted, Influence) and now.second is not None:
        # Overlaps of a difference would need the cells; without subtracting any, the error is an upper bound.
        second = now.second - weight * accepted.second if accepted.second is not None else None
    return Influence(now.value - weight * accepted.value, now.influence - weight * accepted.influence, second)


def paired_error(now: Estimate, accepted: Estimate, inflation: float = 1.0, weight: float = 1.0) -> float | None:
    """Return the standard error of ``now - weight * accepted`` over the same clusters, times ``inflation``."""
    error = standard_error(_difference(now, accepted, weight))
    return None if error is None else inflation * error


def _inflation(accepted: Estimate, shared: Estimate) -> float:
    """Return the accepted value's spread over all clusters, divided by that over the shared ones; at least 1."""
    if not (isinstance(accepted, Ratio) and isinstance(shared, Ratio)) or len(shared.numerator) < 2:
        return 1.0
    over_all, over_shared = _spread(accepted), _spread(shared)
    return max(over_all / over_shared, 1.0) if over_shared > 0 and math.isfinite(over_all) else 1.0


def _spread(ratio: Ratio) -> float:
    """Return the standard deviation of clusters' contributions to a ratio: its error times sqrt(clusters)."""
    level = ratio.denominator.mean()
    if level == 0:
        return math.nan
    return float((ratio.numerator - ratio.numerator.mean() / level * ratio.denominator).std(ddof=1) / abs(level))


def _snap(now: Floats, accepted: Floats) -> Floats:
    same = np.abs(now - accepted) <= NUMERIC_FLOOR * np.abs(accepted)
    return np.where(same, accepted, now)


def same_number(now: float, accepted: float) -> bool:
    """Return True within the numeric floor, which covers six significant digits and another batch size."""
    return abs(now - accepted) <= NUMERIC_FLOOR * abs(accepted)


def _snapped(now: Estimate, accepted: Estimate) -> Estimate | None:
    """Return ``now`` with each part within the numeric floor set to the accepted one; None if their kinds differ.

    An accepted file holds six significant digits: without this, an unchanged SAE would differ from its own report.
    Snapping cluster by cluster, unlike rounding both sides, has no boundary that a last bit could fall across.
    """
    if isinstance(now, Ratio) and isinstance(accepted, Ratio):
        return Ratio(_snap(now.numerator, accepted.numerator), _snap(now.denominator, accepted.denominator))
    if isinstance(now, Exact) and isinstance(accepted, Exact):
        return accepted if same_number(now.value, accepted.value) else now
    if isinstance(now, Influence) and isinstance(accepted, Influence):
        value = accepted.value if same_number(now.value, accepted.value) else now.value
        second = now.second
        if (second is None) != (accepted.second is None):
            return None
        if second is not None and accepted.second is not None:
            if second.shape != accepted.second.shape:
                return None
            second = _snap(second, accepted.second)
        return Influence(value, _snap(now.influence, accepted.influence), second, now.overlap)
    return None


def paired_change(
    now: Estimate, accepted: Estimate, clusters_now: Sequence[int], clusters_accepted: Sequence[int]
) -> Change | None:
    """Return the change over the shared clusters; its error is scaled to that over all accepted clusters.

    None when the two cannot be paired: kinds of evidence that differ, no cluster in common, or `Influence` values
    over different clusters.
    """
    theirs = set(clusters_accepted)
    shared = () if isinstance(now, Exact) else tuple(cluster for cluster in clusters_now if cluster in theirs)
    if isinstance(now, Influence) and len(shared) < len(clusters_now):
        return None
    new, old = restrict(now, clusters_now, shared), restrict(accepted, clusters_accepted, shared)
    if new is None or old is None or not (shared or isinstance(now, Exact)):
        return None
    new = _snapped(new, old)
    if new is None:
        return None
    inflation = _inflation(accepted, old)
    error = None if isinstance(new, Exact) else paired_error(new, old, inflation)
    return Change(new.value - old.value, error, shared, new.value, old.value, new, old, inflation)
