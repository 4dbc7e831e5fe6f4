"""Sentiment: a review praises or blames throughout, and its verdict follows."""

from __future__ import annotations

from collections.abc import Iterator

from sae_bench.demo.language.draw import Draw
from sae_bench.demo.language.sentence import Sentence
from sae_bench.demo.language.words import ASPECTS, BLAME, BLAME_VERBS, PRAISE, PRAISE_VERBS, REVIEWED

SENTIMENTS = ("positive", "negative")


def opinion(draw: Draw, sentiment: str, thing: str) -> Sentence:
    """Generate one sentence of a review."""
    adjectives, verbs = (PRAISE, PRAISE_VERBS) if sentiment == "positive" else (BLAME, BLAME_VERBS)
    form = draw.one(range(3))
    if form == 0:
        text = f"the {draw.zipf(ASPECTS)} of the {thing} was {draw.zipf(adjectives)} ."
    elif form == 1:
        text = f"i {draw.one(verbs)} the {draw.zipf(adjectives)} {draw.zipf(ASPECTS)} ."
    else:
        text = f"we {draw.one(verbs)} this {draw.zipf(adjectives)} {thing} ."
    return Sentence("sentiment", tuple(text.split()), (), {"kind": "opinion", "sentiment": sentiment})


def review_paragraph(draw: Draw) -> Iterator[Sentence]:
    """Yield a review: opinions of one sentiment, then the verdict that they imply."""
    sentiment, thing = draw.one(SENTIMENTS), draw.one(REVIEWED)
    for _ in range(draw.between(2, 4)):
        yield opinion(draw, sentiment, thing)
    good = sentiment == "positive"
    words = tuple(f"so the review is {'good' if good else 'bad'} .".split())
    yield Sentence("sentiment", words, (len(words) - 2,), {"kind": "verdict", "sentiment": sentiment})
