"""What is kept between properties and SAEs while it fits into memory, and computed anew where it does not.

Shapes: b documents of a batch, n SAE features.
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

_PIECE = 1 << 23
"Entries of a piece of memory that small tensors share; what is not written to takes no memory yet."


@dataclass(frozen=True, eq=False)
class _Piece:
    """The rows of one document within those that were kept with it."""

    of: Tensor
    start: int
    stop: int

    @property
    def rows(self) -> Tensor:
        return self.of[self.start : self.stop]


class CachedRows:
    """Rows at the kept positions of documents, by name: results that more than one property or SAE asks for."""

    def __init__(self, memory_bytes: int) -> None:
        self.left = memory_bytes
        self._pieces: dict[tuple[str, int, int], _Piece] = {}

    def find(self, name: str, batch: Batch) -> Tensor | None:
        """(rows, ...) of the batch's documents, one after another; None where one of them is not kept.

        Nobody may change them: they are what is kept, where the documents were kept in this order.
        """
        found = [self._pieces.get((name, *each)) for each in zip(batch.documents, batch.lengths, strict=True)]
        pieces = [piece for piece in found if piece is not None]
        if len(pieces) < len(found):
            return None
        if all(one.of is other.of and one.stop == other.start for one, other in pairwise(pieces)):
            return pieces[0].of[pieces[0].start : pieces[-1].stop]
        return torch.cat([piece.rows for piece in pieces])

    def keep(self, name: str, batch: Batch, rows: Tensor) -> Tensor:
        """``rows`` (rows, ...) of the batch's kept positions, of which as many documents are kept as fit."""
        stops = batch.keep.sum(1).cumsum(0).tolist()
        pieces = [_Piece(rows, start, stop) for start, stop in pairwise([0, *stops])]
        for document, length in zip(batch.documents, batch.lengths, strict=True):
            held = self._pieces.pop((name, document, length), None)
            self.left += 0 if held is None else held.rows.nbytes
        whole = rows.nbytes <= self.left
        for document, length, piece in zip(batch.documents, batch.lengths, pieces, strict=True):
            if piece.rows.nbytes <= self.left:
                # Where not all of them fit a copy, because a view would hold on to the others.
                part = piece if whole else _Piece(piece.rows.clone(), 0, piece.stop - piece.start)
                self._pieces[name, document, length] = part
                self.left -= part.rows.nbytes
        return rows


class _Room:
    """Large pieces of memory, into which what is kept is copied.

    Small tensors that stay, between large ones that come and go, leave holes that the next large one does not fit into:
    a process then grows by many times what it keeps.
    """

    def __init__(self) -> None:
        self._free: dict[torch.dtype, Tensor] = {}

    def copy(self, tensor: Tensor) -> Tensor:
        """The same vector, in one of the pieces."""
        size = len(tensor)
        room = self._free.get(tensor.dtype)
        if room is None or len(room) < size:
            room = tensor.new_empty(max(size, _PIECE))
        self._free[tensor.dtype] = room[size:]
        return room[:size].copy_(tensor)


class CachedCodes:
    """Codes of whole documents, without their zeros: an SAE is run over a corpus once, not once a property.

    Documents are encoded in groups that follow from the corpus alone: a product of another size rounds differently, and
    a feature near its threshold would fire in one batch and not in another.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[int]], list[SparseCodes]],
        groups: Sequence[Sequence[int]],
        memory_bytes: int,
    ) -> None:
        """``encode`` gives the codes of each of some documents, ``groups`` holds all documents of the corpus."""
        self._encode = encode
        self._group_of = {document: group for group in groups for document in group}
        self.left = memory_bytes - memory_bytes // 4
        self._codes: dict[int, SparseCodes] = {}
        # A quarter for groups that do not fit, until all documents of a batch have been asked for.
        self._passing: OrderedDict[int, SparseCodes] = OrderedDict()
        self._passing_left = memory_bytes // 4
        self._room, self._passing_room = _Room(), _Room()

    def of(self, document: int) -> SparseCodes:
        """Codes at the document's kept positions."""
        for held in (self._codes, self._passing):
            if document in held:
                return held[document]
        group = self._group_of[document]
        encoded = self._encode(group)
        size = sum(codes.nbytes for codes in encoded)
        stays = size <= self.left
        room = self._room if stays else self._passing_room
        found = {document: codes.map(room.copy) for document, codes in zip(group, encoded, strict=True)}
        if stays:
            self._codes |= found
            self.left -= size
        else:
            self._passing |= found
            self._passing_left -= size
            while len(self._passing) > len(group) and self._passing_left < 0:
                _, oldest = self._passing.popitem(last=False)
                self._passing_left += oldest.nbytes
        return found[document]


def groups_of(rows: Sequence[int], size: int) -> list[range]:
    """Documents with ``rows`` kept positions each, in groups of neighbours that together have at least ``size``."""
    groups, first, total = [], 0, 0
    for document, count in enumerate(rows):
        total += count
        if total >= size or document == len(rows) - 1:
            groups.append(range(first, document + 1))
            first, total = document + 1, 0
    return groups
