"""Does steering towards a labelled trait work in every question, or through a spurious factor?

A dataset gives questions with a positive and a negative answer. With v a unit direction,

    propensity     log-probability of the positive answer minus that of the negative one, m lambda v added from the
                   prompt's last token on, m from -1.5 to 1.5, lambda a tenth of the mean norm
    slope          least squares of propensity on m, one for every question
    steerability   mean slope; its spread and the share of slopes that do not rise stand beside it
    variance       omega squared of declared factors: alone, and in their order

Arms: `mean_difference`, the difference of means of the site at the two answers; `feature`, the direction of the SAE's
feature that steers most reliably, both chosen on one half of the questions and scored on the other;
`random_direction`. Halves are taken within every combination of factor levels. Tan et al. 2024, arXiv 2407.12404,
but for the strength: theirs is the mean difference's own norm, which is next to nothing where the site does not tell
the answers apart. A mean that holds for the population can hide that it works backwards for a third of it.

A property of its own, because it has a headline of its own and speaks of a labelled dataset, which few SAEs come with:
without one it is UNDEFINED and steering is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.datasets.contrast_file import FACTORS, ContrastSet, read_contrast, shifted_path
from sae_bench.measure.measurement import Estimate, Influence, Measurement, Metric, Ratio, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.properties.contrast.conditions import (
    CHOOSING,
    CONDITIONS,
    ContrastConditions,
    measure_conditions,
)
from sae_bench.measure.properties.contrast.series import contrast_series
from sae_bench.measure.shared.factor_variance import level_numbers, omega_squared, worst_level_share
from sae_bench.measure.uncertainty import leave_one_out

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

NO_DATASET = "no labelled dataset is registered: register_sae(..., contrast='questions.jsonl')"
NO_SHIFT = "there is no shifted variant of the dataset (NAME_shifted.jsonl beside NAME.jsonl)"

OF_AN_ARM = {
    "steerability": ("nats", "mean slope of propensity per unit strength"),
    "steerability_sd": ("nats", "standard deviation of slopes over questions"),
    "anti_share": ("share", "questions whose slope does not rise"),
    **{f"variance_explained_{factor}": ("share", f"omega squared of {factor} alone") for factor in FACTORS},
    **{f"variance_in_order_{factor}": ("share", f"omega squared of {factor} after those before") for factor in FACTORS},
    "worst_level_sign": ("share", "rising slopes in the worst level of any factor"),
    "steerability_shifted": ("nats", "mean slope on the shifted variant"),
}
DIRECTION = {"steerability": "higher", "anti_share": "lower", "worst_level_sign": "higher"}


def metric_of(name: str, condition: str) -> str:
    """The feature's own metrics have bare names."""
    return name if condition == "feature" else f"{name}_{condition}"


METRICS = (
    *(
        Metric(
            metric_of(name, condition),
            unit,
            DIRECTION.get(name, "reported") if condition == "feature" else "reported",  # type: ignore[arg-type]
            f"{meaning}, arm {condition}",
        )
        for name, (unit, meaning) in OF_AN_ARM.items()
        for condition in CONDITIONS
    ),
    Metric("shift_correlation", "", "reported", "Spearman over directions of mean slopes as asked and shifted"),
)


def measure(bench: Bench) -> Measurement:
    """Slopes of every arm on the scored half, and what declared factors explain of them."""
    if bench.related.contrast is None:
        return Measurement({metric.name: Undefined(NO_DATASET) for metric in METRICS})
    asked = read_contrast(bench.related.contrast)
    beside = shifted_path(bench.related.contrast)
    shifted = read_contrast(beside) if beside is not None else None
    found = measure_conditions(bench, asked, shifted)
    factors = {name: level_numbers([pair.factors[name] for pair in found.pairs]) for name in asked.factors}
    factors = {name: level for name, level in factors.items() if level.max() > 0}
    estimates: dict[str, Estimate] = {"shift_correlation": _shift(found)}
    for condition in CONDITIONS:
        each = _of_an_arm(found, condition, factors)
        estimates |= {metric_of(name, condition): estimate for name, estimate in each.items()}
    return Measurement(
        estimates,
        tuple(pair.line for pair in found.pairs),
        series=contrast_series(found, factors, bench.settings.seed),
        settings=_settings(bench, asked, shifted),
        notes=_notes(asked, found),
    )


