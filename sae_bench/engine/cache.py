"""Caches of results that several properties and SAEs need, within a budget of memory.

`CachedRows` holds rows per token position, `CachedCodes` the codes of documents. Results beyond the budget are computed
again. Shapes: b documents of a batch, n SAE features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sae_bench.engine.batch import Batch
from sae_bench.sae.sparse_codes import SparseCodes

_BLOCK = 1 << 23
"Entries of a block of memory that small tensors share; the system gives memory only to entries that are written."


@dataclass(frozen=True, eq=False)
class _DocumentRows:
    """Rows of one document within the rows of a batch."""

    batch_rows: Tensor
    start: int
    stop: int

    @property
    def rows(self) -> Tensor:
        return self.batch_rows[self.start : self.stop]


class CachedRows:
    """Rows at the kept positions of documents, by name."""

    def __init__(self, memory_bytes: int) -> None:
        self.free_bytes = memory_bytes
        self._documents: dict[tuple[str, int, int], _DocumentRows] = {}

    def get(self, name: str, batch: Batch) -> Tensor | None:
        """Return the (rows, ...) of the batch's documents in its order; None when one of them is not cached.

        The result may be the cached memory itself: callers must not change it.
        """
        keys = [(name, *key) for key in zip(batch.documents, batch.lengths, strict=True)]
        parts = [self._documents[key] for key in keys if key in self._documents]
        if len(parts) < len(keys):
            return None
        if all(left.batch_rows is right.batch_rows and left.stop == right.start for left, right in pairwise(parts)):
            return parts[0].batch_rows[parts[0].start : parts[-1].stop]
        return torch.cat([part.rows for part in parts])

    def put(self, name: str, batch: Batch, rows: Tensor) -> Tensor:
        """Cache ``rows`` (rows, ...) of the batch's kept positions, as many documents as fit, and return them all."""
        stops = batch.keep.sum(1).cumsum(0).tolist()
        parts = [_DocumentRows(rows, start, stop) for start, stop in pairwise([0, *stops])]
        keys = [(name, *key) for key in zip(batch.documents, batch.lengths, strict=True)]
        for key in keys:
            replaced = self._documents.pop(key, None)
            self.free_bytes += 0 if replaced is None else replaced.rows.nbytes
        all_fit = rows.nbytes <= self.free_bytes
        for key, part in zip(keys, parts, strict=True):
            if part.rows.nbytes <= self.free_bytes:
                # A copy where only some fit, because a view would hold on to the memory of the others.
                entry = part if all_fit else _DocumentRows(part.rows.clone(), 0, part.stop - part.start)
                self._documents[key] = entry
                self.free_bytes -= entry.rows.nbytes
        return rows


class _Arena:
    """Large blocks of memory into which small tensors are copied.

    Small tensors that stay, between large ones that come and go, leave holes into which the next large one does not
    fit: the process would grow by many times the size of the cache.
    """

    def __init__(self) -> None:
        self._free: dict[torch.dtype, Tensor] = {}

    def copy(self, vector: Tensor) -> Tensor:
        """Copy a vector into a block."""
        size = len(vector)
        block = self._free.get(vector.dtype)
        if block is None or len(block) < size:
            block = vector.new_empty(max(size, _BLOCK))
        self._free[vector.dtype] = block[size:]
        return block[:size].copy_(vector)


class CachedCodes:
    """Codes of whole documents, without their zeros: an SAE encodes a corpus once, not once a property.

    Documents are encoded in groups that depend on the corpus alone: a matrix product of another size rounds
    differently, and a feature near its threshold would fire in one batch and not in another.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[int]], list[SparseCodes]],
        groups: Sequence[Sequence[int]],
        memory_bytes: int,
    ) -> None:
        """Cache what ``encode`` returns for documents; ``groups`` partitions the documents of the corpus."""
        self._encode = encode
        self._group_of = {document: group for group in groups for document in group}
        self.free_bytes = memory_bytes - memory_bytes // 4
        self._codes: dict[int, SparseCodes] = {}
        # A quarter for groups that do not fit, until all documents of a batch have been read.
        self._recent: OrderedDict[int, SparseCodes] = OrderedDict()
        self._recent_free_bytes = memory_bytes // 4
        self._arena, self._recent_arena = _Arena(), _Arena()

    def codes(self, document: int) -> SparseCodes:
        """Return the codes at the document's kept positions."""
        for cache in (self._codes, self._recent):
            if document in cache:
                return cache[document]
        group = self._group_of[document]
        encoded = self._encode(group)
        size = sum(codes.nbytes for codes in encoded)
        stays = size <= self.free_bytes
        arena = self._arena if stays else self._recent_arena
        copied = {document: codes.map(arena.copy) for document, codes in zip(group, encoded, strict=True)}
        if stays:
            self._codes |= copied
            self.free_bytes -= size
        else:
            self._recent |= copied
            self._recent_free_bytes -= size
            while len(self._recent) > len(group) and self._recent_free_bytes < 0:
                _, oldest = self._recent.popitem(last=False)
                self._recent_free_bytes += oldest.nbytes
        return copied[document]


def group_documents(rows: Sequence[int], size: int) -> list[range]:
    """Group neighbouring documents, of ``rows`` kept positions each, until a group has at least ``size`` positions."""
    groups, first, total = [], 0, 0
    for document, count in enumerate(rows):
        total += count
        if total >= size or document == len(rows) - 1:
            groups.append(range(first, document + 1))
            first, total = document + 1, 0
    return groups
