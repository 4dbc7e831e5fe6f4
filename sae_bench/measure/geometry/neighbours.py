"""Nearest neighbours of every direction of a dictionary: exact, in one pass, without storing all n x n products.

Products are taken block by block, ``U_I @ U_J.T`` for each pair of blocks once: a block serves the rows of I and the
rows of J. Each row stores its largest cosines so far and uses the k-th of them as a bar. Of a block only the entries
above the bar of their row or column are candidates, which after the first blocks is a share of about k over the columns
scanned. A random order of the features makes that share small for every order in which a dictionary is stored.

Letters: ``n`` directions, ``d`` their width, ``k`` neighbours per direction.
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
"Neighbours stored for each direction."
BLOCK = 1024
"Rows of a block: its products, 4 MB, stay in a core's reach while they are looked through."
_ROOM = 156
"Places for candidates in addition to the k stored, so that a row is not reduced after every block."

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Nearest other directions of some features, and statistics of the same products over all pairs."""

    features: Tensor
    "int64 (n,), indices of the features in the dictionary, ascending."
    cosine: Tensor
    "float32 (n, k), largest cosines with another direction, descending; k = min(100, n - 1)."
    index: Tensor
    "int32 (n, k), the features with those cosines."
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
        """Return the number of directions."""
        return len(self.features)

    def nth(self, k: int) -> Tensor | None:
        """Return float32 (n,) each direction's k-th largest cosine; None when there are not k others."""
        return self.cosine[:, k - 1] if 1 <= k <= self.cosine.shape[1] else None


class RunningTopK:
    """The k largest entries of each of ``rows`` rows over blocks of entries that arrive one by one."""

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self._value = torch.full((rows, k + _ROOM), -torch.inf, device=device)
        self._index = torch.full((rows, k + _ROOM), -1, dtype=torch.int32, device=device)
        self._count = torch.zeros(rows, dtype=torch.int64, device=device)
        self._bar = torch.full((rows,), -torch.inf, device=device)

    def offer(self, rows: Span, block: Tensor, first: int) -> None:
        """Take in the entries of ``rows`` in columns ``first``, ``first + 1`` ...: ``block`` is (rows, columns)."""
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
        """Append candidates, sorted by ``row`` within the span, to those of their rows."""
        new = torch.bincount(row, minlength=rows[1] - rows[0])
        if bool((self._count[slice(*rows)] + new > self.k + _ROOM).any()):
            self._settle(rows)
            above = value > self._bar[slice(*rows)][row]
            row, index, value = row[above], index[above], value[above]
            new = torch.bincount(row, minlength=rows[1] - rows[0])
            if int(new.max()) > _ROOM:
                self._merge(rows, block, first)
                return
        count = self._count[slice(*rows)]
        rank = torch.arange(len(row), device=row.device) - (new.cumsum(0) - new)[row]
        place = (row + rows[0]) * (self.k + _ROOM) + count[row] + rank
        self._value.view(-1)[place] = value
        self._index.view(-1)[place] = index.int()
        count += new

    def _settle(self, rows: Span) -> None:
        """Reduce each row to its k largest entries and raise its bar to the smallest of them."""
        span = slice(*rows)
        top = self._value[span].topk(self.k, dim=1, sorted=False)
        self._store(rows, top.values, self._index[span].gather(1, top.indices))

    def _merge(self, rows: Span, block: Tensor, first: int) -> None:
        """Reduce rows and a whole block to the k largest, which is cheaper when a block has many candidates."""
        span = slice(*rows)
        columns = torch.arange(first, first + block.shape[1], dtype=torch.int32, device=block.device)
        index = torch.cat([self._index[span], columns.expand(len(block), -1)], dim=1)
        top = torch.cat([self._value[span], block], dim=1).topk(self.k, dim=1, sorted=False)
        self._store(rows, top.values, index.gather(1, top.indices))

    def _store(self, rows: Span, value: Tensor, index: Tensor) -> None:
        span = slice(*rows)
        self._value[span, : self.k] = value
        self._index[span, : self.k] = index
        self._value[span, self.k :] = -torch.inf
        self._count[span] = self.k
        self._bar[span] = value.amin(1)

    def sorted(self, rows: Span) -> tuple[Tensor, Tensor]:
        """Return float32 (rows, k) entries, descending, and int32 (rows, k) columns; -inf and -1 where none is."""
        self._settle(rows)
        value, order = self._value[slice(*rows), : self.k].sort(dim=1, descending=True)
        return value, self._index[slice(*rows), : self.k].gather(1, order)