def _of_an_arm(found: ContrastConditions, condition: str, factors: Mapping[str, Ints]) -> dict[str, Estimate]:
    """Estimates of one arm; where it has several directions, of their mean."""
    slopes = found.of_arm(condition)  # (directions, N)
    if slopes is None:
        return {name: Undefined("no feature's activation differs between the answers") for name in OF_AN_ARM}
    ones = np.ones(slopes.shape[1])
    estimates: dict[str, Estimate] = {
        "steerability": Ratio(slopes.mean(0), ones),
        "steerability_sd": _left_out(slopes, lambda rows, _: float(rows.std(1, ddof=1).mean()), factors),
        "anti_share": Ratio((slopes <= 0).mean(0), ones),
        "worst_level_sign": _left_out(
            slopes, lambda rows, sub: float(np.mean([worst_level_share(row, sub) for row in rows])), factors
        )
        if factors
        else Undefined("the dataset declares no factor with two levels"),
    }
    for name in FACTORS:
        if name not in factors:
            reason = f"the dataset declares no factor {name} with two levels"
            estimates |= {f"variance_{how}_{name}": Undefined(reason) for how in ("explained", "in_order")}
            continue
        rank = list(factors).index(name)
        estimates[f"variance_explained_{name}"] = _left_out(slopes, _explained([name], 0), factors)
        estimates[f"variance_in_order_{name}"] = _left_out(slopes, _explained(list(factors), rank), factors)
    estimates["steerability_shifted"] = (
        Undefined(NO_SHIFT)
        if found.shifted is None
        else _mean_elsewhere(found.shifted[found.rows[condition]], len(ones))
    )
    return estimates


def _explained(names: list[str], rank: int) -> Callable[[Floats, Mapping[str, Ints]], float]:
    def value(slopes: Floats, factors: Mapping[str, Ints]) -> float:
        return float(omega_squared(slopes, [factors[name] for name in names])[rank].mean())

    return value


def _left_out(
    slopes: Floats, value: Callable[[Floats, Mapping[str, Ints]], float], factors: Mapping[str, Ints]
) -> Estimate:
    """A value of (directions, N) slopes and the factors' levels, with influences from leaving a question out."""

    def without(question: int) -> float:
        kept = np.arange(slopes.shape[1]) != question
        return value(slopes[:, kept], {name: level[kept] for name, level in factors.items()})

    full = value(slopes, factors)
    others = [without(question) for question in range(slopes.shape[1])]
    if not np.isfinite([full, *others]).all():
        return Undefined("slopes do not vary between questions")
    return Influence(full, leave_one_out(others, full))


def _mean_elsewhere(slopes: Floats, clusters: int) -> Estimate:
    """Mean over the shifted questions, which are clusters of their own."""
    each = slopes.mean(0)
    return Influence(float(each.mean()), np.zeros(clusters), (each - each.mean()) / len(each))


def _shift(found: ContrastConditions) -> Estimate:
    """Over all directions tried (candidate features, mean difference, random ones), as one trait has no other units."""
    from scipy.stats import spearmanr

    if found.shifted is None:
        return Undefined(NO_SHIFT)
    shifted = found.shifted.mean(1)

    def correlation(slopes: Floats) -> float:
        return float(spearmanr(slopes.mean(1), shifted).statistic)

    full = correlation(found.slopes)
    count = found.slopes.shape[1]
    others = [correlation(np.delete(found.slopes, question, axis=1)) for question in range(count)]
    if not np.isfinite([full, *others]).all():
        return Undefined("mean slopes do not differ between directions")
    return Influence(full, leave_one_out(others, full))


def _settings(bench: Bench, asked: ContrastSet, shifted: ContrastSet | None) -> dict[str, object]:
    from sae_bench.measure.properties.contrast.propensity import MULTIPLIERS
    from sae_bench.measure.shared.unit_strength import STRENGTH_SHARE

    return {
        "choosing": CHOOSING,
        "dataset": asked.sha256,
        "shifted": shifted.sha256 if shifted is not None else None,
        "multipliers": list(MULTIPLIERS),
        "position": "from the last token of the prompt",
        "strength_share": STRENGTH_SHARE,
        "seed": bench.settings.seed,
    }


def _notes(asked: ContrastSet, found: ContrastConditions) -> tuple[str, ...]:
    notes = [f"{len(asked.pairs)} questions, {len(found.pairs)} of them scored"]
    if found.chosen is not None:
        notes.append(f"feature {found.chosen} was chosen among {len(found.candidates)}")
    if not asked.factors:
        notes.append("the dataset declares no factor, so nothing is said about spurious ones")
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
