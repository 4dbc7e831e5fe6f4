"""The arms of feature steering: which directions, on which target sets, over which prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.errors import MeasurementError
from sae_bench.measurement import Floats
from sae_bench.properties._steering_stats import Arm, Grid, Ints

if TYPE_CHECKING:
    from sae_bench.bench import Bench
    from sae_bench.steering import Responses

ARMS = (
    "feature",
    "random_direction",
    "other_feature",
    "permuted_decoder",
    "covariance_direction",
    "mean_difference",
)
SYMMETRIC = ("random_direction", "covariance_direction")
"Drawn from distributions in which a direction is as likely as its opposite."
NULL_DIRECTIONS = 64
"Random directions that a feature is tested against, in every tier."


@dataclass(frozen=True, eq=False)
class Steered:
    """All that steering found on one SAE."""

    features: tuple[int, ...]
    density: Floats
    "(F,) on the selection half."
    targets: tuple[tuple[int, ...], ...]
    arms: Mapping[str, Arm]
    null: Floats
    "(64, P, F) slopes of random directions on every target set."
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
    "Whether the prompt was run once for all directions."


def steer(bench: Bench) -> Steered:
    """Choose features, targets and prompts, and run every arm."""
    import torch

    from sae_bench import steering
    from sae_bench.sae import unit_directions
    from sae_bench.steering.choice import SELECTION_DOCUMENTS
    from sae_bench.steering.scores import lens_tokens

    selection, others = steering.halves(bench.corpus.cluster)
    selection = selection[:SELECTION_DOCUMENTS]
    documents = prompt_documents(bench, others)
    count, tokens = steering.firing_counts(bench, selection)
    seed = bench.settings.seed
    choice = steering.choose_features(count, tokens, bench.decoder_norms, seed)
    features = choice.order[: bench.settings.tier.features]
    size, width = len(features), bench.site_data.x.shape[-1]
    targets = steering.find_targets(bench, selection, features)
    decoder = unit_directions(bench.sae)
    own = decoder[list(features)]
    permuted = steering.permuted_features(choice.alive, features, seed)
    random = steering.random_directions(max(NULL_DIRECTIONS, size), width, seed)
    covariance = steering.covariance_directions(size, bench.pool().root, seed)
    parts = {
        "feature": own,
        "other_feature": own.roll(1, 0),
        "permuted_decoder": decoder[list(permuted)],
        "random_direction": random,
        "covariance_direction": covariance,
        "mean_difference": steering.mean_differences(bench, selection, targets),
    }
    runner = steering.LastPosition(bench.model, bench.site, bench.settings.memory_bytes)
    found = steering.respond(
        bench,
        runner,
        documents,
        torch.cat([part.to(own) for part in parts.values()]),
        [rank % size for part in parts.values() for rank in range(len(part))],
        targets,
    )
    rows, start = {}, 0
    for name, part in parts.items():
        rows[name] = slice(start, start + len(part))
        start += len(part)
    if not found.slopes[rows["feature"]].any():
        raise MeasurementError(
            f"adding a feature's direction at {bench.site} changes nothing at the model's output, so there is nothing "
            f"to measure; check that the site is on the way to the output"
        )
    clusters, cluster_of = prompt_clusters(bench, documents)
    grid = Grid(cluster_of, np.arange(size))
    lens = lens_tokens(bench, own)
    return Steered(
        features=features,
        density=choice.density[list(features)].numpy(),
        targets=targets.tokens,
        arms={name: _arm(found, rows[name].start, size, grid, name in SYMMETRIC) for name in ARMS},
        null=found.slopes[rows["random_direction"]][:NULL_DIRECTIONS].astype(np.float64),
        output_scores=None if lens is None else steering.output_scores(bench, runner, documents, own, lens),
        input_scores=None if lens is None else steering.input_scores(bench, selection, features, lens),
        clusters=clusters,
        cluster_of=cluster_of,
        candidates=len(choice.order),
        packed=runner.packed,
    )


def prompt_documents(bench: Bench, others: Sequence[int]) -> tuple[int, ...]:
    """Documents of the steered half, those measured only, whose prompts are steered; a prefix for a smaller tier."""
    from sae_bench.steering.responses import last_kept

    usable = [doc for doc in others if doc < bench.documents and last_kept(bench, doc) is not None]
    if len(usable) < 2:
        raise MeasurementError(
            f"steering needs prompts from two clusters that do not choose the features, and the {bench.documents} "
            f"documents measured have {len(usable)}; measure more documents"
        )
    return tuple(usable[: bench.settings.tier.prompts])


def prompt_clusters(bench: Bench, documents: Sequence[int]) -> tuple[tuple[int, ...], Ints]:
    """Cluster ids of the prompts, and (P,) each prompt's index into them."""
    ids = [bench.corpus.cluster[document] for document in documents]
    clusters = tuple(dict.fromkeys(ids))
    return clusters, np.array([clusters.index(each) for each in ids])


def _arm(found: Responses, start: int, size: int, grid: Grid, symmetric: bool) -> Arm:
    from sae_bench.steering.responses import STRENGTHS

    rows = slice(start, start + size)
    arm = Arm(found.effect[rows], found.kl[rows], found.ce[rows], grid, STRENGTHS)
    return arm.both_ways() if symmetric else arm
