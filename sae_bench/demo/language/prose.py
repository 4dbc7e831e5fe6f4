"""Ordinary prose: topics, Zipf-distributed words, and verbs that agree with subjects several words away."""

from __future__ import annotations

from collections.abc import Iterator

from sae_bench.demo.language.draw import Draw
from sae_bench.demo.language.sentence import Sentence
from sae_bench.demo.language.words import ADVERBS, DAYS, MONTHS, PREPOSITIONS, QUANTIFIERS, TOPICS, Topic

OWN_TOPIC = 0.88
"""Probability that a content word comes from the paragraph's topic."""


def _source(draw: Draw, topic: Topic) -> Topic:
    return topic if draw.chance(OWN_TOPIC) else draw.one(TOPICS)


def _phrase(draw: Draw, topic: Topic, plural: bool) -> list[str]:
    """Generate determiner, perhaps an adjective, and noun."""
    if plural:
        determiner = "the" if draw.chance(0.6) else draw.one(QUANTIFIERS)
    else:
        determiner = "the" if draw.chance(0.6) else draw.one(("this", "every"))
    adjective = [draw.zipf(_source(draw, topic).adjectives)] if draw.chance(0.4) else []
    return [determiner, *adjective, draw.zipf(_source(draw, topic).nouns)[plural]]


def prose_sentence(draw: Draw, topic: Topic) -> Sentence:
    """Generate subject, perhaps a phrase or a clause, verb, and object. The verb's number is the subject's."""
    plural = draw.chance(0.45)
    words = _phrase(draw, topic, plural)
    between = draw.weighted(("none", "phrase", "clause", "nested"), (0.5, 0.25, 0.18, 0.07))
    agreeing: list[int] = []
    if between in ("phrase", "nested"):
        words += [draw.one(PREPOSITIONS), *_phrase(draw, topic, draw.chance(0.45))]
    if between in ("clause", "nested"):
        inner = draw.chance(0.45)
        words += ["that", *_phrase(draw, topic, inner)]
        agreeing.append(len(words))
        words.append(draw.zipf(_source(draw, topic).verbs)[inner])
    if draw.chance(0.2):
        words.append(draw.zipf(ADVERBS))
    agreeing.append(len(words))
    if draw.chance(0.2):
        words += ["are" if plural else "is", draw.zipf(_source(draw, topic).adjectives)]
    else:
        words += [draw.zipf(_source(draw, topic).verbs)[plural], *_phrase(draw, topic, draw.chance(0.45))]
    if draw.chance(0.12):
        words += ["on", draw.one(DAYS)] if draw.chance(0.5) else ["in", draw.one(MONTHS)]
    labels = {
        "kind": "prose",
        "topic": topic.name,
        "subject": "plural" if plural else "singular",
        "between": between,
        "verbs": " ".join(str(position) for position in agreeing),
    }
    return Sentence("prose", (*words, "."), (), labels)


def upper_case_sentence(draw: Draw, topic: Topic) -> Sentence:
    """Generate a prose sentence in upper case: its words are other tokens."""
    plain = prose_sentence(draw, topic)
    upper = tuple(word.upper() for word in plain.words)
    shift = {"verbs": " ".join(str(int(position) + 2) for position in plain.labels["verbs"].split())}
    return Sentence("headline", ("headline", ":", *upper), (), {**plain.labels, **shift, "kind": "headline"})


def prose_paragraph(draw: Draw) -> Iterator[Sentence]:
    """Yield sentences on one topic, a quarter of them in upper case."""
    topic = draw.one(TOPICS)
    for _ in range(draw.between(3, 6)):
        yield (upper_case_sentence if draw.chance(0.25) else prose_sentence)(draw, topic)
