"""Standard errors, intervals and detectable changes, computed from influences of clusters.

The unit is the cluster: a document, or the chunks of one text. With S clusters and influences d_s that sum to 0,

    SE^2 = S / (S - 1) * sum_s d_s^2,    interval = value -+ t(S - 1) * SE,

which is the linearised (sandwich) error for a ratio of sums and the jackknife error for everything else. A value that
is clustered two ways has the variance V_a + V_b - V_ab (Cameron, Gelbach and Miller 2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from sae_bench.errors import MeasurementError
from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Estimate, Exact, Influence, Ratio, Summary, Undefined

NUMERIC_FLOOR = 1e-5
"Relative difference below which two numbers are the same number: twice the rounding of six significant digits."

Sides: TypeAlias = Literal["both", "lower", "upper"]


@cache
def t_quantile(alpha_one_sided: float, dof: int) -> float:
    """Return the value that Student's t with ``dof`` degrees of freedom exceeds at ``alpha_one_sided``."""
    # A tenth of a second, which listing and showing reports need not spend.
    from scipy.special import stdtrit

    return float(-stdtrit(dof, alpha_one_sided))


def degrees_of_freedom(estimate: Estimate) -> int:
    """Return clusters minus one: the smaller number of two clusterings, 0 without clusters."""
    if isinstance(estimate, Ratio):
        return max(len(estimate.numerator) - 1, 0)
    if isinstance(estimate, Influence):
        sizes = [len(estimate.influence)] + ([len(estimate.second)] if estimate.second is not None else [])
        return max(min(sizes) - 1, 0)
    return max(estimate.clusters - 1, 0) if isinstance(estimate, Summary) else 0


def _variance(influence: Floats) -> float:
    size = len(influence)
    return size / (size - 1) * math.fsum(influence * influence)


def standard_error(estimate: Estimate) -> float | None:
    """Return the clustered standard error of the value; None with fewer than two clusters (never 0)."""
    if isinstance(estimate, Exact | Undefined) or degrees_of_freedom(estimate) < 1:
        return None
    if isinstance(estimate, Summary):
        return estimate.se
    variance = _variance(estimate.influence)
    if isinstance(estimate, Influence) and estimate.second is not None:
        other = _variance(estimate.second)
        # The difference can fall below either part, even below 0, when the overlap dominates.
        variance = max(variance + other - estimate.overlap, variance, other)
    return math.sqrt(variance)


def interval(estimate: Estimate, alpha: float, sides: Sides = "both") -> tuple[float, float] | None:
    """Return the interval that misses the truth with probability ``alpha``, on one side or split between both.

    An `Exact` value is its own interval; None where there is no standard error. The open side of a one-sided
    interval is infinite: ``"upper"`` bounds the value from above.
    """
    if isinstance(estimate, Exact):
        return estimate.value, estimate.value
    error = standard_error(estimate)
    if error is None:
        return None
    reach = t_quantile(alpha / 2 if sides == "both" else alpha, degrees_of_freedom(estimate)) * error
    low = -math.inf if sides == "upper" else estimate.value - reach
    high = math.inf if sides == "lower" else estimate.value + reach
    return low, high


def leave_one_out(values: Callable[[int], float] | ArrayLike, full: float, clusters: int | None = None) -> Floats:
    """Return (clusters,) influences from the values with one cluster left out, in the units of `Ratio.influence`.

    Args:
        values: the value without cluster s, for every s; or a function of s, with ``clusters`` the number of them.
        full: the value over all clusters, checked to be finite like the others.
        clusters: only for a function.

    Centred at the mean of the leave-one-out values, so that `standard_error` of it is the jackknife's,
    ``SE^2 = (S - 1) / S * sum_s (v_s - mean v)^2``. A value that is not finite is a `MeasurementError`.
    """
    if callable(values):
        if clusters is None:
            raise TypeError("leave_one_out of a function needs the number of clusters")
        values = [values(cluster) for cluster in range(clusters)]
    without = np.asarray(values, dtype=np.float64)
    if not (math.isfinite(full) and np.isfinite(without).all()):
        raise MeasurementError(f"a leave-one-out value is not finite (value over all clusters: {full:.6g})")
    size = len(without)
    return np.asarray((size - 1) / size * (without.mean() - without)) if size else without


def ratio_or_undefined(numerator: Floats, denominator: Floats, reason: str) -> Estimate:
    """Return the ratio of sums over clusters; Undefined for ``reason`` where the denominator's sum is not above 0."""
    return Ratio(numerator, denominator) if denominator.sum() > 0 else Undefined(reason)


def jackknife(full: float, without: Sequence[float], reason: str) -> Estimate:
    """Return a value with the influences of leaving one cluster out; Undefined for ``reason`` where any is not finite.

    Args:
        full: the value over all clusters.
        without: the value without cluster s, for every s.
        reason: why the value, or one of the others, can be NaN or infinite.
    """
    if not np.isfinite([full, *without]).all():
        return Undefined(reason)
    return Influence(full, leave_one_out(without, full))


def detectable_change(se: float, alpha: float, dof: int, power: float = 0.95) -> float:
    """Return the smallest true change that a one-sided test at ``alpha`` detects with probability ``power``.

    ``(t(alpha) + t(1 - power)) * SE``; measured from the border of the limit, when there is one.
    """
    return (t_quantile(alpha, dof) + t_quantile(1 - power, dof)) * se


def documents_needed(gap: float, se: float, alpha: float, clusters: int, most: int = 10_000_000) -> int | None:
    """Return about how many clusters would decide if the estimate kept its value: errors shrink as 1/sqrt(n).

    Args:
        gap: distance of the estimate from the border of the limit.
        se: its standard error over ``clusters`` clusters.
        alpha: one-sided error rate of the test.
        most: for more clusters than this, or with the estimate on the border itself, the result is None.
    """
    if clusters < 2 or gap == 0:
        return None
    needed = clusters * (t_quantile(alpha, clusters - 1) * se / gap) ** 2
    return max(math.ceil(needed), clusters + 1) if needed <= most else None
