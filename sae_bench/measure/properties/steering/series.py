"""Tables and curves of `steering`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Series
from sae_bench.measure.properties.steering.significance import significance_tests
from sae_bench.measure.tables import histogram_columns

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.properties.steering.conditions import SteeringConditions

BINS = 40


def steering_series(bench: Bench, result: SteeringConditions) -> dict[str, Series]:
    """Return the tables and curves of one measurement."""
    return {
        "features": _feature_table(bench, result),
        "slopes": _slope_histogram(result),
        "effect": _effect_curves(result),
    }


def _feature_table(bench: Bench, result: SteeringConditions) -> Series:
    condition, tests = result.conditions["feature"], significance_tests(result)
    columns = {
        "feature": list(result.features),
        "density": result.density.tolist(),
        "targets": [" ".join(bench.token_text(token).strip() for token in each) for each in result.targets],
        "slope_mean": condition.slopes.mean(1).tolist(),
        "slope_sd": condition.slopes.std(1).tolist(),
        "anti_share": condition.backwards.mean(1).tolist(),
        "t": np.clip(tests.statistic, -1e6, 1e6).tolist(),
        "p": tests.p.tolist(),
        "steers": tests.significant.tolist(),
    }
    if result.output_scores is not None and result.input_scores is not None:
        columns["output_score"] = result.output_scores.mean(1).tolist()
        columns["input_score"] = result.input_scores.tolist()
    return Series("table", columns, title="Steered features and their target tokens", chart="feature_slopes")


def _slope_histogram(result: SteeringConditions) -> Series:
    slopes = {name: condition.slopes.ravel() for name, condition in result.conditions.items()}
    all_slopes = np.concatenate(list(slopes.values()))
    low, high = np.quantile(all_slopes, [0.005, 0.995]).tolist()
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    return Series(
        "histogram",
        histogram_columns(edges, slopes),
        title="Slopes over features and prompts",
        order=10,
        x="slope, nats per unit of strength",
    )


def _effect_curves(result: SteeringConditions) -> Series:
    feature = result.conditions["feature"]
    zero = list(feature.strengths).index(0)

    def curve(effect: Floats) -> list[float]:
        return list((effect - effect[..., zero, None]).mean((0, 1)).tolist())

    lines = {name: curve(condition.effect) for name, condition in result.conditions.items()}
    return Series("curve", {"x": list(feature.strengths), **lines}, title="Mean effect by strength", x="strength k")
