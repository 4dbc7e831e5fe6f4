"""Conditions of `steering`: directions, target sets and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_bench.errors import MeasurementError
from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.properties.steering.condition_slopes import ConditionSlopes
from sae_bench.measure.shared.two_way_clusters import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.bench import Bench
    from sae_bench.measure.properties.steering.responses import SteeringResponses
    from sae_bench.measure.properties.steering.steered_features import FeatureChoice
    from sae_bench.measure.properties.steering.target_tokens import TargetTokens
    from sae_bench.measure.shared.last_position import LastPositionRunner

CONDITIONS = (
    "feature",
    "random_direction",
    "other_feature",
    "permuted_decoder",
    "covariance_direction",
    "mean_difference",
)
SYMMETRIC = ("random_direction", "covariance_direction")
"Conditions whose directions are as likely as their opposites."
RANDOM = 64
"Random directions with which a feature is compared, in every tier."
OTHERS = 128
"Other features with which a feature is compared, in every tier."


@dataclass(frozen=True, eq=False)
class SteeringConditions:
    """Effects of one SAE's features and of the directions they are compared with."""

    features: tuple[int, ...]
    density: Floats
    "(F,) on the selection half."
    targets: tuple[tuple[int, ...], ...]
    conditions: Mapping[str, ConditionSlopes]
    random: Floats
    "(64, P, F) slopes of random directions on every target set."
    others: Floats
    "(R, P, F) slopes of alive features' directions on every target set; R is 128, or all of a smaller SAE's."
    counted: NDArray[np.bool_]
    "(R, F), False where one of `others` is the feature itself."
    output_scores: Floats | None
    "(F, P); None where the site has no logit lens."
    input_scores: Floats | None
    "(F,); None where the site has no logit lens."
    clusters: tuple[int, ...]
    "Ids of the prompts' clusters."
    cluster_of: Ints
    "(P,) index into `clusters`."
    candidates: int
    "Features that passed the rule."
    packed: bool
    "True when the prompt was run once for all directions."


@dataclass(frozen=True, eq=False)
class _Selection:
    """Features, targets and documents that the selection half determines."""

    selection: tuple[int, ...]
    "Its documents that are used."
    choice: FeatureChoice
    features: tuple[int, ...]
    targets: TargetTokens


def measure_conditions(bench: Bench) -> SteeringConditions:
    """Choose features, targets and prompts, and run every condition."""
    from sae_bench.measure.properties.steering.directions import other_features
    from sae_bench.measure.properties.steering.scores import input_scores, lens_tokens, output_scores
    from sae_bench.measure.properties.steering.steered_features import SELECTION_DOCUMENTS
    from sae_bench.measure.shared.document_halves import document_halves
    from sae_bench.measure.shared.last_position import LastPositionRunner

    selection, steered_half = document_halves(bench.corpus.cluster)
    documents = prompt_documents(bench, steered_half)
    chosen = _choose_on_selection_half(bench, selection[:SELECTION_DOCUMENTS])
    features, size, seed = chosen.features, len(chosen.features), bench.settings.seed
    compared = other_features(chosen.choice.alive, features, max(OTHERS, size), seed)
    runner = LastPositionRunner(bench.model, bench.site, bench.settings.memory_bytes)
    directions, rows = _directions(bench, chosen, compared)
    responses = _respond(bench, runner, documents, chosen.targets, directions, rows)
    clusters, cluster_of = prompt_clusters(bench, documents)
    grid = Grid(cluster_of, np.arange(size))
    own = directions[rows["feature"]]
    lens = lens_tokens(bench, own)
    slopes = responses.slopes.astype(np.float64)  # (64 + R, P, F)
    return SteeringConditions(
        features=features,
        density=chosen.choice.density[list(features)].numpy(),
        targets=chosen.targets.tokens,
        conditions={
            name: _condition_slopes(responses, index * size, size, grid, name in SYMMETRIC)
            for index, name in enumerate(CONDITIONS)
        },
        random=slopes[:RANDOM],
        others=slopes[RANDOM:],
        counted=np.array(compared[:OTHERS])[:, None] != np.array(features)[None, :],
        output_scores=None if lens is None else output_scores(bench, runner, documents, own, lens),
        input_scores=None if lens is None else input_scores(bench, chosen.selection, features, lens),
        clusters=clusters,
        cluster_of=cluster_of,
        candidates=len(chosen.choice.order),
        packed=runner.packed,
    )


