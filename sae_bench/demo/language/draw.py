"""Random choices that count their own information.

Every generator of the language makes its choices through a `Draw`. It adds up -log p of the choices, so that a text
comes with the information that went into it: in expectation an upper bound on the language's entropy, because
two different series of choices may happen to spell the same text.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")


@cache
def _cumulative(weights: tuple[float, ...]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(accumulate(weight / total for weight in weights))


@cache
def zipf_weights(n: int) -> tuple[float, ...]:
    """Return unnormalised weights of n ranks; the shift keeps the first word of a short list below half of the mass."""
    return tuple(1.0 / (rank + 2.0) for rank in range(n))


class Draw:
    """Choices from an explicit generator; `nats` is the information of all choices so far."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.nats = 0.0

    def one(self, items: Sequence[T]) -> T:
        """Draw one item, all equally likely."""
        self.nats += math.log(len(items))
        return items[int(self.rng.random() * len(items))]

    def weighted(self, items: Sequence[T], weights: tuple[float, ...]) -> T:
        """Draw one item with probability proportional to its weight."""
        edges = _cumulative(weights)
        index = min(bisect_right(edges, self.rng.random()), len(items) - 1)
        self.nats -= math.log(edges[index] - (edges[index - 1] if index else 0.0))
        return items[index]

    def zipf(self, items: Sequence[T]) -> T:
        """Draw one item, the earlier the more frequent."""
        return self.weighted(items, zipf_weights(len(items)))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        yes = self.rng.random() < probability
        self.nats -= math.log(probability if yes else 1.0 - probability)
        return yes

    def between(self, low: int, high: int) -> int:
        """Draw a whole number, both ends included."""
        self.nats += math.log(high - low + 1)
        return self.rng.randint(low, high)

    def two(self, items: Sequence[T]) -> tuple[T, T]:
        """Draw two different items, in order."""
        first = self.one(items)
        second = self.one([item for item in items if item != first])
        return first, second
