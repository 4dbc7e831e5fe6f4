"""Number words: counting and small sums."""

from __future__ import annotations

from collections.abc import Iterator

from sae_bench.demo.language.draw import Draw
from sae_bench.demo.language.sentence import Sentence
from sae_bench.demo.language.words import NUMBERS


def counting(draw: Draw) -> Sentence:
    """Generate five numbers upwards or downwards."""
    up = draw.chance(0.6)
    start = draw.between(0, len(NUMBERS) - 5)
    run = NUMBERS[start : start + 5]
    words = ("count", "up" if up else "down", ":", *(run if up else run[::-1]), ".")
    return Sentence("number", words, (4, 5, 6, 7), {"kind": "counting"})


def addition(draw: Draw) -> Sentence:
    """Generate a sum of at most ten."""
    first = draw.between(0, 6)
    second = draw.between(0, min(6, 10 - first))
    words = tuple(f"{NUMBERS[first]} plus {NUMBERS[second]} is {NUMBERS[first + second]} .".split())
    return Sentence("number", words, (len(words) - 2,), {"kind": "sum"})


def number_paragraph(draw: Draw) -> Iterator[Sentence]:
    """Yield sums with some counting between them."""
    for _ in range(draw.between(2, 5)):
        yield counting(draw) if draw.chance(0.25) else addition(draw)
