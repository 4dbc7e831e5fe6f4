"""Balanced samples of labelled items: every cell, a combination of factor levels, is taken equally often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar


class HasFactors(Protocol):
    """Item with known levels of some factors: a question, or a cluster of prompts."""

    @property
    def factors(self) -> Mapping[str, str]:
        """Return the level of every declared factor."""
        ...


T = TypeVar("T", bound=HasFactors)


def factor_cells(items: Sequence[HasFactors]) -> list[list[int]]:
    """Return the indices of the items of every cell, cells in the order in which they first occur."""
    cells: dict[tuple[str, ...], list[int]] = {}
    for index, item in enumerate(items):
        cells.setdefault(tuple(item.factors.values()), []).append(index)
    return list(cells.values())


def split_cells(items: Sequence[T]) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Split items into a choosing and a scored half, within every cell by turns.

    Taking every second item instead would give all "yes" questions to one half of a file that alternates.
    """
    halves: tuple[list[int], list[int]] = ([], [])
    for start, cell in enumerate(factor_cells(items)):
        # A cell of odd size gives its extra item to one half or the other by turns.
        halves[start % 2].extend(cell[::2])
        halves[1 - start % 2].extend(cell[1::2])
    choosing, scored = (tuple(items[index] for index in sorted(half)) for half in halves)
    return choosing, scored


def sample_cells(items: Sequence[T], most: int | None) -> tuple[T, ...]:
    """Return about ``most`` items: the first ones of every cell, as many of each; all items for None."""
    if most is None:
        return tuple(items)
    cells = factor_cells(items)
    per_cell = -(-most // len(cells))
    return tuple(items[index] for index in sorted(index for cell in cells for index in cell[:per_cell]))
