"""Concepts at the site and in the token embedding: everything that does not depend on the SAE.

Shapes: N positions of a concept, d site width, V vocabulary.
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
"Random directions, of which the best on one half is scored on the other."
PERMUTATIONS = {"smoke": 50}
MOST_PERMUTATIONS = 200
WORDS = 2000
"Most words of a class, in either half, whose embeddings are scored."


@dataclass(frozen=True, eq=False)
class ConceptInEmbedding:
    """One concept in the token embedding."""

    value: float
    "Split-half AUROC over words"
    permuted: Floats
    "(permutations,) AUROC with permuted labels"


@dataclass(frozen=True, eq=False)
class ConceptAtSite:
    """One concept in the site's activations, for all SAEs."""

    positions: ConceptPositions
    "Scored positions."
    embedding: ConceptInEmbedding | None
    "None for positions, for a class of a single word, and where the model shows no embedding."
    direction_probes: tuple[Probe, Probe]
    "Mean-difference directions of either half."
    auroc: ProbeScore
    "Of the mean difference of either half, on the other half."
    separation: float
    "d' of held-out positions along the direction"
    permuted_auroc: Floats
    "(permutations,) AUROC with permuted labels"
    permuted_directions: Floats
    "(d, permutations)"
    random: ProbeScore
    "The best of many random directions."
    probes: Mapping[int, ProbeScore]
    pairs: tuple[Ints, Ints] | None
    "Pairs of the contrast-consistent search; None where there are too few."
    ccs: CCSResult | None
    salience: tuple[ProbeScore, ProbeScore] | None
    "`truth_salience` of its pairs; None where there are too few."


def measure_at_site(bench: Bench, concepts: MeasurableConcepts) -> tuple[ConceptAtSite, ...]:
    """Return every concept at the site, measured once for all SAEs with the same documents and seed."""
    times = PERMUTATIONS.get(bench.settings.tier.name, MOST_PERMUTATIONS)
    key = (concepts.key, "site", times)
    return bench.site_data.shared(
        key, lambda: tuple(_at_site(bench, concepts, positions, times) for positions in concepts.concepts)
    )


def split_halves(positions: ConceptPositions, rows: Any, clusters: Sequence[int]) -> tuple[Half, Half]:
    """Return both halves of a concept; ``rows`` (N, d) are its positions in some space, dense or sparse."""
    number = {cluster: row for row, cluster in enumerate(clusters)}
    index = np.array([number[cluster] for cluster in positions.cluster.tolist()])
    halves = []
    for half in (0, 1):
        inside = np.flatnonzero(positions.half == half)
        present, of = np.unique(index[inside], return_inverse=True)
        halves.append(Half(rows[inside], positions.positive[inside], present, np.arange(len(inside)), of))
    return halves[0], halves[1]


def _at_site(bench: Bench, concepts: MeasurableConcepts, fitted: ConceptPositions, times: int) -> ConceptAtSite:
    clusters, seed, x = len(concepts.clusters), bench.settings.seed, bench.site_data.x
    scored = fitted.only_scored
    fitted_halves, halves = (
        split_halves(positions, position_rows(x, positions), concepts.clusters) for positions in (fitted, scored)
    )
    probes = fit_mean_difference(fitted_halves[0]), fit_mean_difference(fitted_halves[1])
    units = [(fitted.unit[fitted.half == number], scored.unit[scored.half == number]) for number in (0, 1)]
    permuted_auroc, permuted_directions = permute_labels(fitted_halves, halves, units, times, seed)
    pairs = match_pairs(scored, 0), match_pairs(scored, 1)
    searchable = min(map(len, pairs)) >= FEWEST_PAIRS
    pair_halves = difference_halves(halves, pairs) if searchable else None
    projected = [_projected_half(probe, half) for probe, half in zip(probes, halves[::-1], strict=True)]
    return ConceptAtSite(
        positions=scored,
        embedding=measure_in_embedding(bench, scored, times),
        direction_probes=probes,
        auroc=cross_score(probes, halves, clusters),
        separation=float(np.mean([d_prime(half)[0] for half in projected])),
        permuted_auroc=permuted_auroc,
        permuted_directions=permuted_directions,
        random=_best_random(halves, clusters, seed),
        probes={k: cross_score([fit_probe(half, k) for half in halves], halves, clusters) for k in SPARSE},
        pairs=pairs if searchable else None,
        ccs=search_truth(pair_halves, clusters, seed) if pair_halves else None,
        salience=truth_salience(pair_halves, clusters) if pair_halves else None,
    )


def measure_in_embedding(bench: Bench, positions: ConceptPositions, times: int) -> ConceptInEmbedding | None:
    """Score the mean-difference direction of half the words on the other half of them."""
    embedding = bench.model.embedding
    if positions.tokens is None or embedding is None:
        return None
    generator = np.random.default_rng(bench.settings.seed)
    no_rows, halves, words = np.zeros(0, dtype=np.int64), [], []
    for half in (0, 1):
        sides = [_sample_words(np.array(side)[positions.token_half[list(side)] == half], generator)
                 for side in (positions.tokens.positive, positions.tokens.negative)]  # fmt: skip
        if min(len(side) for side in sides) == 0:
            return None
        words.append(np.concatenate(sides))
        positive = np.arange(len(words[-1])) < len(sides[0])
        halves.append(Half(embedding[words[-1]].double().cpu().numpy(), positive, no_rows, no_rows, no_rows))
    probes = [fit_mean_difference(half) for half in halves]
    permuted, _ = permute_labels(halves, halves, [(each, each) for each in words], times, bench.settings.seed)
    return ConceptInEmbedding(cross_score(probes, halves, 0).value, permuted)


def _sample_words(words: Ints, generator: np.random.Generator) -> Ints:
    """Return at most `WORDS` of the words."""
    return words if len(words) <= WORDS else np.sort(generator.choice(words, WORDS, replace=False))


def _best_random(halves: Sequence[Half], clusters: int, seed: int) -> ProbeScore:
    """Return the score of the random direction that does best on one half, on the other half."""
    width = halves[0].x.shape[1]
    directions = np.random.default_rng(seed).normal(size=(width, DIRECTIONS))
    projected = [replace(half, x=half.x @ directions) for half in halves]
    return cross_score([fit_best_column(half) for half in projected], projected, clusters)


def _projected_half(probe: Probe, half: Half) -> Half:
    scores = half.columns(probe.chosen) @ probe.weights
    return replace(half, x=scores[:, None])


def difference_halves(halves: Sequence[Half], pairs: Sequence[Ints]) -> list[Half]:
    """Return one half of differences per half of pairs."""
    return [pair_differences(half, each) for half, each in zip(halves, pairs, strict=True)]


def position_rows(table: Tensor, positions: ConceptPositions) -> Floats:
    """Return the (N, d) float64 rows of a table (docs, pos, d)."""
    rows: Floats = table[positions.document, positions.position].double().numpy()
    return rows
