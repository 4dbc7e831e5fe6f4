"""Steering towards a labelled trait, question by question, and the spurious factors behind it.

A dataset gives questions with a positive and a negative answer. With v a unit direction,

    propensity     log-probability of the positive answer minus that of the negative one, with m lambda v added from the
                   prompt's last token on, m from -1.5 to 1.5, lambda a tenth of the mean norm
    slope          least squares of propensity on m, one for every question
    steerability   mean slope; reported with its spread and the share of slopes that do not rise
    variance       omega squared of declared factors: alone, and in their order

Conditions: `mean_difference`, the difference of means of the site at the two answers; `feature`, the direction of the
SAE's feature that steers most reliably, both chosen on one half of the questions and scored on the other;
`random_direction`. Halves are taken within every combination of factor levels. Source: Tan et al. 2024, arXiv
2407.12404, except for the strength: theirs is the mean difference's own norm, which is almost 0 where the site does not
tell the answers apart. A mean that holds for the population can hide that steering works backwards for a third of it.

This property is separate from `steering` because it needs a labelled dataset, which few SAEs come with: without one it
is UNDEFINED and steering is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.datasets.contrast_file import FACTORS, ContrastSet, read_contrast, shifted_path
from sae_bench.measure.measurement import Estimate, Influence, Measurement, Metric, Ratio, Undefined
from sae_bench.measure.properties import Property, condition_metric
from sae_bench.measure.properties.contrast.conditions import (
    CHOOSING,
    CONDITIONS,
    ContrastConditions,
    measure_conditions,
)
from sae_bench.measure.properties.contrast.series import contrast_series
from sae_bench.measure.shared.factor_variance import level_numbers, omega_squared, worst_level_share
from sae_bench.measure.uncertainty import jackknife

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

NO_DATASET = "no labelled dataset is registered: register_sae(..., contrast='questions.jsonl')"
NO_SHIFT = "the dataset has no shifted variant (NAME_shifted.jsonl next to NAME.jsonl)"
NO_VARIANCE = "slopes do not vary between questions"

CONDITION_METRICS = {
    "steerability": ("nats", "mean slope of propensity per unit strength"),
    "steerability_sd": ("nats", "standard deviation of slopes over questions"),
    "anti_share": ("share", "share of questions whose slope does not rise"),
    **{f"variance_explained_{factor}": ("share", f"omega squared of {factor} alone") for factor in FACTORS},
    **{f"variance_in_order_{factor}": ("share", f"omega squared of {factor} after those before") for factor in FACTORS},
    "worst_level_sign": ("share", "share of rising slopes in the worst level of any factor"),
    "steerability_shifted": ("nats", "mean slope on the shifted variant"),
}
VARIANCES = {
    **{f"variance_explained_{factor}": "Variance explained, by factor" for factor in FACTORS},
    **{f"variance_in_order_{factor}": "Variance explained, factor after factor" for factor in FACTORS},
}
FACTOR_OF = {f"variance_{kind}_{factor}": factor for kind in ("explained", "in_order") for factor in FACTORS}
FAMILIES = {
    "steerability": "Steerability, by condition",
    "anti_share": "Share of questions whose slope does not rise, by condition",
    **VARIANCES,
}
"Charts that show every condition."
DIRECTION = {"steerability": "higher", "anti_share": "lower", "worst_level_sign": "higher"}


METRICS = (
    *(
        Metric(
            condition_metric(name, condition),
            unit,
            DIRECTION.get(name, "reported") if condition == "feature" else "reported",  # type: ignore[arg-type]
            f"{meaning}, condition {condition}",
            family=FAMILIES.get(name, ""),
            condition=condition,
            factor=name.removeprefix("variance_explained_").removeprefix("variance_in_order_")
            if name in VARIANCES
            else "",
        )
        for name, (unit, meaning) in CONDITION_METRICS.items()
        for condition in CONDITIONS
    ),
    Metric("shift_correlation", "", "reported", "Spearman over directions of mean slopes as asked and shifted"),
)


def measure(bench: Bench) -> Measurement:
    """Measure slopes of every condition on the scored half, and the variance that declared factors explain."""
    if bench.related.contrast is None:
        return Measurement({metric.name: Undefined(NO_DATASET) for metric in METRICS})
    contrast = read_contrast(bench.related.contrast)
    variant = shifted_path(bench.related.contrast)
    shifted = read_contrast(variant) if variant is not None else None
    result = measure_conditions(bench, contrast, shifted)
    factors = {name: level_numbers([pair.factors[name] for pair in result.pairs]) for name in contrast.factors}
    factors = {name: level for name, level in factors.items() if level.max() > 0}
    estimates: dict[str, Estimate] = {"shift_correlation": _shift_correlation(result)}
    for condition in CONDITIONS:
        condition_estimates = _condition_estimates(result, condition, factors)
        estimates |= {condition_metric(name, condition): estimate for name, estimate in condition_estimates.items()}
    return Measurement(
        estimates,
        tuple(pair.line for pair in result.pairs),
        series=contrast_series(result, factors, bench.settings.seed),
        settings=_settings(bench, contrast, shifted),
        notes=_notes(contrast, result),
    )


def _condition_estimates(
    result: ContrastConditions, condition: str, factors: Mapping[str, Ints]
) -> dict[str, Estimate]:
    """Return the estimates of one condition, means over its directions."""
    slopes = result.slopes_of(condition)  # (directions, N)
    if slopes is None:
        return {name: Undefined("no feature's activation differs between the answers") for name in CONDITION_METRICS}
    ones = np.ones(slopes.shape[1])
    estimates: dict[str, Estimate] = {
        "steerability": Ratio(slopes.mean(0), ones),
        "steerability_sd": _jackknife_questions(slopes, lambda rows, _: float(rows.std(1, ddof=1).mean()), factors),
        "anti_share": Ratio((slopes <= 0).mean(0), ones),
        "worst_level_sign": _jackknife_questions(
            slopes, lambda rows, levels: float(np.mean([worst_level_share(row, levels) for row in rows])), factors
        )
        if factors
        else Undefined("the dataset declares no factor with two levels"),
    }
    for name in FACTORS:
        if name not in factors:
            reason = f"the dataset declares no factor {name} with two levels"
            estimates |= {f"variance_{kind}_{name}": Undefined(reason) for kind in ("explained", "in_order")}
            continue
        rank = list(factors).index(name)
        estimates[f"variance_explained_{name}"] = _jackknife_questions(slopes, _variance_share([name], 0), factors)
        estimates[f"variance_in_order_{name}"] = _jackknife_questions(
            slopes, _variance_share(list(factors), rank), factors
        )
    estimates["steerability_shifted"] = (
        Undefined(NO_SHIFT)
        if result.shifted is None
        else _shifted_mean(result.shifted[result.rows[condition]], len(ones))
    )
    return estimates


def _variance_share(names: list[str], rank: int) -> Callable[[Floats, Mapping[str, Ints]], float]:
    """Return a function of slopes and levels: omega squared of one factor after others, mean over directions."""

    def value(slopes: Floats, factors: Mapping[str, Ints]) -> float:
        return float(omega_squared(slopes, [factors[name] for name in names])[rank].mean())

    return value


def _jackknife_questions(
    slopes: Floats, value: Callable[[Floats, Mapping[str, Ints]], float], factors: Mapping[str, Ints]
) -> Estimate:
    """Return a value of (directions, N) slopes and the factors' levels, with influences of leaving a question out."""

    def without(question: int) -> float:
        rest = np.arange(slopes.shape[1]) != question
        return value(slopes[:, rest], {name: level[rest] for name, level in factors.items()})

    questions = range(slopes.shape[1])
    return jackknife(value(slopes, factors), [without(question) for question in questions], NO_VARIANCE)