def nearest_neighbours(
    W_dec: Tensor, alive: Tensor, tick: Callable[[], None] = lambda: None
) -> tuple[Neighbours, Neighbours]:
    """Return the neighbours among the alive features, and among all features, in one pass.

    Args:
        W_dec: (n, d) decoder rows of any norm; rows that are zero have no direction and are left out of both.
        alive: bool (n,).
        tick: called after every block.

    Pairs of alive features come first; their result is stored before the pairs with dead ones are added.

    Raises:
        MeasurementError: a weight is not finite, or no alive feature has a direction.
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
    scan = _ProductScan(_unit_rows(W_dec, norms, order), order, tick)
    living_blocks, dead_blocks = _blocks(0, len(living)), _blocks(len(living), len(order))
    scan.pairs(_each_pair_once(living_blocks))
    among_living = scan.result(len(living))
    if not dead_blocks:
        return among_living, among_living
    scan.pairs(_each_pair_once(dead_blocks))
    scan.pairs((row, column) for row in dead_blocks for column in living_blocks)
    return among_living, scan.result(len(order))


def neighbours_of_queries(queries: int, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return (queries, k) cosines and indices of neighbours of the first ``queries`` rows of ``directions``."""
    n = len(directions)
    running = RunningTopK(queries, min(NEIGHBOURS, n - 1), directions.device)
    for rows in _blocks(0, queries):
        for columns in _blocks(0, n):
            block = directions[slice(*rows)] @ directions[slice(*columns)].T
            # A query is no neighbour of its own, wherever the two grids of blocks meet.
            own = range(max(rows[0], columns[0]), min(rows[1], columns[1]))
            if own:
                at = torch.arange(own.start, own.stop, device=block.device)
                block[at - rows[0], at - columns[0]] = -torch.inf
            running.offer(rows, block, columns[0])
    return running.sorted((0, queries))


def finite_norms(W_dec: Tensor) -> Tensor:
    """Return float64 (n,) norms of decoder rows; a `MeasurementError` names the first row with NaN or infinity."""
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


class _ProductScan:
    """Scan over products of blocks of directions, with the running statistics."""

    def __init__(self, directions: Tensor, order: Tensor, tick: Callable[[], None]) -> None:
        n, self.d = directions.shape
        self._directions = directions
        self._order = order
        self._tick = tick
        self._running = RunningTopK(n, min(NEIGHBOURS, max(n - 1, 1)), directions.device)
        self._scratch = torch.empty(BLOCK * BLOCK, device=directions.device)
        self._gram = torch.zeros(self.d, self.d, dtype=torch.float64, device=directions.device)
        self._coherence = 0.0
        self._absolute = 0.0

    def pairs(self, pairs: Iterator[tuple[Span, Span]]) -> None:
        """Multiply each pair of blocks (row, column) once."""
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
        """Return the neighbours of the first ``n`` directions, in the dictionary's order; their pairs must be done."""
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
    """Return float32 (len(order), d) unit directions in the given order, without a second copy of the weights."""
    out = torch.empty(len(order), W_dec.shape[1], device=W_dec.device)
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        out[start : start + len(rows)] = W_dec.detach()[rows].double() / norms[rows, None]
    return out


def _shuffled(index: Tensor, generator: torch.Generator) -> Tensor:
    return index[torch.randperm(len(index), generator=generator).to(index.device)]


def _blocks(start: int, stop: int) -> list[Span]:
    """Return spans of at most `BLOCK`, all of nearly the same length: a short last one would raise bars slowly."""
    count = -(-(stop - start) // BLOCK)
    edges = [start + (stop - start) * part // max(count, 1) for part in range(count + 1)]
    return list(pairwise(edges))


def _each_pair_once(blocks: list[Span]) -> Iterator[tuple[Span, Span]]:
    """Yield pairs by distance around a circle, so that all rows meet equally many columns at any time."""
    count = len(blocks)
    for step in range(count // 2 + 1):
        last = count // 2 if 2 * step == count else count
        for start in range(last):
            yield blocks[start], blocks[(start + step) % count]


def _positions(mask: Tensor) -> Tensor:
    """Return int64 positions of True in the flattened mask; numpy searches faster than torch on the CPU."""
    flat = mask.reshape(-1)
    return torch.from_numpy(np.flatnonzero(flat.numpy())) if flat.device.type == "cpu" else flat.nonzero().flatten()


def _stable_order(keys: Tensor) -> Tensor:
    """Return the stable sorting order of ``keys`` (below `BLOCK`); 16 bits let numpy use a radix sort."""
    if keys.device.type != "cpu":
        return keys.argsort(stable=True)
    return torch.from_numpy(np.argsort(keys.numpy().astype(np.int16), kind="stable"))
