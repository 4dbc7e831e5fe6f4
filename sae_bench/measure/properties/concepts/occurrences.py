"""Positions of the concepts in the corpus, in two halves that share neither a document nor a word.

A direction that is fitted and scored on the same words knows them one by one. So the halves of a concept of words split
its words as well as the documents, and the rest is not used. A class of one word, and a concept of positions, are split
by documents alone. The whole corpus is searched, whatever the tier: concepts are rare, and so a run of a smaller tier
uses the same positions.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.errors import LoadError
from sae_bench.measure.arrays import Bools, Ints
from sae_bench.measure.datasets.concept_file import UPPER_CASE, Concept, LabelledPositions, read_concepts
from sae_bench.measure.shared.document_halves import half_of_documents

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.datasets.concept_tokens import ConceptTokens

FITTED = (32, 2000)
"""Most positions of a class for fitting: of one document, and in either half. Many, because the mean
difference of few positions is mostly chance, such as their distance from the document's start."""
SCORED = (4, 200)
"Most of them that are scored; probes and searches are fitted on these as well."
FEWEST = 3
"Fewest documents with a class, in either half."
BOTH_HALVES = 2
"Number of the half of a word that is in both."


@dataclass(frozen=True, eq=False)
class ConceptPositions:
    """Positions of a concept in the corpus; rows are sorted by document."""

    name: str
    document: Ints
    "(N,)"
    position: Ints
    "(N,)"
    cluster: Ints
    "(N,) cluster ids"
    positive: Bools
    "(N,)"
    half: Ints
    "(N,) 0 or 1"
    unit: Ints
    "(N,) unit with one label that is permuted as a whole: a word, or the positions of one label in a document"
    pair: Ints
    "(N,) word pair of the position; -1 for none. All 0 where nothing is paired"
    scored: Bools
    "(N,) True for positions that are scored; all are fitted"
    tokens: ConceptTokens | None
    "None for positions."
    token_half: Ints
    "(V,) half of every token of the concept; empty for positions"

    @cached_property
    def only_scored(self) -> ConceptPositions:
        """Return the positions that are scored."""
        names = ("document", "position", "cluster", "positive", "half", "unit", "pair", "scored")
        return replace(self, **{name: getattr(self, name)[self.scored] for name in names})

    @property
    def place(self) -> list[tuple[int, int]]:
        """Return (document, position) of every row."""
        return list(zip(self.document.tolist(), self.position.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class MeasurableConcepts:
    """Concepts of a file that can be measured, and the reasons why others cannot."""

    concepts: tuple[ConceptPositions, ...]
    missing: tuple[str, ...]
    "One sentence each."
    clusters: tuple[int, ...]
    "Ids of all clusters with a concept, in the corpus's order."
    key: Hashable
    "Identity of the concepts, for results that several SAEs share."
    sha256: str
    "Of the file; '' where only upper case is measured."


def locate_concepts(bench: Bench) -> MeasurableConcepts:
    """Return upper case and every registered concept, located once for all SAEs of a site.

    Raises:
        LoadError: the file is wrong, or speaks of another vocabulary or corpus.
    """
    file = None if bench.related.concepts is None else read_concepts(bench.related.concepts)
    key = ("concepts", "" if file is None else file.sha256, bench.settings.seed)

    def locate() -> MeasurableConcepts:
        declared = () if file is None else file.concepts
        return _locate(bench, declared, "" if file is None else file.path, key, "" if file is None else file.sha256)

    return bench.site_data.shared(key, locate)


def _locate(bench: Bench, declared: Sequence[Concept], path: str, key: Hashable, sha256: str) -> MeasurableConcepts:
    from sae_bench.measure.datasets.concept_tokens import concept_tokens, upper_case_tokens, vocabulary_words

    located, missing = [], []
    tokenizer = bench.model.tokenizer
    words = None if tokenizer is None else vocabulary_words(tokenizer, bench.model.d_vocab)
    no_tokenizer = f"model {bench.model.name!r} came without a tokenizer, so no token of it has a text"
    sources: list[tuple[str, ConceptTokens | Concept | None]] = [
        (UPPER_CASE, None if words is None else upper_case_tokens(words))
    ]
    for concept in declared:
        if isinstance(concept.positive, LabelledPositions):
            sources.append((concept.name, concept))
        else:
            sources.append((concept.name, None if words is None else concept_tokens(concept, words, path)))
    for name, source in sources:
        if source is None:
            missing.append(f"concept {name!r} is left out: {no_tokenizer}")
            continue
        placed = (
            _labelled_positions(bench, source, path)
            if isinstance(source, Concept)
            else _token_positions(bench, name, source)
        )
        reason = _too_few(placed)
        if reason:
            missing.append(f"concept {name!r} is left out: {reason}")
        else:
            located.append(placed)
    present = {cluster for placed in located for cluster in placed.cluster.tolist()}
    clusters = tuple(cluster for cluster in dict.fromkeys(bench.corpus.cluster) if cluster in present)
    return MeasurableConcepts(tuple(located), tuple(missing), clusters, key, sha256)


def split_words(sets: ConceptTokens, size: int, seed: int) -> Ints:
    """Return (V,) half 0 or 1, words of a pair alike; `BOTH_HALVES` for the only word of a class, -1 for other tokens.

    By lot: neighbours in a vocabulary are often related, and taking every other word of a class would put related words
    of one class into different halves, where dealt labels do not put them.
    """
    generator, half = np.random.default_rng(seed), np.full(size, -1)
    for row, pair in enumerate(generator.permutation(np.array(sets.pairs).reshape(-1, 2))):
        half[pair] = row % 2
    for side in (sets.positive, sets.negative):
        rest = generator.permutation([token for token in side if half[token] < 0]).astype(np.int64)
        half[rest] = np.arange(len(rest)) % 2 if len(side) > 1 else BOTH_HALVES
    return half


def _token_positions(bench: Bench, name: str, sets: ConceptTokens) -> ConceptPositions:
    size = bench.model.d_vocab
    label, pair, half = (
        np.full(size, -1),
        np.full(size, -1 if sets.pairs else 0),
        split_words(sets, size, bench.settings.seed),
    )
    label[list(sets.negative)], label[list(sets.positive)] = 0, 1
    for row, couple in enumerate(sets.pairs):
        pair[list(couple)] = row
    token = bench.corpus.tokens.numpy()
    fits = (half[token] == half_of_documents(bench.corpus.cluster)[:, None]) | (half[token] == BOTH_HALVES)
    labels = np.where(fits & bench.site_data.keep.numpy(), label[token], -1)
    positions = _sample(bench, labels, name)
    ids = token[positions[0], positions[1]]
    return _concept_positions(bench, name, positions, label[ids] == 1, ids, pair[ids], sets, half)


def _labelled_positions(bench: Bench, concept: Concept, path: str) -> ConceptPositions:
    source, corpus, keep = f"concept {concept.name!r} of {path}", bench.corpus, bench.site_data.keep.numpy()
    if not corpus.sha256.startswith(concept.corpus or "none"):
        raise LoadError(
            f"{source} labels positions of corpus {concept.corpus}, but this one is {corpus.sha256[:16]}; label its own"
        )
    labels = np.full(keep.shape, -1)
    for value, side in ((0, concept.negative), (1, concept.positive)):
        for document, position in getattr(side, "places", ()):
            if document >= len(corpus) or position >= int(corpus.lengths[document]):
                raise LoadError(
                    f"{source} labels position {position} of document {document}, which the corpus does not have; "
                    f"remove it"
                )
            labels[document, position] = value
    labels[~keep] = -1
    places = _sample(bench, labels, concept.name)
    positive = labels[places[0], places[1]] == 1
    return _concept_positions(bench, concept.name, places, positive, 2 * places[0] + positive, 0 * places[0])


def _sample(bench: Bench, labels: Ints, name: str) -> tuple[Ints, Ints, Bools]:
    """Return document and position of the positions that are fitted, drawn at random, and which of them are scored."""
    random_number = np.random.default_rng([bench.settings.seed, zlib.crc32(name.encode())]).random(labels.shape)
    document, position = np.nonzero(labels >= 0)
    group = 2 * document + labels[document, position]
    order = np.lexsort((random_number[document, position], group))
    group, document, position = group[order], document[order], position[order]
    number = np.arange(len(group)) - np.searchsorted(group, group)
    class_and_half = labels[document, position] + 2 * half_of_documents(bench.corpus.cluster)[document]
    fitted, scored = (
        _first_of_side(number < per_document, class_and_half, limit) for per_document, limit in (FITTED, SCORED)
    )
    order = np.flatnonzero(fitted | scored)
    order = order[np.lexsort((position[order], document[order]))]
    return document[order], position[order], scored[order]


def _first_of_side(candidates: Bools, side: Ints, most: int) -> Bools:
    """Return (N,) the first ``most`` candidates of every side."""
    first = np.zeros(len(candidates), dtype=bool)
    for each in np.unique(side):
        first[np.flatnonzero(candidates & (side == each))[:most]] = True
    return first


def _concept_positions(
    bench: Bench,
    name: str,
    places: tuple[Ints, Ints, Bools],
    positive: Bools,
    unit: Ints,
    pair: Ints,
    tokens: ConceptTokens | None = None,
    token_half: Ints | None = None,
) -> ConceptPositions:
    document, position, scored = places
    cluster, half = np.array(bench.corpus.cluster)[document], half_of_documents(bench.corpus.cluster)[document]
    words = np.zeros(0, dtype=np.int64) if token_half is None else token_half
    return ConceptPositions(name, document, position, cluster, positive, half, unit, pair, scored, tokens, words)


def _too_few(placed: ConceptPositions) -> str:
    """Return the reason why a concept cannot be measured; '' where it can."""
    for label, verb in ((True, "have"), (False, "do not have")):
        for half in (0, 1):
            rows = placed.scored & (placed.positive == label) & (placed.half == half)
            documents = len(np.unique(placed.cluster[rows]))
            if documents < FEWEST:
                return (
                    f"positions that {verb} it are in {documents} documents of one half, and {FEWEST} are needed; "
                    f"label more of them, or build a larger corpus"
                )
    return ""
