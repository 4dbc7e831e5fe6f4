"""Labelled items by cell, a combination of factor levels: whatever is taken has every cell equally often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar


class HasFactors(Protocol):
    """A question, or a group of prompts, of which the levels of some factors are known."""

    @property
    def factors(self) -> Mapping[str, str]:
        """Level of every declared factor."""
        ...


T = TypeVar("T", bound=HasFactors)


def cells(items: Sequence[HasFactors]) -> list[list[int]]:
    """Indices of the items of every cell, cells in the order in which they first occur."""
    found: dict[tuple[str, ...], list[int]] = {}
    for index, item in enumerate(items):
        found.setdefault(tuple(item.factors.values()), []).append(index)
    return list(found.values())


def halves_by_cell(items: Sequence[T]) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """The choosing and the scored half, within every cell by turns.

    Taking every second item instead would hand all "yes" questions to one half of a file that alternates.
    """
    halves: tuple[list[int], list[int]] = ([], [])
    for start, cell in enumerate(cells(items)):
        # A cell of odd size gives its extra item to one half or the other by turns.
        halves[start % 2].extend(cell[::2])
        halves[1 - start % 2].extend(cell[1::2])
    choosing, scored = (tuple(items[index] for index in sorted(half)) for half in halves)
    return choosing, scored


def first_of_cells(items: Sequence[T], most: int | None) -> tuple[T, ...]:
    """About ``most`` items, the first ones of every cell and as many of each; None: all."""
    if most is None:
        return tuple(items)
    found = cells(items)
    each = -(-most // len(found))
    return tuple(items[index] for index in sorted(index for cell in found for index in cell[:each]))
