"""The closed vocabulary, read off the word lists and the templates."""

from __future__ import annotations

import re

from sae_bench.demo.language import indirect, personas
from sae_bench.demo.language.sentence import BOS
from sae_bench.demo.language.words import (
    ADVERBS,
    ASPECTS,
    BLAME,
    BLAME_VERBS,
    DAYS,
    MONTHS,
    NAMES,
    NUMBERS,
    OBJECTS,
    PLACES,
    PRAISE,
    PRAISE_VERBS,
    PREPOSITIONS,
    PUNCTUATION,
    QUANTIFIERS,
    REVIEWED,
    TOPICS,
    TRAITS,
    spread,
)

UNKNOWN = "<unk>"

FRAME = spread(
    "the day days month months after before is are comes if this next and last was in order on every that "
    "very always often yes no a i it we of so review good bad count up down plus headline"
)
"""Words of the generators that are in no other list."""


def _prose_words() -> list[str]:
    """Return words of prose, which also occur in upper case."""
    words = ["the", "this", "every", "that", "is", "are", "on", "in", *QUANTIFIERS, *PREPOSITIONS, *ADVERBS]
    words += [*DAYS, *MONTHS]
    for topic in TOPICS:
        words += [form for pair in (*topic.nouns, *topic.verbs) for form in pair]
        words += topic.adjectives
    return list(dict.fromkeys(words))


def vocabulary() -> tuple[str, ...]:
    """Return every token the language can produce, special tokens first, each once."""
    words = [BOS, UNKNOWN, *PUNCTUATION, *FRAME, *NAMES, *DAYS, *MONTHS, *NUMBERS, *PLACES, *OBJECTS]
    for trait in TRAITS:
        words += [*trait.positive, *trait.negative]
        words += [word for habit in (*trait.positive_habits, *trait.negative_habits) for word in habit]
    words += [*REVIEWED, *ASPECTS, *PRAISE, *BLAME, *PRAISE_VERBS, *BLAME_VERBS, "A", "B"]
    for template in (*indirect.TEMPLATES, *personas.TEMPLATES):
        words += re.sub(r"\{\w+\}", " ", template).split()
    prose = _prose_words()
    words += [*prose, *(word.upper() for word in prose)]
    return tuple(dict.fromkeys(words))


def case_pairs() -> list[tuple[str, str]]:
    """Return words that exist in lower and in upper case: (lower, upper), both single tokens."""
    return [(word, word.upper()) for word in _prose_words()]
