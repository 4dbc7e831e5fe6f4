"""Effects of adding a feature, prompt by prompt, compared with random directions and other features.

A feature's targets T are the ten tokens whose mean clean log-probability rises most where it fires, on one half of the
corpus. On the other half, k * lambda of a unit direction is added to the site's activation at the last position of a
prompt of at most 64 tokens, lambda a tenth of the mean norm, k from -2 to 2, and

    effect     mean logit of T minus the mean logit of the vocabulary, at that position
    slope      least squares of the effect on k, one for every feature and prompt
    anti_share share of slopes that do not rise
    steers     a feature whose mean slope is larger than those of 64 random directions and 128 other features of the
               SAE on the same T: p is the share of them, on all features' targets and in units of their root mean
               square on each, that are at least as large; the larger of both p, Benjamini-Hochberg at 10% over the
               features

Targets taken from the direction itself would make every direction steer. Other features are the fair opponents: decoder
rows move logits up to 1.4 times as much as random directions on the demo, whatever they are meant to raise, so against
random directions alone a permuted decoder steers as well. Random directions count together with their opposites, so
their anti_share is 1/2 and their mean slope 0 up to ties; they show the size of everything else. Every number is
clustered both ways, by feature and by prompt. A transcoder is steered at the site it writes; its codes are computed in
clean runs only, because the site it reads is before that one. Sources: Tan et al. 2024 (arXiv 2407.12404) for slopes
and anti_share, Arad et al. 2025 (arXiv 2505.20063) for output and input score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.measurement import Estimate, Measurement, Metric, Undefined
from sae_bench.measure.properties import Property, condition_metric
from sae_bench.measure.properties.steering.condition_slopes import ConditionSlopes
from sae_bench.measure.properties.steering.conditions import (
    CONDITIONS,
    OTHERS,
    RANDOM,
    SteeringConditions,
    measure_conditions,
)
from sae_bench.measure.properties.steering.series import steering_series
from sae_bench.measure.properties.steering.significance import FALSE_DISCOVERIES, steer_share
from sae_bench.measure.shared.two_way_clusters import two_way_mean

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

CONDITION_METRICS = {
    "anti_share": ("share", "share of slopes that do not rise"),
    "slope_mean": ("nats", "mean slope per unit of strength"),
    "slope_sd": ("nats", "standard deviation of slopes over prompts, within a direction"),
    "linearity": ("share", "R^2 of the straight lines"),
    "split_half": ("", "correlation over directions of mean slopes on even and odd prompts"),
    "specificity": ("nats", "KL from clean per nat of effect"),
    "coherence_cost": ("nats", "rise of the next token's loss per nat of effect, k > 0"),
}


FAMILIES = {"anti_share": "Share of slopes that do not rise, by condition", "slope_mean": "Mean slope, by condition"}
"Charts that show every condition."

METRICS = (
    Metric("anti_share_gap", "share", "lower", "share of slopes that do not rise: features minus random directions"),
    Metric(
        "steer_share",
        "share",
        "higher",
        "share of features that raise their targets more than random directions and other features do",
        version=2,
    ),
    *(
        Metric(
            condition_metric(name, condition),
            unit,
            "reported",
            f"{meaning}, condition {condition}",
            family=FAMILIES.get(name, ""),
            condition=condition,
        )
        for name, (unit, meaning) in CONDITION_METRICS.items()
        for condition in CONDITIONS
    ),
    Metric("saturation", "share", "reported", "share of the slope lost outside the linear range, |k| > 1"),
    Metric("output_score", "", "reported", "Arad et al.: the direction's lens tokens when it is raised tenfold"),
    Metric("input_score", "share", "reported", "strongest contexts whose token is among the direction's lens tokens"),
)

NO_LENS = "directions of this site have no logit lens"


def measure(bench: Bench) -> Measurement:
    """Measure slopes of every condition, their cost, and the share of features that steer."""
    result = measure_conditions(bench)
    feature, floor = result.conditions["feature"], result.conditions["random_direction"]
    features = len(result.features)
    backwards_gap = feature.backwards - floor.backwards.reshape(2, features, -1).mean(0)
    estimates: dict[str, Estimate] = {
        "anti_share_gap": two_way_mean(backwards_gap, feature.grid),
        "steer_share": steer_share(result, bench.settings.seed),
        "saturation": feature.saturation(),
        **_lens_scores(result),
    }
    for name, condition in result.conditions.items():
        estimates |= {condition_metric(metric, name): each for metric, each in _condition_estimates(condition).items()}
    return Measurement(
        estimates,
        result.clusters,
        series=steering_series(bench, result),
        settings=_settings(bench),
        notes=_notes(bench, result),
    )


def _condition_estimates(condition: ConditionSlopes) -> dict[str, Estimate]:
    return {
        "anti_share": two_way_mean(condition.backwards, condition.grid),
        "slope_mean": two_way_mean(condition.slopes, condition.grid),
        "slope_sd": condition.spread(),
        "linearity": condition.linearity(),
        "split_half": condition.split_half(),
        "specificity": condition.per_effect(condition.kl, lambda k: k != 0),
        "coherence_cost": condition.per_effect(condition.ce, lambda k: k > 0),
    }


def _lens_scores(result: SteeringConditions) -> dict[str, Estimate]:
    if result.output_scores is None or result.input_scores is None:
        return {name: Undefined(NO_LENS) for name in ("output_score", "input_score")}
    grid = result.conditions["feature"].grid
    input_scores = np.repeat(result.input_scores[:, None], len(result.cluster_of), axis=1)
    return {
        "output_score": two_way_mean(result.output_scores, grid),
        "input_score": two_way_mean(input_scores, grid),
    }


def _settings(bench: Bench) -> dict[str, object]:
    from sae_bench.measure.properties.steering import responses, steered_features, target_tokens
    from sae_bench.measure.shared.unit_strength import STRENGTH_SHARE

    return {
        "density": list(steered_features.DENSITY),
        "false_discoveries": FALSE_DISCOVERIES,
        "include_bos": bench.include_bos,
        "linear_range": 1,
        "other_features": OTHERS,
        "position": "last",
        "prompt_tokens": responses.PROMPT_TOKENS,
        "random_directions": RANDOM,
        "seed": bench.settings.seed,
        "selection_documents": steered_features.SELECTION_DOCUMENTS,
        "strength_share": STRENGTH_SHARE,
        "strengths": list(responses.STRENGTHS),
        "targets": target_tokens.TARGETS,
    }


def _notes(bench: Bench, result: SteeringConditions) -> tuple[str, ...]:
    tier_features = bench.settings.tier.features
    notes = [
        f"{len(result.features)} of {result.candidates} features that pass the rule, {len(result.cluster_of)} prompts"
    ]
    if len(result.features) < tier_features:
        notes.append(f"only {len(result.features)} features pass the rule, fewer than the tier's {tier_features}")
    if not result.packed:
        notes.append("this model's attention does not let one prompt serve many directions, so whole prompts were run")
    return tuple(notes)


PROPERTY = Property(
    name="steering",
    question="Does adding a feature raise what the feature means, in every prompt and more than noise does?",
    primary_metric="anti_share_gap",
    metrics=METRICS,
    # A decoder without meaning has no feature that steers in nine draws of ten, and one to three of 32 in the tenth. A
    # share of 0 has no error, so a bound of 0 would let it pass.
    limits=("anti_share_gap:max:0", "steer_share:min:0.1", "steer_share:0.1"),
    measure=measure,
    marker="steering",
    # 2: each feature's own index decides its place in the draw, so that one more or less leaves the others chosen.
    version=2,
)
