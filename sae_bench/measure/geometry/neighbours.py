"""Nearest neighbours of every direction of a dictionary: exact, in one pass over its products, never n x n of them.

Products are taken block by block, ``U_I @ U_J.T`` for each pair of blocks once: a block serves the rows of I and the
rows of J. Each row keeps its largest cosines so far and the k-th of them as a bar; of a block only what lies above the
bar of its row or column is looked at, which after the first blocks is a share of about k over the columns seen. A
random order of the features keeps that share small whatever order a dictionary is stored in.

Letters: ``n`` directions, ``d`` their width, ``k`` neighbours kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sae_bench.errors import MeasurementError

NEIGHBOURS = 100
"Neighbours kept of each direction."
BLOCK = 1024
"Rows of a block: its products, 4 MB, stay in a core's reach while they are looked through."
_ROOM = 156
"Places for candidates beside the k kept, so that a row is sorted out once in a while and not after every block."

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest others of some directions, and what the same products say about all pairs of them."""

    features: Tensor
    "int64 (n,), which features of the dictionary these are, ascending."
    cosine: Tensor
    "float32 (n, k), largest cosines with another direction, descending; k = min(100, n - 1)."
    index: Tensor
    "int32 (n, k), the feature each of them is with."
    coherence: float
    "Largest absolute cosine of two directions; 0 for a single one."
    absolute_mean: float
    "Mean absolute cosine over all pairs; 0 for a single direction."
    gram_square: float
    "Sum of squared cosines over ordered pairs, own included: the squared Frobenius norm of U U' and of U' U."
    d: int
    "Width of the directions."

    @property
    def n(self) -> int:
        """Number of directions."""
        return len(self.features)

    def nth(self, k: int) -> Tensor | None:
        """float32 (n,), each direction's k-th largest cosine; None when there are not k others."""
        return self.cosine[:, k - 1] if 1 <= k <= self.cosine.shape[1] else None


