"""Documents: paragraphs of different constructions, 64 to 128 tokens, <bos> first."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from sae_bench.demo.language.cycles import cycle_fact
from sae_bench.demo.language.draw import Draw
from sae_bench.demo.language.indirect import indirect_object
from sae_bench.demo.language.numbers import number_paragraph
from sae_bench.demo.language.opinions import review_paragraph
from sae_bench.demo.language.personas import persona_paragraph
from sae_bench.demo.language.prose import prose_paragraph
from sae_bench.demo.language.sentence import BOS, Sentence

SHORTEST, LONGEST = 64, 128

MIX = (
    ("prose", 0.38),
    ("days", 0.09),
    ("months", 0.06),
    ("indirect_object", 0.12),
    ("persona", 0.22),
    ("review", 0.08),
    ("number", 0.05),
)
"""Probability of each kind of paragraph."""

PARAGRAPHS = {
    "prose": prose_paragraph,
    "persona": persona_paragraph,
    "review": review_paragraph,
    "number": number_paragraph,
}


@dataclass(frozen=True)
class Document:
    """A text with its ground truth."""

    words: tuple[str, ...]
    """All tokens, <bos> first."""
    sentences: tuple[Sentence, ...]
    """The sentences, in order."""
    starts: tuple[int, ...]
    """Index in `words` at which each sentence begins."""
    nats: float
    """-log p of the choices that generated it: in expectation an upper bound on its entropy."""


def paragraph(draw: Draw) -> Iterator[Sentence]:
    """Yield sentences of one kind, drawn from the mix."""
    kind = draw.weighted([name for name, _ in MIX], tuple(weight for _, weight in MIX))
    if kind in ("days", "months"):
        for _ in range(draw.between(4, 8)):
            yield cycle_fact(draw, kind[:-1])
    elif kind == "indirect_object":
        for _ in range(draw.between(2, 4)):
            yield indirect_object(draw)
    else:
        yield from PARAGRAPHS[kind](draw)


def document(rng: random.Random) -> Document:
    """Generate paragraphs up to a random length (64 to 128); only whole sentences, so it may end a little short.

    `nats` counts the sentences that are in the document, not the one that did not fit any more.
    """
    length = rng.randint(SHORTEST + 24, LONGEST)
    draw = Draw(rng)
    words, sentences, starts, nats = [BOS], list[Sentence](), list[int](), 0.0
    while True:
        for sentence in paragraph(draw):
            if len(words) + len(sentence.words) > length:
                return Document(tuple(words), tuple(sentences), tuple(starts), nats)
            starts.append(len(words))
            sentences.append(sentence)
            words.extend(sentence.words)
            nats = draw.nats
