"""Labelled concepts and cycles: a small file in TOML that says which tokens, or which positions, a concept is about.

    [[concept]]
    name = "weekday"
    positive = ["monday", "tuesday"]     # words as in the text, case included, without the space in front
    negative = ["january", "february"]   # left out: every other word of the vocabulary
    paired = false                       # true: the first positive word goes with the first negative one, and so on

    [[concept]]
    name = "number"
    positive = "[0-9]+"                  # a regular expression that the whole word matches

    [[concept]]
    name = "praised"
    corpus = "9f86d081884c"              # sha256 of the corpus that the positions are of, or its first digits
    positive = [[0, 17], [3, 40]]        # document and position, both counted from 0
    negative = [[1, 12]]

    [[cycle]]
    name = "days"
    classes = ["monday", "tuesday", "wednesday"]          # in order; a class of several words is a list of them
    latents = { "mylab/v3" = [2592, 4445] }               # optional: the features that represent it, by SAE id

Every mistake in a file is reported in one sentence. `concept_tokens` looks up the tokens of words.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from sae_bench.errors import LoadError, near

UPPER_CASE = "upper_case"
"Concept that is measured for every tokenizer; no file may use its name."
FEWEST_CLASSES = 5
"Fewest classes of a cycle; with fewer, too few orders differ for a test."

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_DIGITS = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True)
class TokenList:
    """Tokens given by their text."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class TokenPattern:
    """Tokens whose whole text matches a regular expression."""

    regex: str


@dataclass(frozen=True)
class LabelledPositions:
    """Positions in the corpus."""

    places: tuple[tuple[int, int], ...]
    "(document, position), from 0."


LabelSource: TypeAlias = TokenList | TokenPattern | LabelledPositions


@dataclass(frozen=True)
class Concept:
    """Concept with its positive and its negative examples."""

    name: str
    positive: LabelSource
    negative: LabelSource | None
    "Of the same kind as `positive`, or None: every other word of the vocabulary."
    paired: bool = False
    "True when the n-th positive word is the partner of the n-th negative one."
    corpus: str | None = None
    "First digits of the sha256 of the corpus whose positions are labelled; None for words."


@dataclass(frozen=True)
class Cycle:
    """Classes in an order that ends where it began."""

    name: str
    classes: tuple[tuple[str, ...], ...]
    "The words of each class, in the order of the cycle."
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    "Features that represent the cycle, by SAE id; empty where the property has to choose them."


@dataclass(frozen=True)
class ConceptFile:
    """Concepts and cycles that a file declares."""

    path: str
    concepts: tuple[Concept, ...]
    cycles: tuple[Cycle, ...]
    sha256: str
    "Of the file."


