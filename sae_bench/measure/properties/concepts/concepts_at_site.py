"""The concepts at the site and in the token embedding: what does not depend on the SAE, computed once a site.

Shapes: N places of a concept, d site width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.properties.concepts.ccs import (
    FEWEST_PAIRS,
    CCSResult,
    match_pairs,
    pair_differences,
    search_truth,
    truth_salience,
)
from sae_bench.measure.properties.concepts.occurrences import ConceptPositions, MeasurableConcepts
from sae_bench.measure.properties.concepts.probes import (
    Half,
    Probe,
    ProbeScore,
    cross_score,
    d_prime,
    fit_best_column,
    fit_mean_difference,
    fit_probe,
    permute_labels,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.bench import Bench

SPARSE = (1, 2, 5, 16)
"Columns of a k-sparse probe."
DIRECTIONS = 1000
"Random directions, of which the best on one half is read on the other."
PERMUTATIONS = {"smoke": 50}
MOST_PERMUTATIONS = 200
WORDS = 2000
"Words of a class in either half whose embeddings are read, at most."


@dataclass(frozen=True, eq=False)
class ConceptInEmbedding:
    """One concept in the token embedding."""

    value: float
    "Split-half AUROC over words"
    null: Floats
    "(permutations,) the same with labels dealt anew"


@dataclass(frozen=True, eq=False)
class ConceptAtSite:
    """One concept in what the SAE reads, whatever the SAE."""

    placed: ConceptPositions
    "The places that are scored."
    embedded: ConceptInEmbedding | None
    "None for positions, for a class of a single word, and where the model shows no embedding."
    readers: tuple[Probe, Probe]
    "Mean-difference directions of either half."
    found: ProbeScore
    separation: float
    "d' of held-out places along the direction"
    null: Floats
    "(permutations,) the same AUROC with labels dealt anew"
    null_directions: Floats
    "(d, permutations)"
    random: ProbeScore
    "The best of many random directions."
    probes: Mapping[int, ProbeScore]
    pairs: tuple[Ints, Ints] | None
    "Pairs of the contrast-consistent search; None where there are too few."
    searched: CCSResult | None
    truth_salience: tuple[ProbeScore, ProbeScore] | None


def measure_at_site(bench: Bench, found: MeasurableConcepts) -> tuple[ConceptAtSite, ...]:
    """Every concept at the site, once for all SAEs that look at it with the same documents and seed."""
    times = PERMUTATIONS.get(bench.settings.tier.name, MOST_PERMUTATIONS)
    return bench.site_data.shared(
        (found.key, "site", times), lambda: tuple(_at_site(bench, found, placed, times) for placed in found.concepts)
    )


def split_halves(placed: ConceptPositions, rows: Any, clusters: Sequence[int]) -> tuple[Half, Half]:
    """Both halves of a concept; ``rows`` (N, d) are its places in some space, dense or sparse."""
    number = {cluster: row for row, cluster in enumerate(clusters)}
    index = np.array([number[cluster] for cluster in placed.cluster.tolist()])
    made = []
    for half in (0, 1):
        mine = np.flatnonzero(placed.half == half)
        present, of = np.unique(index[mine], return_inverse=True)
        made.append(Half(rows[mine], placed.positive[mine], present, np.arange(len(mine)), of))
    return made[0], made[1]


def _at_site(bench: Bench, found: MeasurableConcepts, placed: ConceptPositions, times: int) -> ConceptAtSite:
    clusters, seed = len(found.clusters), bench.settings.seed
    fitted = split_halves(placed, position_rows(bench.site_data.x, placed), found.clusters)
    readers = fit_mean_difference(fitted[0]), fit_mean_difference(fitted[1])
    placed, fitted_unit = placed.only_scored, [placed.unit[placed.half == number] for number in (0, 1)]
    halves = split_halves(placed, position_rows(bench.site_data.x, placed), found.clusters)
    unit = [placed.unit[placed.half == number] for number in (0, 1)]
    null, directions = permute_labels(fitted, halves, list(zip(fitted_unit, unit, strict=True)), times, seed)
    pairs = match_pairs(placed, 0), match_pairs(placed, 1)
    searchable = min(len(each) for each in pairs) >= FEWEST_PAIRS
    apart = difference_halves(halves, pairs) if searchable else None
    return ConceptAtSite(
        placed=placed,
        embedded=measure_in_embedding(bench, placed, times),
        readers=readers,
        found=cross_score(readers, halves, clusters),
        separation=float(
            np.mean([d_prime(_along(reader, half))[0] for reader, half in zip(readers, halves[::-1], strict=True)])
        ),
        null=null,
        null_directions=directions,
        random=_best_random(halves, clusters, seed),
        probes={k: cross_score([fit_probe(half, k) for half in halves], halves, clusters) for k in SPARSE},
        pairs=pairs if searchable else None,
        searched=search_truth(apart, clusters, seed) if apart else None,
        truth_salience=truth_salience(apart, clusters) if apart else None,
    )


def measure_in_embedding(bench: Bench, placed: ConceptPositions, times: int) -> ConceptInEmbedding | None:
    """The mean-difference direction of half the words, read on the other half of them."""
    embedding = bench.model.embedding
    if placed.tokens is None or embedding is None:
        return None
    generator = np.random.default_rng(bench.settings.seed)
    none, halves, words = np.zeros(0, dtype=np.int64), [], []
    for half in (0, 1):
        sides = [_some(np.array(side)[placed.token_half[list(side)] == half], generator)
                 for side in (placed.tokens.positive, placed.tokens.negative)]  # fmt: skip
        if min(len(side) for side in sides) == 0:
            return None
        words.append(np.concatenate(sides))
        positive = np.arange(len(words[-1])) < len(sides[0])
        halves.append(Half(embedding[words[-1]].double().cpu().numpy(), positive, none, none, none))
    readers = [fit_mean_difference(half) for half in halves]
    null, _ = permute_labels(halves, halves, [(each, each) for each in words], times, bench.settings.seed)
    return ConceptInEmbedding(cross_score(readers, halves, 0).value, null)


def _some(words: Ints, generator: np.random.Generator) -> Ints:
    """At most `WORDS` of them."""
    return words if len(words) <= WORDS else np.sort(generator.choice(words, WORDS, replace=False))


def _best_random(halves: Sequence[Half], clusters: int, seed: int) -> ProbeScore:
    """The random direction that does best on one half, read on the other."""
    width = halves[0].x.shape[1]
    directions = np.random.default_rng(seed).normal(size=(width, DIRECTIONS))
    seen = [replace(half, x=half.x @ directions) for half in halves]
    return cross_score([fit_best_column(half) for half in seen], seen, clusters)


def _along(reader: Probe, half: Half) -> Half:
    scores = half.columns(reader.chosen) @ reader.weights
    return replace(half, x=scores[:, None])


def difference_halves(halves: Sequence[Half], pairs: Sequence[Ints]) -> list[Half]:
    """Return one half of differences per half of pairs."""
    return [pair_differences(half, each) for half, each in zip(halves, pairs, strict=True)]


def position_rows(table: Tensor, placed: ConceptPositions) -> Floats:
    """Return the (N, d) float64 rows of a table (docs, pos, d)."""
    found: Floats = table[placed.document, placed.position].double().numpy()
    return found