class Running:
    """The k largest entries of each of ``rows`` rows, while blocks of entries come by."""

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self._value = torch.full((rows, k + _ROOM), -torch.inf, device=device)
        self._index = torch.full((rows, k + _ROOM), -1, dtype=torch.int32, device=device)
        self._count = torch.zeros(rows, dtype=torch.int64, device=device)
        self._bar = torch.full((rows,), -torch.inf, device=device)

    def offer(self, rows: Span, block: Tensor, first: int) -> None:
        """Entries of ``rows`` with columns ``first``, ``first + 1`` ...: ``block`` is (rows, columns)."""
        bar = self._bar[slice(*rows)]
        # One comparison reads the block as it lies in memory; a transposed view is compared and searched as such.
        turned = not block.is_contiguous()
        mask = torch.gt(block.T, bar) if turned else torch.gt(block, bar[:, None])
        hits = _positions(mask)
        if len(hits) > len(bar) * _ROOM * 3 // 4:
            self._merge(rows, block, first)
            return
        width = mask.shape[1]
        value = (block.T if turned else block).reshape(-1)[hits]
        row, column = (hits % width, hits // width) if turned else (hits // width, hits % width)
        if turned:
            order = _stable_order(row)
            row, column, value = row[order], column[order], value[order]
        self._append(rows, row, column + first, value, block, first)

    def _append(self, rows: Span, row: Tensor, index: Tensor, value: Tensor, block: Tensor, first: int) -> None:
        """Candidates sorted by ``row`` (within the span) go behind what their rows hold already."""
        new = torch.bincount(row, minlength=rows[1] - rows[0])
        if bool((self._count[slice(*rows)] + new > self.k + _ROOM).any()):
            self._settle(rows)
            above = value > self._bar[slice(*rows)][row]
            row, index, value = row[above], index[above], value[above]
            new = torch.bincount(row, minlength=rows[1] - rows[0])
            if int(new.max()) > _ROOM:
                self._merge(rows, block, first)
                return
        held = self._count[slice(*rows)]
        rank = torch.arange(len(row), device=row.device) - (new.cumsum(0) - new)[row]
        place = (row + rows[0]) * (self.k + _ROOM) + held[row] + rank
        self._value.view(-1)[place] = value
        self._index.view(-1)[place] = index.int()
        held += new

    def _settle(self, rows: Span) -> None:
        """Keeps the k largest of each row and raises its bar to the smallest of them."""
        span = slice(*rows)
        top = self._value[span].topk(self.k, dim=1, sorted=False)
        self._keep(rows, top.values, self._index[span].gather(1, top.indices))

    def _merge(self, rows: Span, block: Tensor, first: int) -> None:
        """The same for a block with so many candidates that sorting it out whole is cheaper."""
        span = slice(*rows)
        columns = torch.arange(first, first + block.shape[1], dtype=torch.int32, device=block.device)
        index = torch.cat([self._index[span], columns.expand(len(block), -1)], dim=1)
        top = torch.cat([self._value[span], block], dim=1).topk(self.k, dim=1, sorted=False)
        self._keep(rows, top.values, index.gather(1, top.indices))

    def _keep(self, rows: Span, value: Tensor, index: Tensor) -> None:
        span = slice(*rows)
        self._value[span, : self.k] = value
        self._index[span, : self.k] = index
        self._value[span, self.k :] = -torch.inf
        self._count[span] = self.k
        self._bar[span] = value.amin(1)

    def sorted(self, rows: Span) -> tuple[Tensor, Tensor]:
        """float32 (rows, k) entries, descending, and int32 (rows, k) their columns; -inf and -1 where there is none."""
        self._settle(rows)
        value, order = self._value[slice(*rows), : self.k].sort(dim=1, descending=True)
        return value, self._index[slice(*rows), : self.k].gather(1, order)


def neighbours(W_dec: Tensor, alive: Tensor, tick: Callable[[], None] = lambda: None) -> tuple[Neighbours, Neighbours]:
    """Neighbours among the alive features, and among all, from one pass over the products.

    Args:
        W_dec: (n, d) decoder rows of any norm; rows that are zero have no direction and are left out of both.
        alive: bool (n,).
        tick: called after every block.

    Pairs of alive features come first; the result is kept, then the pairs with dead ones are added. A weight that is
    not finite, or no alive feature with a direction, is a `MeasurementError`.
    """
    norms = finite_norms(W_dec)
    generator = torch.Generator().manual_seed(0)
    living = _shuffled((alive & (norms > 0)).nonzero().flatten(), generator)
    dead = _shuffled((~alive & (norms > 0)).nonzero().flatten(), generator)
    if len(living) == 0:
        raise MeasurementError(
            f"none of the {len(norms)} features is alive with a decoder row that is not zero, so no directions can be "
            f"compared; check that the SAE belongs to this model and site"
        )
    order = torch.cat([living, dead])
    scan = _Pass(_unit_rows(W_dec, norms, order), order, tick)
    living_blocks, dead_blocks = _blocks(0, len(living)), _blocks(len(living), len(order))
    scan.pairs(_each_pair_once(living_blocks))
    among_living = scan.result(len(living))
    if not dead_blocks:
        return among_living, among_living
    scan.pairs(_each_pair_once(dead_blocks))
    scan.pairs((row, column) for row in dead_blocks for column in living_blocks)
    return among_living, scan.result(len(order))


def nearest_of(queries: int, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours of the first ``queries`` of the unit ``directions`` (n, d): (queries, k) cosines and indices."""
    n = len(directions)
    found = Running(queries, min(NEIGHBOURS, n - 1), directions.device)
    for rows in _blocks(0, queries):
        for columns in _blocks(0, n):
            block = directions[slice(*rows)] @ directions[slice(*columns)].T
            # A query is no neighbour of its own, wherever the two grids of blocks meet.
            own = range(max(rows[0], columns[0]), min(rows[1], columns[1]))
            if own:
                at = torch.arange(own.start, own.stop, device=block.device)
                block[at - rows[0], at - columns[0]] = -torch.inf
            found.offer(rows, block, columns[0])
    return found.sorted((0, queries))


def finite_norms(W_dec: Tensor) -> Tensor:
    """float64 (n,) norms of the decoder rows; a `MeasurementError` names the first feature with NaN or infinity."""
    norms = torch.cat(
        [torch.linalg.vector_norm(rows.double(), dim=1) for rows in torch.split(W_dec.detach(), 8 * BLOCK)]
    )
    broken = (~norms.isfinite()).nonzero().flatten()
    if len(broken):
        raise MeasurementError(
            f"{len(broken)} of {len(norms)} decoder rows hold NaN or infinity, the first is that of feature "
            f"{int(broken[0])}; the weights are damaged: save or download them again"
        )
    # What float32 products would flush to zero has no direction for them.
    return torch.where(norms < 1e-30, 0.0, norms)


class _Pass:
    """Products of blocks of directions, and what is kept of them."""

    def __init__(self, directions: Tensor, order: Tensor, tick: Callable[[], None]) -> None:
        n, self.d = directions.shape
        self._directions = directions
        self._order = order
        self._tick = tick
        self._running = Running(n, min(NEIGHBOURS, max(n - 1, 1)), directions.device)
        self._scratch = torch.empty(BLOCK * BLOCK, device=directions.device)
        self._gram = torch.zeros(self.d, self.d, dtype=torch.float64, device=directions.device)
        self._coherence = 0.0
        self._absolute = 0.0

    def pairs(self, pairs: Iterator[tuple[Span, Span]]) -> None:
        """Every pair of blocks once: row, column."""
        for row, column in pairs:
            rows, columns = self._directions[slice(*row)], self._directions[slice(*column)]
            block = self._scratch[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=block)
            own = row == column
            if own:
                self._gram += (rows.T @ rows).double()
                block.fill_diagonal_(-torch.inf)
            else:
                self._running.offer(column, block.T, row[0])
            self._running.offer(row, block, column[0])
            if own:
                block.fill_diagonal_(0.0)
            block.abs_()
            self._coherence = max(self._coherence, float(block.amax()))
            self._absolute += float(block.sum(1).double().sum()) / (2 if own else 1)
            self._tick()

    def result(self, n: int) -> Neighbours:
        """What is known of the first ``n`` directions, whose pairs have all been seen; in the dictionary's order."""
        features = self._order[:n].sort()
        k = min(NEIGHBOURS, n - 1)
        cosine = torch.empty(n, k, device=features.values.device)
        index = torch.empty(n, k, dtype=torch.int32, device=features.values.device)
        place = torch.empty_like(features.indices)
        place[features.indices] = torch.arange(n, device=place.device)
        ids = self._order.int()
        for span in _blocks(0, n):
            value, column = self._running.sorted(span)
            cosine[place[slice(*span)]] = value[:, :k]
            index[place[slice(*span)]] = ids[column[:, :k].long()]
        pairs = n * (n - 1) / 2
        return Neighbours(
            features=features.values,
            cosine=cosine,
            index=index,
            coherence=self._coherence,
            absolute_mean=self._absolute / pairs if pairs else 0.0,
            gram_square=float(self._gram.square().sum()),
            d=self.d,
        )


def _unit_rows(W_dec: Tensor, norms: Tensor, order: Tensor) -> Tensor:
    """float32 (len(order), d) directions in the given order, without a second copy of the weights on the way."""
    out = torch.empty(len(order), W_dec.shape[1], device=W_dec.device)
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        out[start : start + len(rows)] = W_dec.detach()[rows].double() / norms[rows, None]
    return out


def _shuffled(index: Tensor, generator: torch.Generator) -> Tensor:
    return index[torch.randperm(len(index), generator=generator).to(index.device)]


def _blocks(start: int, stop: int) -> list[Span]:
    """Spans of at most `BLOCK`, all of nearly the same length: a short last one would fill the bars badly."""
    count = -(-(stop - start) // BLOCK)
    edges = [start + (stop - start) * part // max(count, 1) for part in range(count + 1)]
    return list(pairwise(edges))


def _each_pair_once(blocks: list[Span]) -> Iterator[tuple[Span, Span]]:
    """Pairs by distance around a circle, so that all rows have seen equally many columns at any time."""
    count = len(blocks)
    for step in range(count // 2 + 1):
        last = count // 2 if 2 * step == count else count
        for start in range(last):
            yield blocks[start], blocks[(start + step) % count]


def _positions(mask: Tensor) -> Tensor:
    """int64 positions of True in the flattened mask; numpy's search is many times as fast as torch's on the CPU."""
    flat = mask.reshape(-1)
    return torch.from_numpy(np.flatnonzero(flat.numpy())) if flat.device.type == "cpu" else flat.nonzero().flatten()


def _stable_order(keys: Tensor) -> Tensor:
    """What sorts ``keys`` (below `BLOCK`) and keeps the order of equal ones; 16 bits give numpy a radix sort."""
    if keys.device.type != "cpu":
        return keys.argsort(stable=True)
    return torch.from_numpy(np.argsort(keys.numpy().astype(np.int16), kind="stable"))
