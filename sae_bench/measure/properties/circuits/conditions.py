"""Conditions of `circuits`: the site replaced, and single features left out.

Features are chosen on one half of the clusters and measured on the other. First-order effects, code times the slope of
the logit difference along the feature's direction, select the candidates; their true effects on the choosing half
select the features. Effects are averaged over the prompts of an order and the largest over the orders counts, so that a
feature that matters for one order only, or helps one and harms the other, is not lost in a mean over both. Two standard
errors are subtracted, so that a feature of a single name does not win by a few prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.errors import MeasurementError
from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.datasets.circuit_file import FACTORS, CircuitPrompt, CircuitSet, PromptCluster
from sae_bench.measure.shared.factor_variance import level_numbers

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.properties.circuits.logit_differences import EncodedPrompts, TokenisedPrompts

FEATURES = 8
"Most features that are measured."
CANDIDATES = 16
"Most features that are left out one by one on the choosing half."
ROUNDING = 1e-5
"Nats, and share of the largest clean logit difference, below which a difference is rounding and counts as 0."
CHOOSING = 48
"About how many prompts choose the features, in every tier, so that every tier chooses the same ones."


@dataclass(frozen=True, eq=False)
class CircuitConditions:
    """Logit differences of one SAE. N scored prompts, S clusters, K features."""

    prompts: tuple[CircuitPrompt, ...]
    cluster_of: Ints
    "(N,) index into `clusters`."
    clusters: tuple[int, ...]
    factors: Mapping[str, Ints]
    "(N,) each, level of every factor as a number, in the order of `names`."
    names: Mapping[str, tuple[str, ...]]
    "Levels of every factor by name."
    conditions: Mapping[str, Floats]
    "(N,) logit differences, nats: `clean`, `sae`, `isotropic`, `mean_ablation`."
    features: tuple[int, ...]
    "Chosen features, the largest effect first; empty where no feature of the SAE has an effect."
    signs: Floats
    "(K,) of their effects on the choosing half, in the order where that is largest."
    fires: Floats
    "(K,) share of the scored prompts in which each fires."
    effects: Floats
    "(K, N) clean logit difference minus that without the feature, nats; 0 where it does not fire."
    random: Floats
    "(K, N) effects of leaving out a random direction as long as the feature's contribution, where the feature fires."
    missing: str = ""
    "Reason why no feature could be measured."


def measure_conditions(bench: Bench, circuit: CircuitSet) -> CircuitConditions:
    """Choose features on one half of the clusters, and measure the scored half under every condition."""
    from sae_bench.measure.datasets.balanced_sampling import sample_cells, split_cells
    from sae_bench.measure.properties.circuits import logit_differences

    choosing, scored = split_cells(circuit.clusters)
    chosen, missing = _choose_features(bench, circuit, sample_cells(choosing, _cluster_count(circuit, CHOOSING)))
    scored_clusters = sample_cells(scored, _cluster_count(circuit, bench.settings.tier.questions))
    prompts = tuple(prompt for cluster in scored_clusters for prompt in cluster.prompts)
    tokenised = logit_differences.tokenise_prompts(bench, circuit, prompts)
    encoded = logit_differences.encode_prompts(bench, tokenised)
    rows = range(len(prompts))
    clean = logit_differences.clean_differences(bench, tokenised)
    conditions = {
        "clean": clean,
        "sae": logit_differences.patched_differences(bench, tokenised, rows, encoded.xhat),
        "isotropic": logit_differences.patched_differences(
            bench, tokenised, rows, logit_differences.isotropic_noise(bench, tokenised, encoded)
        ),
        "mean_ablation": logit_differences.mean_ablation_differences(bench, tokenised),
    }
    features = tuple(chosen)
    effects, fires = _effects(bench, tokenised, encoded, features, clean)
    random, _ = _effects(bench, tokenised, encoded, features, clean, random=True)
    return CircuitConditions(
        prompts=prompts,
        cluster_of=np.repeat(np.arange(len(scored_clusters)), [len(cluster.prompts) for cluster in scored_clusters]),
        clusters=tuple(cluster.id for cluster in scored_clusters),
        factors={name: level_numbers([prompt.factors[name] for prompt in prompts]) for name in FACTORS},
        names={name: tuple(sorted({prompt.factors[name] for prompt in prompts})) for name in FACTORS},
        conditions={name: _without_rounding(values, clean) for name, values in conditions.items()},
        features=features,
        signs=np.array(list(chosen.values())),
        fires=fires,
        effects=effects,
        random=random,
        missing=missing,
    )


def _cluster_count(circuit: CircuitSet, prompts: int | None) -> int | None:
    """Return the number of clusters with about so many prompts."""
    return None if prompts is None else -(-prompts * len(circuit.clusters) // len(circuit.prompts))


def _choose_features(
    bench: Bench, circuit: CircuitSet, clusters: tuple[PromptCluster, ...]
) -> tuple[dict[int, float], str]:
    """Return the features with the largest effects in any order, each with its sign; else none, and the reason."""
    from sae_bench.measure.properties.circuits import logit_differences

    tokenised = logit_differences.tokenise_prompts(
        bench, circuit, [prompt for cluster in clusters for prompt in cluster.prompts]
    )
    encoded = logit_differences.encode_prompts(bench, tokenised)
    orders = level_numbers([prompt.factors["order"] for prompt in tokenised.items])
    cluster_of = np.repeat(np.arange(len(clusters)), [len(cluster.prompts) for cluster in clusters])
    try:
        effects_by_feature = logit_differences.first_order_effects(bench, tokenised, encoded).numpy().T
    except MeasurementError as error:
        return {}, str(error)
    first_order = np.max(
        [np.abs(effects_by_feature[:, orders == order].mean(1)) for order in np.unique(orders)], axis=0
    )
    candidates = tuple(
        int(feature) for feature in np.argsort(-first_order, kind="stable")[:CANDIDATES] if first_order[feature] > 0
    )
    effects, _ = _effects(bench, tokenised, encoded, candidates, logit_differences.clean_differences(bench, tokenised))
    score, sign = _lower_bounds(effects, orders, cluster_of)
    chosen = {
        candidates[rank]: float(sign[rank]) for rank in np.argsort(-score, kind="stable")[:FEATURES] if score[rank] > 0
    }
    return chosen, "" if chosen else "leaving out any feature of the SAE changes no logit difference"


def _lower_bounds(effects: Floats, orders: Ints, cluster_of: Ints) -> tuple[Floats, Floats]:
    """Return mean effects less two standard errors, in the order where they are largest, and their signs; (K,) each.

    Standard errors of effects (K, N) are between clusters of prompts (N,). A size that would be negative is 0.
    """
    member = (cluster_of[:, None] == np.unique(cluster_of)[None, :]).astype(np.float64)
    sizes, signs = [], []
    for order in np.unique(orders):
        inside = orders == order
        means = effects[:, inside] @ member[inside] / member[inside].sum(0)  # (K, clusters)
        mean, error = means.mean(1), means.std(1, ddof=1) / np.sqrt(means.shape[1])
        sizes.append(np.maximum(np.abs(mean) - 2 * error, 0.0))
        signs.append(np.sign(mean))
    best = np.argmax(sizes, axis=0)[None]
    return np.take_along_axis(np.stack(sizes), best, 0)[0], np.take_along_axis(np.stack(signs), best, 0)[0]


def _effects(
    bench: Bench,
    tokenised: TokenisedPrompts,
    encoded: EncodedPrompts,
    features: tuple[int, ...],
    clean: Floats,
    random: bool = False,
) -> tuple[Floats, Floats]:
    """Return effects (K, N) of leaving each feature out, and the share of prompts in which it fires.

    With ``random``, a random direction as long as the feature's contribution is left out instead, one for each rank.
    """
    from sae_bench.measure.properties.circuits import logit_differences
    from sae_bench.measure.shared.keyed_random import random_directions

    effects, fires = np.zeros((len(features), len(clean))), np.zeros(len(features))
    directions = random_directions(len(features) or 1, bench.site_data.x.shape[-1], bench.settings.seed)
    for rank, feature in enumerate(features):
        contributions = {
            row: logit_differences.feature_contribution(bench, tokenised, encoded, row, feature)
            for row in range(len(clean))
        }
        written = {row: contribution for row, contribution in contributions.items() if contribution is not None}
        rows = list(written)
        if random:
            written = {
                row: each.norm(dim=-1, keepdim=True) * directions[rank].to(each) for row, each in written.items()
            }
        patched = [tokenised.prompts[row].x - written[row] for row in rows]
        effects[rank, rows] = clean[rows] - logit_differences.patched_differences(bench, tokenised, rows, patched)
        fires[rank] = len(rows) / max(len(clean), 1)
        bench.show_progress("circuits: features", rank + 1, len(features))
    return _without_rounding(effects, clean), fires


def _without_rounding(values: Floats, clean: Floats) -> Floats:
    """Replace values that are rounding, compared with these clean logit differences, by 0."""
    return np.where(np.abs(values) > ROUNDING * max(1.0, float(np.abs(clean).max(initial=0.0))), values, 0.0)