def _choose_on_selection_half(bench: Bench, selection: tuple[int, ...]) -> _Selection:
    from sae_bench.measure.properties.steering.steered_features import choose_features, firing_counts
    from sae_bench.measure.properties.steering.target_tokens import find_targets

    count, tokens = firing_counts(bench, selection)
    choice = choose_features(count, tokens, bench.decoder_norms, bench.settings.seed)
    features = choice.order[: bench.settings.tier.features]
    return _Selection(selection, choice, features, find_targets(bench, selection, features))


def _directions(bench: Bench, chosen: _Selection, compared: Sequence[int]) -> tuple[Tensor, dict[str, slice]]:
    """Return (D, d) unit vectors of all conditions, and the rows of each."""
    import torch

    from sae_bench.measure.properties.steering.directions import covariance_directions
    from sae_bench.measure.properties.steering.target_tokens import mean_differences
    from sae_bench.measure.shared.keyed_random import random_directions
    from sae_bench.sae import unit_directions

    size, width, seed = len(chosen.features), bench.site_data.x.shape[-1], bench.settings.seed
    decoder = unit_directions(bench.sae)
    parts = {
        "feature": decoder[list(chosen.features)],
        "permuted_decoder": decoder[list(compared)],
        "random_direction": random_directions(max(RANDOM, size), width, seed),
        "covariance_direction": covariance_directions(size, bench.noise_pool().root, seed),
        "mean_difference": mean_differences(bench, chosen.selection, chosen.targets),
    }
    rows, start = {}, 0
    for name, part in parts.items():
        rows[name] = slice(start, start + len(part))
        start += len(part)
    return torch.cat([part.to(decoder) for part in parts.values()]), rows


def _respond(
    bench: Bench,
    runner: LastPositionRunner,
    documents: Sequence[int],
    targets: TargetTokens,
    directions: Tensor,
    rows: Mapping[str, slice],
) -> SteeringResponses:
    """Return the responses of every condition's pairs, in the order of `CONDITIONS`, and the slopes of controls."""
    from sae_bench.measure.properties.steering.responses import measure_responses

    size = targets.weights.shape[1]
    # The direction of feature i - 1, which is run already, is the other one for the targets of feature i.
    rows_of = {name: [span.start + rank for rank in range(size)] for name, span in rows.items()}
    rows_of["other_feature"] = [(rank - 1) % size for rank in range(size)]
    pairs = [(rows_of[name][rank], rank) for name in CONDITIONS for rank in range(size)]
    random_rows, other_rows = rows["random_direction"], rows["permuted_decoder"]
    compared = [
        *range(random_rows.start, random_rows.start + RANDOM),
        *range(other_rows.start, other_rows.stop)[:OTHERS],
    ]
    responses = measure_responses(bench, runner, documents, directions, pairs, compared, targets)
    if not np.ptp(responses.effect[:size], axis=-1).any():
        raise MeasurementError(
            f"adding a feature's direction at {bench.site} changes nothing at the model's output, so there is nothing "
            f"to measure; check that the site is on the way to the output"
        )
    return responses


def prompt_documents(bench: Bench, steered_half: Sequence[int]) -> tuple[int, ...]:
    """Return measured documents of the steered half whose prompts are steered; a smaller tier's are a prefix."""
    from sae_bench.measure.properties.steering.responses import last_prompt_position

    usable = [
        document
        for document in steered_half
        if document < bench.n_documents and last_prompt_position(bench, document) is not None
    ]
    if len(usable) < 2:
        raise MeasurementError(
            f"steering needs prompts from two clusters that do not choose the features, and the {bench.n_documents} "
            f"documents measured have {len(usable)}; measure more documents"
        )
    return tuple(usable[: bench.settings.tier.prompts])


def prompt_clusters(bench: Bench, documents: Sequence[int]) -> tuple[tuple[int, ...], Ints]:
    """Return the cluster ids of the prompts, and (P,) each prompt's index into them."""
    ids = [bench.corpus.cluster[document] for document in documents]
    clusters = tuple(dict.fromkeys(ids))
    return clusters, np.array([clusters.index(each) for each in ids])


def _condition_slopes(
    responses: SteeringResponses, start: int, size: int, grid: Grid, symmetric: bool
) -> ConditionSlopes:
    from sae_bench.measure.properties.steering.responses import STRENGTHS

    rows = slice(start, start + size)
    condition = ConditionSlopes(responses.effect[rows], responses.kl[rows], responses.ce[rows], grid, STRENGTHS)
    return condition.both_ways() if symmetric else condition
