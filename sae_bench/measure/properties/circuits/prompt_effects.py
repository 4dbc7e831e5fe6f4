"""From per-prompt effects to numbers with influences by cluster, and which features matter for one order only. numpy.

Shapes: N prompts, S clusters of them, K features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.measurement import Estimate, Influence, Ratio, Undefined
from sae_bench.measure.shared.factor_variance import omega_squared, permutation_p, worst_level_share
from sae_bench.measure.shared.multiple_testing import holm
from sae_bench.measure.uncertainty import leave_one_out

ONLY = 0.1
"A feature matters for one order only when its mean effect in every other one is below this share of it."
SURE = 0.05
"And when the order explains its effects at this level, after Holm's correction."


@dataclass(frozen=True, eq=False)
class PromptDesign:
    """Which cluster and which level of every factor a prompt belongs to."""

    cluster_of: Ints
    "(N,) index into the clusters."
    factors: Mapping[str, Ints]
    "(N,) each; `order` varies within every cluster, `template` does not."

    @property
    def clusters(self) -> int:
        """S"""
        return int(self.cluster_of.max()) + 1

    def sums(self, values: Floats) -> Floats:
        """(S,) sums of (N,)."""
        return np.asarray(np.bincount(self.cluster_of, values, self.clusters), dtype=np.float64)

    def mean(self, values: Floats) -> Ratio:
        """Of (N,)."""
        return self.share(values, np.ones_like(values))

    def share(self, values: Floats, whole: Floats) -> Ratio:
        """Sum of (N,) over the sum of another (N,)."""
        return Ratio(self.sums(values), self.sums(whole))

    def left_out(self, values: Floats, value: Callable[[Floats, Mapping[str, Ints]], float], reason: str) -> Estimate:
        """A value of (N,) and the factors' levels, with influences from leaving a cluster out.

        Undefined for the ``reason`` where it, or one without a cluster, is not finite.
        """

        def over(kept: NDArrayBool) -> float:
            return value(values[kept], {name: level[kept] for name, level in self.factors.items()})

        full = over(np.ones(len(values), dtype=bool))
        others = [over(self.cluster_of != cluster) for cluster in range(self.clusters)]
        if not np.isfinite([full, *others]).all():
            return Undefined(reason)
        return Influence(full, leave_one_out(others, full))

    def spread(self, values: Floats) -> Estimate:
        """Standard deviation of (N,) over prompts: the population's, not the error of the mean."""
        return self.left_out(values, lambda kept, _: float(kept.std(ddof=1)), "a single prompt has no spread")

    def explained(self, values: Floats, factor: str) -> Estimate:
        """Omega squared of a factor."""

        def value(kept: Floats, factors: Mapping[str, Ints]) -> float:
            return float(omega_squared(kept[None], [factors[factor]])[0, 0])

        if not np.ptp(self.factors[factor]):
            return Undefined(f"the prompts have one {factor} only")
        return self.left_out(values, value, "effects do not vary between prompts")

    def worst_sign(self, values: Floats) -> Estimate:
        """The share of positive (N,) in the worst level of any factor."""
        return self.left_out(values, worst_level_share, "no level has two prompts")

    def worst_share(self, values: Floats) -> Estimate:
        """The smallest mean of (N,) in any level of any factor, over the mean of all."""

        def value(kept: Floats, factors: Mapping[str, Ints]) -> float:
            means = [kept[level == each].mean() for level in factors.values() for each in np.unique(level)]
            whole = float(kept.mean())
            return float(min(means)) / whole if whole > 0 else np.nan

        return self.left_out(values, value, "the mean effect is not above 0")

    def p(self, values: Floats, factor: str, seed: int) -> Floats:
        """(K,) permutation p of a factor for effects (K, N).

        The order is shuffled within clusters; the template, of which a cluster has one, over clusters by their means.
        """
        level = self.factors[factor]
        if all(np.ptp(level[self.cluster_of == cluster]) == 0 for cluster in range(self.clusters)):
            first = [int(np.flatnonzero(self.cluster_of == cluster)[0]) for cluster in range(self.clusters)]
            size = np.bincount(self.cluster_of)
            values = np.stack([self.sums(row) / size for row in values]) if len(values) else np.zeros((0, len(size)))
            return permutation_p(values, level[first], np.zeros(len(size), dtype=np.int64), seed)
        return permutation_p(values, level, self.cluster_of, seed)


NDArrayBool = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class FeatureComparison:
    """What the declared factors do to each feature's effect; (K,) each."""

    means: Floats
    "(K, orders) mean effect, nats."
    explained: Mapping[str, Floats]
    "Omega squared by factor; NaN where effects do not vary."
    p: Mapping[str, Floats]
    "By factor, after Holm's correction over features and factors."
    only: tuple[int, ...]
    "The order that each matters for, if it matters for no other; -1 else."


def compare_features(design: PromptDesign, effects: Floats, seed: int) -> FeatureComparison:
    """Of effects (K, N)."""
    order = design.factors["order"]
    means = np.stack([effects[:, order == level].mean(1) for level in np.unique(order)], axis=1)
    explained = {name: omega_squared(effects, [level])[0] for name, level in design.factors.items()}
    raw = {name: design.p(effects, name, seed) for name in design.factors}
    corrected = np.array(holm(np.concatenate(list(raw.values())).tolist())).reshape(len(raw), -1)
    p = dict(zip(raw, corrected, strict=True))
    only = []
    for row, sure in zip(np.abs(means), p["order"] <= SURE, strict=True):
        most = int(row.argmax())
        alone = all(each < ONLY * row[most] for level, each in enumerate(row) if level != most)
        only.append(most if sure and alone else -1)
    return FeatureComparison(means, explained, p, tuple(only))
