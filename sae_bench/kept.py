"""What is kept between properties and SAEs while it fits into memory, and computed anew where it does not.

Shapes: b documents of a batch, n SAE features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sae_bench.batch import Batch
from sae_bench.sparse_codes import SparseCodes


class KeptRows:
    """Rows at the kept positions of documents, by name: results that more than one property or SAE asks for."""

    def __init__(self, memory_bytes: int) -> None:
        self.left = memory_bytes
        self._rows: dict[tuple[str, int, int], Tensor] = {}

    def find(self, name: str, batch: Batch) -> Tensor | None:
        """(rows, ...) of the batch's documents, one after another; None where one of them is not kept."""
        found = [self._rows.get((name, *each)) for each in zip(batch.documents, batch.lengths, strict=True)]
        present = [rows for rows in found if rows is not None]
        return torch.cat(present) if len(present) == len(found) else None

    def keep(self, name: str, batch: Batch, rows: Tensor) -> Tensor:
        """``rows`` (rows, ...) of the batch's kept positions, of which as many documents are kept as fit."""
        parts = torch.split(rows, batch.keep.sum(1).tolist())
        for document, length, part in zip(batch.documents, batch.lengths, parts, strict=True):
            key = (name, document, length)
            held = self._rows.pop(key, None)
            self.left += 0 if held is None else held.nbytes
            if part.nbytes <= self.left:
                # A copy, because a view would hold on to the documents that do not fit.
                self._rows[key] = part.clone()
                self.left -= part.nbytes
        return rows


class KeptCodes:
    """Codes of whole documents, without their zeros: an SAE is run over a corpus once, not once a property."""

    def __init__(self, encode: Callable[[int], Tensor], memory_bytes: int) -> None:
        self._encode = encode
        self.left = memory_bytes
        self._codes: dict[int, SparseCodes] = {}

    def sparse(self, document: int) -> SparseCodes:
        """Codes at the document's kept positions."""
        if document in self._codes:
            return self._codes[document]
        return self._keep(document, self._encode(document))

    def dense(self, document: int) -> Tensor:
        """(kept, n) codes at the document's kept positions, in the SAE's own precision."""
        if document in self._codes:
            return self._codes[document].dense()
        codes = self._encode(document)
        self._keep(document, codes)
        return codes

    def _keep(self, document: int, codes: Tensor) -> SparseCodes:
        found = SparseCodes.of(codes)
        if found.nbytes <= self.left:
            self._codes[document] = found
            self.left -= found.nbytes
        return found
