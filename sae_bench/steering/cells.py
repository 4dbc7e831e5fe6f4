"""Questions by cell, a combination of factor levels: whatever is taken of a dataset has every cell equally often."""

from __future__ import annotations

from collections.abc import Sequence

from sae_bench.contrast import Pair

Pairs = tuple[Pair, ...]


def cells(pairs: Sequence[Pair]) -> list[list[int]]:
    """Indices of the questions of every cell, cells in the order in which they first occur."""
    found: dict[tuple[str, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        found.setdefault(tuple(pair.factors.values()), []).append(index)
    return list(found.values())


def halves_by_cell(pairs: Sequence[Pair]) -> tuple[Pairs, Pairs]:
    """The choosing and the scored half, within every cell by turns.

    Taking every second line instead would hand all "yes" questions to one half of a file that alternates.
    """
    halves: tuple[list[int], list[int]] = ([], [])
    for start, cell in enumerate(cells(pairs)):
        # A cell of odd size gives its extra question to one half or the other by turns.
        halves[start % 2].extend(cell[::2])
        halves[1 - start % 2].extend(cell[1::2])
    choosing, scored = (tuple(pairs[index] for index in sorted(half)) for half in halves)
    return choosing, scored


def first_of_cells(pairs: Sequence[Pair], most: int | None) -> Pairs:
    """About ``most`` questions, the first ones of every cell and as many of each; None: all."""
    if most is None:
        return tuple(pairs)
    found = cells(pairs)
    each = -(-most // len(found))
    return tuple(pairs[index] for index in sorted(index for cell in found for index in cell[:each]))
