"""Effect of the reconstruction on a circuit, in every kind of prompt, and the features that carry the circuit.

The indirect-object task: "when Mary and John went to the store , John gave the drink to" has a right answer, Mary, and
a wrong one, John; prompts name the receiver first (ABBA) or second (BABA). With m a prompt's logit difference, right
minus wrong, in nats,

    kept                   sum m(reconstruction) / sum m(clean); over mean ablation, m(mean) is subtracted from both
    lost                   y = m(clean) - m(reconstruction) of a prompt: its mean, its spread over prompts
    worst_level_sign       share of prompts with m(reconstruction) > 0 in the worst order or template
    variance_explained_F   omega squared of factor F in y: the share of the spread that the order or template explains
    `latent_effect`        y = m(clean) - m(x without the feature's contribution), mean, for the most important feature

The SAE's reconstruction, or x without a feature, replaces the activation at all positions but the first. Features are
chosen on half of the clusters (a template with a pair of names), and everything is measured on the other half. Only the
declared factors are tested, p by permutation with Holm's correction. `_isotropic` and `_random` are floors: noise of
the error's length, and a random direction of the length of the feature's contribution.

Tan, An interpretability illusion from population statistics in causal analysis (2024): a mean over all prompts made a
feature look important that works in BABA prompts only. So every mean is reported with its spread, and the table of
features names those that matter for one order only. A `kept` below 1, or a low worst level, says that the SAE loses
what the circuit reads; `kept` above 1 exaggerates it. A feature with a low `latent_worst_level_sign` explains some
prompts, not the task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.arrays import Floats
from sae_bench.measure.datasets.circuit_file import FACTORS, CircuitSet, read_circuit
from sae_bench.measure.measurement import Estimate, Measurement, Metric, Undefined
from sae_bench.measure.properties import TRANSCODER, Property
from sae_bench.measure.properties.circuits.conditions import (
    CANDIDATES,
    CHOOSING,
    FEATURES,
    CircuitConditions,
    measure_conditions,
)
from sae_bench.measure.properties.circuits.prompt_effects import FeatureComparison, PromptDesign, compare_features
from sae_bench.measure.properties.circuits.series import circuit_series
from sae_bench.measure.uncertainty import standard_error

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

NO_PROMPTS = "no prompts of a circuit are registered: register_sae(..., circuit='prompts.jsonl')"
LEAST_PREFERENCE = 3.0
"Standard errors by which the clean model must prefer the right answer to solve the task."
SHARES_OF_CLEAN = ("kept", "kept_over_ablation", "kept_isotropic")


def _target(name: str, meaning: str) -> Metric:
    """Declare a share whose best value is 1: a larger one means that the reconstruction exaggerates."""
    return Metric(name, "share", "target", meaning, target=1.0, noise_free=True)


METRICS = (
    Metric("logit_difference_clean", "nats", "reported", "mean logit difference of the clean model", noise_free=True),
    Metric(
        "logit_difference_sae", "nats", "reported", "mean logit difference through the reconstruction", noise_free=True
    ),
    Metric(
        "logit_difference_mean_ablation",
        "nats",
        "reported",
        "mean logit difference under mean ablation of the site",
        noise_free=True,
    ),
    Metric(
        "logit_difference_sae_sd",
        "nats",
        "reported",
        "standard deviation over prompts, through the reconstruction",
        noise_free=True,
    ),
    _target("kept", "logit difference through the reconstruction over the clean one"),
    _target(
        "kept_over_ablation", "logit difference through the reconstruction over the clean one, both minus mean ablation"
    ),
    Metric(
        "kept_isotropic",
        "share",
        "reported",
        "logit difference with isotropic noise of the error's norm over the clean one",
    ),
    Metric("lost", "nats", "reported", "clean logit difference minus that through the reconstruction", noise_free=True),
    Metric(
        "lost_sd", "nats", "reported", "standard deviation over prompts of the lost logit difference", noise_free=True
    ),
    *(
        Metric(
            f"variance_explained_{factor}",
            "share",
            "reported",
            f"omega squared of {factor} in the lost logit difference",
            family="Variance explained, by factor",
            condition="reconstruction",
            factor=factor,
        )
        for factor in FACTORS
    ),
    Metric(
        "sign_consistency", "share", "higher", "share of prompts whose right answer is still preferred", noise_free=True
    ),
    Metric("worst_level_sign", "share", "higher", "sign consistency in the worst order or template", noise_free=True),
    Metric(
        "worst_level_share",
        "ratio",
        "higher",
        "smallest mean of an order or template over the mean of all prompts",
        noise_free=True,
    ),
    Metric("latent_effect", "nats", "reported", "mean logit difference lost without the feature that matters most"),
    Metric(
        "latent_effect_random",
        "nats",
        "reported",
        "mean logit difference lost without a random direction of the feature's length",
    ),
    Metric("latent_effect_sd", "nats", "reported", "standard deviation over prompts of the top feature's effect"),
    *(
        Metric(
            f"latent_variance_explained_{factor}",
            "share",
            "reported",
            f"omega squared of {factor} in the top feature's effect",
        )
        for factor in FACTORS
    ),
    Metric(
        "latent_sign_consistency",
        "share",
        "reported",
        "share of prompts where the top feature's effect has the sign of the choosing half",
    ),
    Metric(
        "latent_worst_level_sign",
        "share",
        "reported",
        "sign consistency of the top feature's effect, worst order or template",
    ),
    Metric(
        "latent_worst_level_share",
        "ratio",
        "reported",
        "smallest mean effect of the top feature in an order or template, over its mean",
    ),
)


def measure(bench: Bench) -> Measurement:
    """Measure logit differences of the scored half under every condition, and the effects of single features."""
    if bench.related.circuit is None:
        return Measurement({metric.name: Undefined(NO_PROMPTS) for metric in METRICS})
    if bench.source is not bench.site_data:
        return Measurement({metric.name: Undefined(TRANSCODER) for metric in METRICS})
    circuit = read_circuit(bench.related.circuit)
    result = measure_conditions(bench, circuit)
    design = PromptDesign(result.cluster_of, result.factors)
    features = compare_features(design, result.effects, bench.settings.seed)
    return Measurement(
        {**_sae_estimates(design, result), **_first_feature_estimates(design, result)},
        result.clusters,
        series=circuit_series(result, design, features, bench.settings.seed),
        settings=_settings(bench, circuit),
        notes=_notes(circuit, result, features),
    )


def _sae_estimates(design: PromptDesign, result: CircuitConditions) -> dict[str, Estimate]:
    clean, reconstruction, ablated = (result.conditions[name] for name in ("clean", "sae", "mean_ablation"))
    lost = clean - reconstruction
    estimates: dict[str, Estimate] = {
        "logit_difference_clean": design.mean(clean),
        "logit_difference_sae": design.mean(reconstruction),
        "logit_difference_mean_ablation": design.mean(ablated),
        "logit_difference_sae_sd": design.spread(reconstruction),
        "kept": design.share(reconstruction, clean),
        "kept_over_ablation": design.share(reconstruction - ablated, clean - ablated),
        "kept_isotropic": design.share(result.conditions["isotropic"], clean),
        "lost": design.mean(lost),
        "lost_sd": design.spread(lost),
        **{f"variance_explained_{factor}": design.explained(lost, factor) for factor in FACTORS},
        "sign_consistency": design.mean((reconstruction > 0).astype(np.float64)),
        "worst_level_sign": design.worst_sign(reconstruction),
        "worst_level_share": design.worst_share(reconstruction),
    }
    return estimates | _undefined_shares(design, clean)


def _undefined_shares(design: PromptDesign, clean: Floats) -> dict[str, Estimate]:
    """Return undefined shares where the model itself does not solve the task."""
    mean = design.mean(clean)
    error = standard_error(mean)
    if error is None or mean.value > LEAST_PREFERENCE * error:
        return {}
    reason = f"the model itself does not prefer the right answer (mean logit difference {mean.value:.3g} nats)"
    return dict.fromkeys(SHARES_OF_CLEAN, Undefined(reason))


def _first_feature_estimates(design: PromptDesign, result: CircuitConditions) -> dict[str, Estimate]:
    if not result.features:
        names = [metric.name for metric in METRICS if metric.name.startswith("latent_")]
        return dict.fromkeys(names, Undefined(result.missing))
    effect, signed_effect = result.effects[0], result.signs[0] * result.effects[0]
    return {
        "latent_effect": design.mean(effect),
        "latent_effect_random": design.mean(result.random[0]),
        "latent_effect_sd": design.spread(effect),
        **{f"latent_variance_explained_{factor}": design.explained(effect, factor) for factor in FACTORS},
        "latent_sign_consistency": design.mean((signed_effect > 0).astype(np.float64)),
        "latent_worst_level_sign": design.worst_sign(signed_effect),
        "latent_worst_level_share": design.worst_share(signed_effect),
    }


def _settings(bench: Bench, circuit: CircuitSet) -> dict[str, object]:
    return {
        "choosing": CHOOSING,
        "dataset": circuit.sha256,
        "include_bos": bench.include_bos,
        "latents": FEATURES,
        "seed": bench.settings.seed,
        "tried": CANDIDATES,
    }


def _notes(circuit: CircuitSet, result: CircuitConditions, features: FeatureComparison) -> tuple[str, ...]:
    notes = [
        f"{len(circuit.prompts)} prompts in {len(circuit.clusters)} clusters, {len(result.prompts)} of them in "
        f"{len(result.clusters)} clusters scored"
    ]
    for feature, order in zip(result.features, features.only, strict=True):
        if order >= 0:
            notes.append(f"feature {feature} matters for {result.names['order'][order]} prompts only")
    if result.features:
        notes.append(f"feature {result.features[0]} has the largest effect of the features that were tried")
    return tuple(notes)


PROPERTY = Property(
    name="circuits",
    question="Does a circuit still work through the reconstruction, and in every kind of prompt?",
    primary_metric="kept",
    metrics=METRICS,
    limits=("worst_level_sign:0.1",),
    measure=measure,
    marker="concepts",
)
