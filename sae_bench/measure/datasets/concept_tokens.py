"""Tokens of a concept's words: a vocabulary read without the space in front of each token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_bench.errors import LoadError, near
from sae_bench.measure.datasets.concept_file import Concept, Cycle, LabelSource, TokenList

_MARKS = "ĠĊ▁ \t\r\n"
"""Marks of tokenizers for a space or a line's end. 'Ġ' and 'Ċ' are upper-case letters to Python, so they must be
removed before a token's case is tested."""


@dataclass(frozen=True)
class ConceptTokens:
    """Token ids of a concept in one vocabulary."""

    positive: tuple[int, ...]
    "Token ids, ascending."
    negative: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    "(positive, negative) tokens that go together; empty where the concept pairs nothing."


def vocabulary_words(tokenizer: Any, size: int) -> tuple[str, ...]:
    """Return the word of each token id, '' for special tokens and those without a letter, digit or mark.

    Args:
        tokenizer: a Hugging Face tokenizer.
        size: entries of the model's vocabulary, which may be more than the tokenizer's.
    """
    known = min(size, len(tokenizer))
    texts = tokenizer.batch_decode([[token] for token in range(known)])
    special = set(tokenizer.all_special_ids)
    words = ["" if token in special else text.strip(_MARKS) for token, text in enumerate(texts)]
    return (*words, *[""] * (size - known))


def upper_case_tokens(words: Sequence[str]) -> ConceptTokens:
    """Return tokens of upper-case letters only against those of lower-case ones; pairs are one word in both.

    Of two letters or more: a single capital may begin a name, or label a choice, and is no word in upper case.
    """
    several = [(token, word) for token, word in enumerate(words) if len(word) > 1 and word.isalpha()]
    positive = [token for token, word in several if word.isupper()]
    negative = [token for token, word in several if word.islower()]
    lower = {words[token]: token for token in reversed(negative)}
    pairs = {words[token]: (token, lower[words[token].lower()]) for token in positive if words[token].lower() in lower}
    return ConceptTokens(tuple(positive), tuple(negative), tuple(sorted(pairs.values())))


def concept_tokens(concept: Concept, words: Sequence[str], path: str = "") -> ConceptTokens:
    """Return the tokens of a concept that is given by words.

    Args:
        concept: as `read_concepts` gives it.
        words: as `vocabulary_words` gives them.
        path: of the file, for errors.

    Raises:
        LoadError: a word is no single token, or nothing matches.
    """
    where = f"concept {concept.name!r} of {path}"
    by_word = _by_word(words)
    positive = _tokens(where, concept.positive, words, by_word)
    if concept.negative is None:
        labelled = set(positive)
        negative = [token for token, word in enumerate(words) if word and token not in labelled]
    else:
        negative = _tokens(where, concept.negative, words, by_word)
    shared = sorted(set(positive) & set(negative))
    if shared:
        raise LoadError(
            f"{where}: {words[shared[0]]!r} is positive and negative; make the expressions exclude each other"
        )
    pairs: list[tuple[int, int]] = []
    if concept.paired and isinstance(concept.positive, TokenList) and isinstance(concept.negative, TokenList):
        partners = zip(concept.positive.words, concept.negative.words, strict=True)
        # A word may be several tokens (with and without a space in front); those in the same place go together.
        pairs = [pair for one, other in partners for pair in zip(by_word[one], by_word[other], strict=False)]
    return ConceptTokens(tuple(sorted(positive)), tuple(sorted(negative)), tuple(pairs))


def cycle_tokens(cycle: Cycle, words: Sequence[str], path: str = "") -> tuple[tuple[int, ...], ...]:
    """Return the token ids of each class of a cycle; a word that is no single token is a `LoadError`."""
    by_word = _by_word(words)
    where = f"cycle {cycle.name!r} of {path}"
    return tuple(tuple(sorted(_ids(where, each, by_word))) for each in cycle.classes)


def _by_word(words: Sequence[str]) -> dict[str, list[int]]:
    tokens_of: dict[str, list[int]] = {}
    for token, word in enumerate(words):
        if word:
            tokens_of.setdefault(word, []).append(token)
    return tokens_of


def _tokens(where: str, side: LabelSource, words: Sequence[str], by_word: Mapping[str, list[int]]) -> list[int]:
    if isinstance(side, TokenList):
        return _ids(where, side.words, by_word)
    regex = re.compile(getattr(side, "regex", ""))
    matches = [token for token, word in enumerate(words) if word and regex.fullmatch(word)]
    if not matches:
        raise LoadError(f"{where}: no token of the vocabulary matches {regex.pattern!r}; try it on a word that is one")
    return matches


def _ids(where: str, listed: Iterable[str], by_word: Mapping[str, list[int]]) -> list[int]:
    ids: list[int] = []
    for word in listed:
        if word not in by_word:
            raise LoadError(
                f"{where}: {word!r} is no single token of this vocabulary{near(word, by_word)}; leave it out, or label "
                f"positions instead"
            )
        ids += by_word[word]
    return ids