def _shifted_mean(slopes: Floats, clusters: int) -> Estimate:
    """Return the mean over the shifted questions, which are clusters of their own."""
    question_slopes = slopes.mean(0)
    return Influence(
        float(question_slopes.mean()),
        np.zeros(clusters),
        (question_slopes - question_slopes.mean()) / len(question_slopes),
    )


def _shift_correlation(result: ContrastConditions) -> Estimate:
    """Return the rank correlation of mean slopes on the dataset and on its shifted variant, over all directions.

    These are the candidate features, the mean difference and the random directions.
    """
    from scipy.stats import spearmanr

    if result.shifted is None:
        return Undefined(NO_SHIFT)
    shifted = result.shifted.mean(1)

    def correlation(slopes: Floats) -> float:
        return float(spearmanr(slopes.mean(1), shifted).statistic)

    without = [correlation(np.delete(result.slopes, question, axis=1)) for question in range(result.slopes.shape[1])]
    return jackknife(correlation(result.slopes), without, "mean slopes do not differ between directions")


def _settings(bench: Bench, contrast: ContrastSet, shifted: ContrastSet | None) -> dict[str, object]:
    from sae_bench.measure.properties.contrast.propensity import MULTIPLIERS
    from sae_bench.measure.shared.unit_strength import STRENGTH_SHARE

    return {
        "choosing": CHOOSING,
        "dataset": contrast.sha256,
        "shifted": shifted.sha256 if shifted is not None else None,
        "multipliers": list(MULTIPLIERS),
        "position": "from the last token of the prompt",
        "strength_share": STRENGTH_SHARE,
        "seed": bench.settings.seed,
    }


def _notes(contrast: ContrastSet, result: ContrastConditions) -> tuple[str, ...]:
    notes = [f"{len(contrast.pairs)} questions, {len(result.pairs)} of them scored"]
    if result.chosen is not None:
        notes.append(f"feature {result.chosen} was chosen among {len(result.candidates)} candidates")
    if not contrast.factors:
        notes.append("the dataset declares no factor, so spurious ones cannot be detected")
    return tuple(notes)


PROPERTY = Property(
    name="contrast",
    question="Does steering towards a labelled trait work in every question, or through a spurious factor?",
    primary_metric="steerability",
    metrics=METRICS,
    # Nothing here has a natural value: steerability depends on the trait and on the model.
    limits=("steerability:10%", "anti_share:0.1", "worst_level_sign:0.1"),
    measure=measure,
    marker="steering",
    # 2: a fixed number of questions chooses the feature, so that tiers choose the same one.
    version=2,
)