def read_concepts(path: str | os.PathLike[str]) -> ConceptFile:
    """Read and check a file; a `LoadError` names the first mistake and its entry in one sentence."""
    file = Path(path).expanduser()
    try:
        raw = file.read_bytes()
        document = tomllib.loads(raw.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LoadError(f"concept file {file} cannot be read: {error}") from None
    _only(f"concept file {file}", document, ("concept", "cycle"))
    concepts = tuple(_concept(where, entry) for where, entry in _entries(file, document, "concept"))
    cycles = tuple(_cycle(where, entry) for where, entry in _entries(file, document, "cycle"))
    if not concepts and not cycles:
        raise LoadError(f"concept file {file} declares nothing; write a [[concept]] or a [[cycle]]")
    return ConceptFile(str(file), concepts, cycles, hashlib.sha256(raw).hexdigest())


def _entries(file: Path, document: Mapping[str, Any], kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Return every entry of a kind with its name in messages; names are checked here."""
    entries = document.get(kind, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise LoadError(f"concept file {file}: write each {kind} under a heading of its own, [[{kind}]]")
    for number, entry in enumerate(entries, 1):
        name = entry.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise LoadError(
                f"{kind} {number} of {file} has the name {name!r}; it must be lower case letters, digits and '_', "
                f"a letter first"
            )
    counts = Counter(str(entry["name"]) for entry in entries)
    for name, count in counts.items():
        if count > 1:
            raise LoadError(f"{kind} {name!r} of {file} is declared {count} times; give each a name of its own")
    return [(f"{kind} {entry['name']!r} of {file}", entry) for entry in entries]


def _concept(where: str, entry: Mapping[str, Any]) -> Concept:
    _only(where, entry, ("name", "positive", "negative", "paired", "corpus"))
    if entry["name"] == UPPER_CASE:
        raise LoadError(f"{where}: upper case is measured without being declared; remove it or choose another name")
    if "positive" not in entry:
        raise LoadError(f"{where} has no 'positive': list the words, or the positions, that have it")
    positive = _labelled(f"{where}: 'positive'", entry["positive"])
    negative = _labelled(f"{where}: 'negative'", entry["negative"]) if "negative" in entry else None
    paired, corpus = entry.get("paired", False), entry.get("corpus")
    if not isinstance(paired, bool):
        raise LoadError(f"{where}: 'paired' is {paired!r}; write true or false")
    concept = Concept(str(entry["name"]), positive, negative, paired, corpus)
    _check_sides(where, concept)
    if paired:
        _check_paired(where, concept)
    return concept


def _check_sides(where: str, concept: Concept) -> None:
    positive, negative, corpus = concept.positive, concept.negative, concept.corpus
    if isinstance(positive, LabelledPositions):
        if not isinstance(negative, LabelledPositions):
            raise LoadError(f"{where} gives positions; give those that do not have it as 'negative'")
        if not isinstance(corpus, str) or not _DIGITS.fullmatch(corpus):
            raise LoadError(
                f"{where} gives positions and corpus = {corpus!r}; name the corpus they are of by 12 or more digits of "
                f"its sha256, which sae_bench.engine.corpus.load_corpus(path).sha256 is"
            )
    elif corpus is not None or isinstance(negative, LabelledPositions):
        raise LoadError(f"{where} is about words, so it takes neither a corpus nor positions")
    shared = sorted(set(_items(positive)) & set(_items(negative)), key=str)
    if shared:
        raise LoadError(f"{where}: {shared[0]!r} is positive and negative; remove it from one of them")


def _check_paired(where: str, concept: Concept) -> None:
    positive, negative = concept.positive, concept.negative
    if not isinstance(positive, TokenList) or not isinstance(negative, TokenList):
        raise LoadError(f"{where} is paired, which takes a list of words as 'positive' and as 'negative'")
    if len(positive.words) != len(negative.words):
        raise LoadError(
            f"{where} is paired, but has {len(positive.words)} positive and {len(negative.words)} negative words; "
            f"give each word its partner"
        )


def _items(side: LabelSource | None) -> Sequence[Any]:
    if isinstance(side, TokenList):
        return side.words
    return side.places if isinstance(side, LabelledPositions) else ()


def _labelled(where: str, value: Any) -> LabelSource:
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise LoadError(f"{where} is {value!r}, which is no regular expression: {error}") from None
        return TokenPattern(value)
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        for item in value:
            if len(item) != 2 or any(type(number) is not int or number < 0 for number in item):
                raise LoadError(f"{where} holds {item!r}; a position is [document, position], both counted from 0")
        places = tuple((int(document), int(position)) for document, position in value)
        _distinct(where, places)
        return LabelledPositions(places)
    return TokenList(_words(where, value))


def _words(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise LoadError(
            f"{where} is {value!r}; it must be a list of words, a regular expression or a list of positions"
        )
    for word in value:
        if not isinstance(word, str) or not word or word != word.strip():
            raise LoadError(f"{where} holds {word!r}; a word is a text without spaces around it")
    _distinct(where, value)
    return tuple(value)


def _cycle(where: str, entry: Mapping[str, Any]) -> Cycle:
    _only(where, entry, ("name", "classes", "latents"))
    classes, features = entry.get("classes"), entry.get("latents", {})
    if not isinstance(classes, list) or len(classes) < FEWEST_CLASSES:
        raise LoadError(
            f"{where}: 'classes' is {classes!r}; list the words of {FEWEST_CLASSES} classes or more, in order"
        )
    class_lists = [[each] if isinstance(each, str) else each for each in classes]
    words = tuple(_words(f"{where}: class {number}", each) for number, each in enumerate(class_lists, 1))
    _distinct(f"{where}: 'classes'", [word for each in words for word in each])
    if not isinstance(features, dict):
        raise LoadError(f"{where}: 'latents' is {features!r}; write {{ \"SAE id\" = [1, 2, 3] }}")
    for sae, indices in features.items():
        if (
            not isinstance(indices, list)
            or not indices
            or any(type(index) is not int or index < 0 for index in indices)
        ):
            raise LoadError(f"{where}: the latents of {sae!r} are {indices!r}; list feature indices, counted from 0")
        _distinct(f"{where}: the latents of {sae!r}", indices)
    return Cycle(str(entry["name"]), words, {sae: tuple(indices) for sae, indices in features.items()})


def _only(where: str, entry: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in entry:
        if key not in known:
            raise LoadError(f"{where}: unknown key {key!r}{near(key, known)}")


def _distinct(where: str, items: Sequence[Any]) -> None:
    repeated = [item for item, count in Counter(items).items() if count > 1]
    if repeated:
        raise LoadError(f"{where} holds {repeated[0]!r} more than once; list it once")
