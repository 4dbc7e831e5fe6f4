"""Where the concepts stand in the corpus, in two halves that share neither a document nor a word.

A direction that is fitted on some words and read on the same words knows them one by one; so the halves of a concept of
words split its words as well as the documents, and what is in neither half is not used. A class of one word, and a
concept of positions, are split by documents alone. The whole corpus is looked through, whatever the tier: concepts are
rare, and a run of a smaller tier then speaks of the same places.
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

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.datasets.concept_tokens import ConceptTokens

FITTED = (32, 2000)
"""Places of a class that a direction is fitted on, at most: of one document, and in either half. Many, because the mean
difference of few places is mostly what they differ in by chance, such as how far into the document they stand."""
SCORED = (4, 200)
"Those of them that everything is scored on, and probes and searches are fitted on as well."
FEWEST = 3
"Documents that a class must stand in, in either half."
BOTH = 2
"The half of a word that is in both."


@dataclass(frozen=True, eq=False)
class ConceptPositions:
    """A concept's places in the corpus; rows are sorted by document."""

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
    "(N,) what has one label and is permuted as a whole: a word, or the places of one label in a document"
    pair: Ints
    "(N,) which word pair the place belongs to; -1 for none. All 0 where nothing is paired"
    scored: Bools
    "(N,) whether the place is scored; all are fitted on"
    tokens: ConceptTokens | None
    "None for positions."
    token_half: Ints
    "(V,) half of every token of the concept; empty for positions"

    @cached_property
    def only_scored(self) -> ConceptPositions:
        """The places that are scored."""
        names = ("document", "position", "cluster", "positive", "half", "unit", "pair", "scored")
        return replace(self, **{name: getattr(self, name)[self.scored] for name in names})

    @property
    def place(self) -> list[tuple[int, int]]:
        """(document, position) of every row."""
        return list(zip(self.document.tolist(), self.position.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class MeasurableConcepts:
    """All concepts of a file that can be measured, and why others cannot."""

    concepts: tuple[ConceptPositions, ...]
    missing: tuple[str, ...]
    "A sentence each."
    clusters: tuple[int, ...]
    "Ids of all clusters that a concept stands in, in the corpus's order."
    key: Hashable
    "What they follow from, for results that several SAEs share."
    sha256: str
    "Of the file; '' where only upper case is measured."


def locate_concepts(bench: Bench) -> MeasurableConcepts:
    """Upper case and every registered concept, once for all SAEs of a site.

    Raises:
        LoadError: the file is wrong, or speaks of another vocabulary or corpus.
    """
    file = None if bench.related.concepts is None else read_concepts(bench.related.concepts)
    key = ("concepts", "" if file is None else file.sha256, bench.settings.seed)

    def place() -> MeasurableConcepts:
        declared = () if file is None else file.concepts
        return _place(bench, declared, "" if file is None else file.path, key, "" if file is None else file.sha256)

    return bench.site_data.shared(key, place)


def _place(bench: Bench, declared: Sequence[Concept], path: str, key: Hashable, sha256: str) -> MeasurableConcepts:
    from sae_bench.measure.datasets.concept_tokens import concept_tokens, upper_case_tokens, vocabulary_words

    found, missing = [], []
    tokenizer = bench.model.tokenizer
    words = None if tokenizer is None else vocabulary_words(tokenizer, bench.model.d_vocab)
    without = f"model {bench.model.name!r} came without a tokenizer, so no token of it has a text"
    asked: list[tuple[str, ConceptTokens | Concept | None]] = [
        (UPPER_CASE, None if words is None else upper_case_tokens(words))
    ]
    for concept in declared:
        if isinstance(concept.positive, LabelledPositions):
            asked.append((concept.name, concept))
        else:
            asked.append((concept.name, None if words is None else concept_tokens(concept, words, path)))
    for name, what in asked:
        if what is None:
            missing.append(f"concept {name!r} is left out: {without}")
            continue
        placed = _positions(bench, what, path) if isinstance(what, Concept) else _tokens(bench, name, what)
        why = _too_few(placed)
        if why:
            missing.append(f"concept {name!r} is left out: {why}")
        else:
            found.append(placed)
    present = {cluster for placed in found for cluster in placed.cluster.tolist()}
    clusters = tuple(cluster for cluster in dict.fromkeys(bench.corpus.cluster) if cluster in present)
    return MeasurableConcepts(tuple(found), tuple(missing), clusters, key, sha256)


def split_words(sets: ConceptTokens, size: int, seed: int) -> Ints:
    """(V,) 0 or 1, words of a pair alike; `BOTH` for the only word of a class, -1 for tokens of neither class.

    By lot: neighbours in a vocabulary are often related, and taking every other word of a class would put related words
    of one class into different halves, where dealt labels do not put them.
    """
    generator, half = np.random.default_rng(seed), np.full(size, -1)
    for row, pair in enumerate(generator.permutation(np.array(sets.pairs).reshape(-1, 2))):
        half[pair] = row % 2
    for side in (sets.positive, sets.negative):
        rest = generator.permutation([token for token in side if half[token] < 0]).astype(np.int64)
        half[rest] = np.arange(len(rest)) % 2 if len(side) > 1 else BOTH
    return half


def _tokens(bench: Bench, name: str, sets: ConceptTokens) -> ConceptPositions:
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
    fits = (half[token] == halves_of_documents(bench)[:, None]) | (half[token] == BOTH)
    labels = np.where(fits & bench.site_data.keep.numpy(), label[token], -1)
    places = _sample(bench, labels, name)
    ids = token[places[0], places[1]]
    return _placed(bench, name, places, label[ids] == 1, ids, pair[ids], sets, half)


def _positions(bench: Bench, concept: Concept, path: str) -> ConceptPositions:
    where, corpus, keep = f"concept {concept.name!r} of {path}", bench.corpus, bench.site_data.keep.numpy()
    if not corpus.sha256.startswith(concept.corpus or "none"):
        raise LoadError(
            f"{where} labels positions of corpus {concept.corpus}, but this one is {corpus.sha256[:16]}; label its own"
        )
    labels = np.full(keep.shape, -1)
    for value, side in ((0, concept.negative), (1, concept.positive)):
        for document, position in getattr(side, "places", ()):
            if document >= len(corpus) or position >= int(corpus.lengths[document]):
                raise LoadError(
                    f"{where} labels position {position} of document {document}, which the corpus does not have; "
                    f"remove it"
                )
            labels[document, position] = value
    labels[~keep] = -1
    places = _sample(bench, labels, concept.name)
    positive = labels[places[0], places[1]] == 1
    return _placed(bench, concept.name, places, positive, 2 * places[0] + positive, 0 * places[0])


def halves_of_documents(bench: Bench) -> Ints:
    """(docs,) 0 or 1: every other cluster of the corpus."""
    number = {cluster: row for row, cluster in enumerate(dict.fromkeys(bench.corpus.cluster))}
    return np.array([number[cluster] % 2 for cluster in bench.corpus.cluster])


def _sample(bench: Bench, labels: Ints, name: str) -> tuple[Ints, Ints, Bools]:
    """Document and position of the places that are fitted on, by lot, and which of them are scored."""
    lot = np.random.default_rng([bench.settings.seed, zlib.crc32(name.encode())]).random(labels.shape)
    document, position = np.nonzero(labels >= 0)
    group = 2 * document + labels[document, position]
    order = np.lexsort((lot[document, position], group))
    group, document, position = group[order], document[order], position[order]
    number = np.arange(len(group)) - np.searchsorted(group, group)
    side = labels[document, position] + 2 * halves_of_documents(bench)[document]
    fitted, scored = (_first(number < each, side, most) for each, most in (FITTED, SCORED))
    order = np.flatnonzero(fitted | scored)
    order = order[np.lexsort((position[order], document[order]))]
    return document[order], position[order], scored[order]


def _first(candidates: Bools, side: Ints, most: int) -> Bools:
    """(N,) the first ``most`` candidates of every side."""
    found = np.zeros(len(candidates), dtype=bool)
    for each in np.unique(side):
        found[np.flatnonzero(candidates & (side == each))[:most]] = True
    return found


def _placed(
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
    cluster, half = np.array(bench.corpus.cluster)[document], halves_of_documents(bench)[document]
    words = np.zeros(0, dtype=np.int64) if token_half is None else token_half
    return ConceptPositions(name, document, position, cluster, positive, half, unit, pair, scored, tokens, words)


def _too_few(placed: ConceptPositions) -> str:
    """Why a concept cannot be measured; '' where it can."""
    for label, said in ((True, "have"), (False, "do not have")):
        for half in (0, 1):
            rows = placed.scored & (placed.positive == label) & (placed.half == half)
            documents = len(np.unique(placed.cluster[rows]))
            if documents < FEWEST:
                return (
                    f"places that {said} it stand in {documents} documents of one half, and {FEWEST} are needed; "
                    f"label more of them, or build a larger corpus"
                )
    return ""
