"""What steering looks like: every feature, the distribution of slopes, the effect against the strength."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Series
from sae_bench.measure.properties.steering.significance import test_features

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.properties.steering.conditions import SteeringConditions

BINS = 40


def steering_series(bench: Bench, found: SteeringConditions) -> dict[str, Series]:
    """Tables and curves of one measurement."""
    return {"features": _features(bench, found), "slopes": _slopes(found), "effect": _effect(found)}


def _features(bench: Bench, found: SteeringConditions) -> Series:
    condition, verdicts = found.conditions["feature"], test_features(found)
    columns = {
        "feature": list(found.features),
        "density": found.density.tolist(),
        "targets": [" ".join(bench.token_text(token).strip() for token in each) for each in found.targets],
        "slope_mean": condition.slopes.mean(1).tolist(),
        "slope_sd": condition.slopes.std(1).tolist(),
        "anti_share": condition.backwards.mean(1).tolist(),
        "t": np.clip(verdicts.statistic, -1e6, 1e6).tolist(),
        "p": verdicts.p.tolist(),
        "steers": verdicts.found.tolist(),
    }
    if found.output_scores is not None and found.input_scores is not None:
        columns["output_score"] = found.output_scores.mean(1).tolist()
        columns["input_score"] = found.input_scores.tolist()
    return Series("table", columns, title="Steered features and their target tokens")


def _slopes(found: SteeringConditions) -> Series:
    slopes = {name: condition.slopes.ravel() for name, condition in found.conditions.items()}
    everything = np.concatenate(list(slopes.values()))
    low, high = np.quantile(everything, [0.005, 0.995]).tolist()
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts = {
        name: np.histogram(np.clip(each, edges[0], edges[-1]), edges)[0].tolist() for name, each in slopes.items()
    }
    return Series(
        "histogram",
        {"edges": edges.tolist(), **counts},
        title="Slopes over features and prompts",
        x="slope, nats per unit of strength",
    )


def _effect(found: SteeringConditions) -> Series:
    feature = found.conditions["feature"]
    still = list(feature.strengths).index(0)

    def curve(effect: Floats) -> list[float]:
        return list((effect - effect[..., still, None]).mean((0, 1)).tolist())

    lines = {name: curve(condition.effect) for name, condition in found.conditions.items()}
    return Series("curve", {"x": list(feature.strengths), **lines}, title="Mean effect by strength", x="strength k")
