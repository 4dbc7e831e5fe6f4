"""Effects per prompt as estimates with influences by cluster, and features that matter for one order only. numpy only.

Shapes: N prompts, S clusters of them, K features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sae_bench.measure.arrays import Bools, Floats, Ints
from sae_bench.measure.measurement import Estimate, Ratio, Undefined
from sae_bench.measure.shared.factor_variance import omega_squared, permutation_p, worst_level_share
from sae_bench.measure.shared.multiple_testing import holm
from sae_bench.measure.uncertainty import jackknife

NEGLIGIBLE = 0.1
"A feature matters for one order only if its mean effect in every other one is below this share of its largest."
SIGNIFICANT = 0.05
"Largest p, after Holm's correction, of an order that explains a feature's effects."


@dataclass(frozen=True, eq=False)
class PromptDesign:
    """Cluster of every prompt, and its level of every factor."""

    cluster_of: Ints
    "(N,) index into the clusters."
    factors: Mapping[str, Ints]
    "(N,) each; `order` varies within every cluster, `template` does not."

    @property
    def clusters(self) -> int:
        """Return the number S of clusters."""
        return int(self.cluster_of.max()) + 1

    def sums(self, values: Floats) -> Floats:
        """Return (S,) sums of (N,)."""
        return np.asarray(np.bincount(self.cluster_of, values, self.clusters), dtype=np.float64)

    def mean(self, values: Floats) -> Ratio:
        """Return the mean of (N,)."""
        return self.share(values, np.ones_like(values))

    def share(self, values: Floats, whole: Floats) -> Ratio:
        """Return the sum of (N,) over the sum of another (N,)."""
        return Ratio(self.sums(values), self.sums(whole))

    def jackknife(self, values: Floats, value: Callable[[Floats, Mapping[str, Ints]], float], reason: str) -> Estimate:
        """Return a value of (N,) and the factors' levels, with influences from leaving a cluster out.

        Undefined for the ``reason`` where it, or one without a cluster, is not finite.
        """

        def over(rows: Bools) -> float:
            return value(values[rows], {name: level[rows] for name, level in self.factors.items()})

        full = over(np.ones(len(values), dtype=bool))
        return jackknife(full, [over(self.cluster_of != cluster) for cluster in range(self.clusters)], reason)

    def spread(self, values: Floats) -> Estimate:
        """Return the standard deviation of (N,) over prompts: the population's, not the error of the mean."""
        return self.jackknife(values, lambda rows, _: float(rows.std(ddof=1)), "a single prompt has no spread")

    def explained(self, values: Floats, factor: str) -> Estimate:
        """Return omega squared of a factor."""

        def value(rows: Floats, factors: Mapping[str, Ints]) -> float:
            return float(omega_squared(rows[None], [factors[factor]])[0, 0])

        if not np.ptp(self.factors[factor]):
            return Undefined(f"the prompts have one {factor} only")
        return self.jackknife(values, value, "effects do not vary between prompts")

    def worst_sign(self, values: Floats) -> Estimate:
        """Return the share of positive (N,) in the worst level of any factor."""
        return self.jackknife(values, worst_level_share, "no level has two prompts")

    def worst_share(self, values: Floats) -> Estimate:
        """Return the smallest mean of (N,) in any level of any factor, over the mean of all."""

        def value(rows: Floats, factors: Mapping[str, Ints]) -> float:
            means = [rows[level == number].mean() for level in factors.values() for number in np.unique(level)]
            whole = float(rows.mean())
            return float(min(means)) / whole if whole > 0 else np.nan

        return self.jackknife(values, value, "the mean effect is not above 0")

    def permutation_p(self, values: Floats, factor: str, seed: int) -> Floats:
        """Return (K,) permutation p of a factor for effects (K, N).

        The order is shuffled within clusters; the template, of which a cluster has one, over clusters by their means.
        """
        level = self.factors[factor]
        if all(np.ptp(level[self.cluster_of == cluster]) == 0 for cluster in range(self.clusters)):
            first = [int(np.flatnonzero(self.cluster_of == cluster)[0]) for cluster in range(self.clusters)]
            size = np.bincount(self.cluster_of)
            values = np.stack([self.sums(row) / size for row in values]) if len(values) else np.zeros((0, len(size)))
            return permutation_p(values, level[first], np.zeros(len(size), dtype=np.int64), seed)
        return permutation_p(values, level, self.cluster_of, seed)


@dataclass(frozen=True, eq=False)
class FeatureComparison:
    """Influence of the declared factors on each feature's effect; (K,) each."""

    means: Floats
    "(K, orders) mean effect, nats."
    explained: Mapping[str, Floats]
    "Omega squared by factor; NaN where effects do not vary."
    p: Mapping[str, Floats]
    "By factor, after Holm's correction over features and factors."
    only: tuple[int, ...]
    "The only order for which each feature matters; -1 where it matters for several."


def compare_features(design: PromptDesign, effects: Floats, seed: int) -> FeatureComparison:
    """Compare the effects (K, N) of features between the levels of every factor."""
    order = design.factors["order"]
    means = np.stack([effects[:, order == level].mean(1) for level in np.unique(order)], axis=1)
    explained = {name: omega_squared(effects, [level])[0] for name, level in design.factors.items()}
    raw = {name: design.permutation_p(effects, name, seed) for name in design.factors}
    corrected = np.array(holm(np.concatenate(list(raw.values())).tolist())).reshape(len(raw), -1)
    p = dict(zip(raw, corrected, strict=True))
    only = []
    for row, significant in zip(np.abs(means), p["order"] <= SIGNIFICANT, strict=True):
        most = int(row.argmax())
        alone = all(effect < NEGLIGIBLE * row[most] for level, effect in enumerate(row) if level != most)
        only.append(most if significant and alone else -1)
    return FeatureComparison(means, explained, p, tuple(only))
