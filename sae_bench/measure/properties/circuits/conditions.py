"""What replacing a site, and leaving single features out, does to a circuit's logit differences.

Features are chosen on one half of the clusters and measured on the other. First-order effects, code times the slope of
the logit difference along the feature's direction, say which ones are tried; the true effects on the choosing half say
which ones are taken. Effects are averaged over the prompts of an order and the largest over the orders counts, so that
a feature that matters for one order only, or helps one and harms the other, is not lost in a mean over both. Two
standard errors are taken off, so that a feature of a single name does not win by a few prompts.
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
"Features that are measured."
CANDIDATES = 16
"Features that are left out one by one on the choosing half."
ROUNDING = 1e-5
"Nats, and share of the largest clean logit difference, below which a difference is rounding: it is none."
CHOOSING = 48
"About how many prompts choose them, in every tier, so that every tier chooses the same ones."


@dataclass(frozen=True, eq=False)
class CircuitConditions:
    """All that was found on one SAE. N scored prompts, S clusters, K features."""

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
    "The chosen ones, the best first; none where no feature of the SAE has an effect."
    signs: Floats
    "(K,) of their effects on the choosing half, in the order where that is largest."
    fires: Floats
    "(K,) share of the scored prompts in which each fires."
    effects: Floats
    "(K, N) clean logit difference minus that without the feature, nats; 0 where it does not fire."
    random: Floats
    "(K, N) the same for a random direction of the length of what the feature writes, wherever it writes."
    missing: str = ""
    "Why no feature could be looked at."


def measure_conditions(bench: Bench, asked: CircuitSet) -> CircuitConditions:
    """Choose features on one half of the clusters, and run the scored half through every arm."""
    from sae_bench.measure.datasets.balanced_sampling import sample_cells, split_cells
    from sae_bench.measure.properties.circuits import logit_differences

    choosing, scored = split_cells(asked.clusters)
    chosen, missing = _choose(bench, asked, sample_cells(choosing, _clusters(asked, CHOOSING)))
    kept = sample_cells(scored, _clusters(asked, bench.settings.tier.questions))
    prompts = tuple(prompt for cluster in kept for prompt in cluster.prompts)
    given = logit_differences.tokenise_prompts(bench, asked, prompts)
    seen = logit_differences.encode_prompts(bench, given)
    rows = range(len(prompts))
    clean = logit_differences.clean_differences(bench, given)
    conditions = {
        "clean": clean,
        "sae": logit_differences.patched_differences(bench, given, rows, seen.xhat),
        "isotropic": logit_differences.patched_differences(
            bench, given, rows, logit_differences.isotropic_noise(bench, given, seen)
        ),
        "mean_ablation": logit_differences.mean_ablation_differences(bench, given),
    }
    features = tuple(chosen)
    effects, fires = _effects(bench, given, seen, features, clean)
    random, _ = _effects(bench, given, seen, features, clean, elsewhere=True)
    return CircuitConditions(
        prompts=prompts,
        cluster_of=np.repeat(np.arange(len(kept)), [len(cluster.prompts) for cluster in kept]),
        clusters=tuple(cluster.id for cluster in kept),
        factors={name: level_numbers([prompt.factors[name] for prompt in prompts]) for name in FACTORS},
        names={name: tuple(sorted({prompt.factors[name] for prompt in prompts})) for name in FACTORS},
        conditions={name: _rounded(values, clean) for name, values in conditions.items()},
        features=features,
        signs=np.array(list(chosen.values())),
        fires=fires,
        effects=effects,
        random=random,
        missing=missing,
    )


def _clusters(asked: CircuitSet, prompts: int | None) -> int | None:
    """Clusters that hold about so many prompts."""
    return None if prompts is None else -(-prompts * len(asked.clusters) // len(asked.prompts))


def _choose(bench: Bench, asked: CircuitSet, clusters: tuple[PromptCluster, ...]) -> tuple[dict[int, float], str]:
    """The features with the largest effects in any order, each with its sign there; else none, and why."""
    from sae_bench.measure.properties.circuits import logit_differences

    given = logit_differences.tokenise_prompts(
        bench, asked, [prompt for cluster in clusters for prompt in cluster.prompts]
    )
    seen = logit_differences.encode_prompts(bench, given)
    orders = level_numbers([prompt.factors["order"] for prompt in given.asked])
    cluster_of = np.repeat(np.arange(len(clusters)), [len(cluster.prompts) for cluster in clusters])
    try:
        first = logit_differences.first_order_effects(bench, given, seen).numpy().T
    except MeasurementError as error:
        return {}, str(error)
    told = np.max([np.abs(first[:, orders == order].mean(1)) for order in np.unique(orders)], axis=0)
    tried = tuple(int(feature) for feature in np.argsort(-told, kind="stable")[:CANDIDATES] if told[feature] > 0)
    effects, _ = _effects(bench, given, seen, tried, logit_differences.clean_differences(bench, given))
    score, sign = _sure(effects, orders, cluster_of)
    chosen = {
        tried[rank]: float(sign[rank]) for rank in np.argsort(-score, kind="stable")[:FEATURES] if score[rank] > 0
    }
    return chosen, "" if chosen else "leaving out any feature of the SAE changes no logit difference"


def _sure(effects: Floats, orders: Ints, cluster_of: Ints) -> tuple[Floats, Floats]:
    """Of effects (K, N), the size that their mean surely has in the order where that is largest, and its sign; (K,).

    The mean's size less two standard errors, between clusters of prompts (N,); 0 where that is less.
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
    given: TokenisedPrompts,
    seen: EncodedPrompts,
    features: tuple[int, ...],
    clean: Floats,
    elsewhere: bool = False,
) -> tuple[Floats, Floats]:
    """Effects (K, N) of leaving each feature out, and the share of prompts it fires in.

    ``elsewhere`` takes the length of what it writes out of a random direction instead, one for each rank.
    """
    from sae_bench.measure.properties.circuits import logit_differences
    from sae_bench.measure.shared.keyed_random import random_directions

    effects, fires = np.zeros((len(features), len(clean))), np.zeros(len(features))
    directions = random_directions(len(features) or 1, bench.site_data.x.shape[-1], bench.settings.seed)
    for rank, feature in enumerate(features):
        written = {
            row: found
            for row in range(len(clean))
            if (found := logit_differences.feature_contribution(bench, given, seen, row, feature)) is not None
        }
        rows = list(written)
        if elsewhere:
            written = {
                row: each.norm(dim=-1, keepdim=True) * directions[rank].to(each) for row, each in written.items()
            }
        lacking = [given.read[row].x - written[row] for row in rows]
        effects[rank, rows] = clean[rows] - logit_differences.patched_differences(bench, given, rows, lacking)
        fires[rank] = len(rows) / max(len(clean), 1)
        bench.show_progress("circuits: features", rank + 1, len(features))
    return _rounded(effects, clean), fires


def _rounded(values: Floats, clean: Floats) -> Floats:
    """0 where a value is rounding, beside these clean logit differences."""
    return np.where(np.abs(values) > ROUNDING * max(1.0, float(np.abs(clean).max(initial=0.0))), values, 0.0)
