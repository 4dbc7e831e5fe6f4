"""Noise of a measurement: ``--sae-selfcheck`` measures the unchanged SAE again and stores the spread.

What should make no difference is changed: the batch size, the order of the documents, and the seed of every draw. The
noise of a metric is the change that an SAE which did not change stays within, its interval included:

    noise = 2 t(alpha, S - 1) SE,

where SE is the larger of two answers to how far two measurements lie apart: the root mean square difference of those
made, and the standard error of such a difference by clusters. Three measurements alone say little (in 18% of cases
their spread is less than half of what it is on average), S clusters say much, and noise that all clusters share only
shows in the former. It counts twice because a difference of t SE, which alpha allows, comes with an interval of t SE.
Where there are no clusters there is no interval either: t(alpha, measurements - 1) times the root mean square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.errors import UsageError
from sae_bench.judge.judge import ALPHA
from sae_bench.judge.limits import Rule, effective, judged_by_declaration, parse_rule, width
from sae_bench.judge.paired_change import paired_change
from sae_bench.measure.measurement import Measurement, Metric, Undefined
from sae_bench.measure.uncertainty import NUMERIC_FLOOR, t_quantile

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.properties import Property

REPEATS = 2
"Measurements after the first one."


def measured_noise(declared: Property, bench: Bench, measurement: Measurement) -> dict[str, float]:
    """Return the noise of each metric, in its unit; a metric without a finite value every time is left out."""
    # Where the seed is part of what is measured (which features are steered), another one measures something else.
    same_seed = "seed" in measurement.settings
    repeats = [declared.measure(varied_bench(bench, repeat, same_seed)) for repeat in range(1, REPEATS + 1)]
    rules = [parse_rule(f"{declared.name}.{limit}", "property") for limit in declared.limits]
    alpha = ALPHA / judged_by_declaration(rules, declared.name, declared.metrics)
    noises = {name: noise([measurement, *repeats], name, alpha) for name in sorted(measurement.estimates)}
    return {name: size for name, size in noises.items() if size is not None}


def noise(measurements: Sequence[Measurement], metric: str, alpha: float) -> float | None:
    """Return the noise of one metric from measurements of one SAE; None where one has no finite value.

    Args:
        measurements: two or more.
        metric: its name.
        alpha: one-sided error rate of the comparisons that the noise is for.
    """
    estimates = [each.estimates.get(metric) for each in measurements]
    if any(each is None or isinstance(each, Undefined) or not math.isfinite(each.value) for each in estimates):
        return None
    squares: list[float] = []
    variances: list[float] = []
    clusters = 0
    for one, other in combinations(measurements, 2):
        now, before = one.estimates[metric], other.estimates[metric]
        change = paired_change(now, before, one.clusters, other.clusters)
        squares.append((now.value - before.value if change is None else change.value) ** 2)
        if change is not None and change.se is not None:
            variances.append(change.se**2)
            clusters = len(change.clusters)
    apart = math.sqrt(np.mean(squares))
    if not variances:
        return t_quantile(alpha, len(measurements) - 1) * apart
    return 2 * t_quantile(alpha, clusters - 1) * max(apart, math.sqrt(np.mean(variances)))


def varied_bench(bench: Bench, repeat: int, same_seed: bool = False) -> Bench:
    """Return a bench of the same SAE, model and corpus with another batch size, order or seed."""
    settings = bench.settings
    changed = replace(
        settings,
        batch_size=max(1, settings.batch_size // (repeat + 1)) if settings.batch_size > 1 else repeat + 1,
        order_seed=repeat,
        seed=settings.seed if same_seed else settings.seed + repeat,
    )
    return replace(bench, settings=changed)


def check_noise(
    rules: Sequence[Rule],
    property: str,
    metrics: Sequence[Metric],
    sae: str,
    values: Mapping[str, float],
    noise: Mapping[str, float],
) -> None:
    """Raise a `UsageError` for a limit on change that is tighter than the noise of its metric.

    Args:
        rules: limits from every source.
        property: its name.
        metrics: all it declares.
        sae: the id that rules name.
        values: what percentages refer to, by metric.
        noise: as `measured_noise` gives it, by metric.
    """
    for metric in metrics:
        rule = effective(rules, property, metric, sae).get("change")
        if rule is None or metric.name not in noise or metric.name not in values or rule.limit.se:
            continue
        name, value, spread = f"{property}.{metric.name}", values[metric.name], noise[metric.name]
        if not math.isfinite(value) or (value == 0 and rule.limit.percent):
            continue
        allowed = width(rule.limit, value, None, spread, name)
        if spread > allowed + NUMERIC_FLOOR * abs(value):
            raise UsageError(
                f"limit {name}:{rule.limit} ({rule.source}) of {sae} allows {allowed:.3g}, less than the noise "
                f"{spread:.3g} of {name} (measured by --sae-selfcheck); "
                f"widen it, as in '{name}:{rule.limit}+1noise'"
            )
