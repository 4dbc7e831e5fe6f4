"""Slopes of steering effects under one kind of direction, and numbers clustered by prompt and by feature.

Shapes: R rows (directions), P prompts, K strengths, S clusters of prompts, F features. A feature may own several rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sae_bench.measure.arrays import Bools, Floats
from sae_bench.measure.measurement import Estimate, Influence, Undefined
from sae_bench.measure.shared.two_way_clusters import Grid, two_way_ratio
from sae_bench.measure.uncertainty import leave_one_out

ROUNDING = 1e-6
"Slopes below this share of the largest one are rounding: they are no effect."


@dataclass(frozen=True, eq=False)
class ConditionSlopes:
    """Effects of one condition's directions on the target sets that they are scored on."""

    effect: Floats
    "(R, P, K) nats"
    kl: Floats
    "(R, P, K) nats"
    ce: Floats
    "(R, P, K) nats"
    grid: Grid
    strengths: Sequence[int]

    def both_ways(self) -> ConditionSlopes:
        """Return these effects and those of the opposite directions, which need no run: k becomes -k.

        A direction drawn from a symmetric distribution is as likely as its opposite, so this changes no expectation and
        removes the luck of the draw from every number that has a sign.
        """
        effect, kl, ce = (np.concatenate([table, table[..., ::-1]]) for table in (self.effect, self.kl, self.ce))
        grid = Grid(self.grid.cluster_of, np.concatenate([self.grid.feature_of] * 2))
        return ConditionSlopes(effect, kl, ce, grid, self.strengths)

    @cached_property
    def slopes(self) -> Floats:
        """Return (R, P) least-squares slopes per unit of k."""
        return effect_slopes(self.effect, self.strengths)

    @cached_property
    def backwards(self) -> Floats:
        """Return (R, P) 1 where steering does not raise the target set."""
        largest = float(np.abs(self.slopes).max(initial=0.0))
        return np.asarray(self.slopes <= ROUNDING * largest, dtype=np.float64)

    def linearity(self) -> Estimate:
        """Return R^2 of the straight lines, pooled: 1 - (squares about the lines) / (squares about the means)."""
        k = np.asarray(self.strengths, dtype=np.float64)
        centred = self.effect - self.effect.mean(-1, keepdims=True)
        total = np.square(centred).sum(-1)
        residual = np.square(centred - self.slopes[..., None] * (k - k.mean())).sum(-1)
        return self._ratio(total - residual, total)

    def spread(self) -> Estimate:
        """Return the standard deviation of slopes over prompts, within a row; pooled over rows."""
        prompts = self.slopes.shape[1]
        if prompts < 2:
            return Undefined("a single prompt has no spread")
        squares = np.square(self.slopes - self.slopes.mean(1, keepdims=True))
        share = np.full_like(squares, (prompts - 1) / prompts)
        value = math.sqrt(float(squares.sum() / share.sum()))
        return (
            two_way_ratio(squares, share, self.grid, 0.5 / value, value)
            if value > 0
            else Undefined("all slopes are equal")
        )

    def per_effect(self, cost: Floats, selects: Callable[[int], bool]) -> Estimate:
        """Return ``cost`` (R, P, K) per nat of change of the effect, over the strengths that ``selects`` accepts."""
        selected = [index for index, k in enumerate(self.strengths) if selects(k)]
        zero = list(self.strengths).index(0)
        change = np.abs(self.effect[..., selected] - self.effect[..., zero, None]).sum(-1)
        extra_cost = (cost[..., selected] - cost[..., zero, None]).sum(-1)
        return self._ratio(extra_cost, change)

    def saturation(self) -> Estimate:
        """Return 1 - slope outside the linear range / slope inside it; the range is |k| <= 1."""
        at = {k: self.effect[..., index] for index, k in enumerate(self.strengths)}
        inside, outside = at[1] - at[-1], (at[2] - at[1]) + (at[-1] - at[-2])
        if inside.sum() <= 0:
            return Undefined("there is no effect inside the linear range")
        return two_way_ratio(inside - outside, inside, self.grid)

    def split_half(self) -> Estimate:
        """Return the correlation over rows of the mean slope on even and on odd prompts."""
        odd = np.arange(self.slopes.shape[1]) % 2 == 1
        grid = self.grid

        def correlation(rows: Bools | slice, prompts: Bools) -> float:
            halves = [self.slopes[rows][:, prompts & half].mean(1) for half in (~odd, odd)]
            centred = [half - half.mean() for half in halves]
            scale = math.sqrt(float(np.square(centred[0]).sum() * np.square(centred[1]).sum()))
            return float(centred[0] @ centred[1]) / scale if scale > 0 else math.nan

        if grid.features < 3 or min(odd.sum(), (~odd).sum()) < 2 or grid.clusters < 3:
            return Undefined("the halves need three features and four prompts")
        all_prompts = np.ones(len(odd), dtype=bool)
        value = correlation(slice(None), all_prompts)
        by_prompt = [correlation(slice(None), grid.without_cluster(index)) for index in range(grid.clusters)]
        by_feature = [correlation(grid.without_feature(index), all_prompts) for index in range(grid.features)]
        if not np.isfinite([value, *by_prompt, *by_feature]).all():
            return Undefined("mean slopes do not differ between features")
        return Influence(value, leave_one_out(by_prompt, value), leave_one_out(by_feature, value))

    def _ratio(self, numerator: Floats, denominator: Floats) -> Estimate:
        if denominator.sum() > 0:
            return two_way_ratio(numerator, denominator, self.grid)
        return Undefined("no effect changes with the strength")


def effect_slopes(effect: Floats, strengths: Sequence[float]) -> Floats:
    """Return (...) least-squares slope of effects (..., K) on strengths (K,).

    It divides after the product, unlike `slope_weights`: the other order would change the last bit of accepted numbers.
    """
    k = np.asarray(strengths, dtype=np.float64)
    centred = k - k.mean()
    return np.asarray(effect @ centred / float(centred @ centred))
