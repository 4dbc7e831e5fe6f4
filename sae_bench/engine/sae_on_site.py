"""One SAE applied to one site: its codes over the whole corpus, without zeros, and its reconstructions.

Shapes: b documents of a batch, p positions (the longest of them), d site width, n SAE features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sae_bench.engine.batch import WINDOW, Batch, FiringCounts, check_finite, sort_by_length
from sae_bench.engine.cache import CachedCodes, group_documents
from sae_bench.engine.devices import send
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import SiteData
from sae_bench.engine.tensor_allocator import TensorAllocator
from sae_bench.errors import LoadError, MeasurementError
from sae_bench.sae import decode_codes, decoder_norms, encode_sparse
from sae_bench.sae.sparse_codes import SparseCodes

TOKENS = 512
"Tokens encoded at once; a matrix product of fewer rows is slower, and one of more makes larger codes."
ENTRIES = 1 << 26
"Codes, zeros included, that are computed at once."


class SAEOnSite:
    """Codes, reconstructions and firing statistics of one SAE on one site."""

    def __init__(self, sae: Any, site_data: SiteData, source: SiteData, settings: Settings) -> None:
        _check_width(sae, source)
        self.sae = sae
        self.site_data = site_data
        self.source = source
        self.settings = settings
        tokens = min(TOKENS, max(1, ENTRIES // int(sae.d_sae)))
        positions, documents = site_data.keep.sum(1).tolist(), torch.arange(len(site_data.keep))
        # The order of batches, so that a group is encoded once for a property that reads the documents in this order.
        windows = [sort_by_length(window, site_data.corpus.lengths) for window in torch.split(documents, WINDOW)]
        self._order: list[int] = torch.cat(windows).tolist()
        groups = group_documents([positions[document] for document in self._order], tokens)
        self._cache = CachedCodes(
            self._encode, [[self._order[place] for place in group] for group in groups], settings.memory_bytes // 16
        )

    def document_codes(self, document: int) -> SparseCodes:
        """Encode the kept positions of a document, in the SAE's own precision."""
        return self._cache.codes(document)

    def sparse_codes(self, batch: Batch) -> list[SparseCodes]:
        """Encode each document's kept positions; of a document that was cut, its first positions."""
        counts = batch.keep.sum(1).tolist()
        pairs = zip(batch.documents, counts, strict=True)
        return [self.document_codes(document).first(count) for document, count in pairs]

    def l0_per_token(self, batch: Batch) -> Tensor:
        """Count the features that fire on each token: int64 (b, p)."""
        counts = batch.tokens.new_zeros(batch.keep.shape)
        for row, keep, codes in zip(counts, batch.keep, self.sparse_codes(batch), strict=True):
            row[keep] = torch.bincount(codes.token, minlength=codes.tokens)
        return counts

    def weighted_l1(self, batch: Batch, weight: Tensor) -> Tensor:
        """Sum |code| times the feature's ``weight`` (n,) on each token: float64 (b, p)."""
        sums = torch.zeros(batch.keep.shape, dtype=torch.float64, device=batch.keep.device)
        for row, keep, codes in zip(sums, batch.keep, self.sparse_codes(batch), strict=True):
            weighted = codes.value.double().abs() * weight[codes.feature]
            row[keep] = weighted.new_zeros(codes.tokens).index_add_(0, codes.token, weighted)
        return sums

    def codes(self, batch: Batch) -> Tensor:
        """Encode: (b, p, n) float32 feature activations, 0 outside the kept positions."""
        dense = batch.x.new_zeros(*batch.keep.shape, int(self.sae.d_sae))
        for row, keep, codes in zip(dense, batch.keep, self.sparse_codes(batch), strict=True):
            row[keep.nonzero().flatten()[codes.token], codes.feature] = codes.value.to(row)
        check_finite(batch, dense[batch.keep], batch.keep, "a code of the SAE")
        return dense

    def reconstruct(self, batch: Batch) -> Tensor:
        """Reconstruct: (b, p, d) float32 xhat, x itself outside the kept positions."""
        xhat = batch.x.clone()
        with torch.no_grad():
            for row, keep, x, codes in zip(xhat, batch.keep, batch.source, self.sparse_codes(batch), strict=True):
                row[keep] = decode_codes(self.sae, codes, x[keep]).to(xhat)
        check_finite(batch, xhat[batch.keep], batch.keep, "the SAE's reconstruction")
        return xhat

    def decode(self, batch: Batch, codes: Tensor) -> Tensor:
        """Decode any codes (b, p, n): (b, p, d), x itself outside the kept positions."""
        out = batch.x.clone()
        with torch.no_grad():
            for row, keep, x, code in zip(out, batch.keep, batch.source, codes, strict=True):
                row[keep] = decode_codes(self.sae, code[keep], x[keep]).to(row)
        return out

    def errors(self) -> Tensor:
        """Compute the errors at the kept positions of the whole corpus, in document order: (N, d)."""
        data = self.site_data
        errors = TensorAllocator(self.settings.memory_bytes // 8).empty(len(data.kept_positions), data.x.shape[-1])
        starts = [0, *data.keep.sum(1).cumsum(0).tolist()]
        for document in self._order:
            keep = data.keep[document]
            x = send(data.x[document][keep], self.settings.device)
            read = x if self.source is data else send(self.source.x[document][keep], self.settings.device)
            with torch.no_grad():
                error = (decode_codes(self.sae, self.document_codes(document), read).float() - x).cpu()
            if not bool(torch.isfinite(error).all()):
                raise MeasurementError(f"the SAE's reconstruction is NaN or infinite in document {document}")
            errors[starts[document] : starts[document + 1]] = error
        return errors

    @cached_property
    def decoder_norms(self) -> Tensor:
        """Return the norm of every decoder row: float32 (n,), 1 for an SAE that shows no decoder."""
        try:
            return decoder_norms(self.sae)
        except MeasurementError:
            return torch.ones(int(self.sae.d_sae), device=self.settings.device)

    @cached_property
    def firing(self) -> FiringCounts:
        """Count firings over the whole corpus, whatever the tier: "dead" must not depend on it."""
        n, norms = int(self.sae.d_sae), self.decoder_norms.double()
        count = torch.zeros(n, dtype=torch.int64, device=norms.device)
        total, square = torch.zeros_like(norms), torch.zeros_like(norms)
        for document in self._order:
            codes = self.document_codes(document)
            size = (codes.value.float().abs() * self.decoder_norms[codes.feature]).double()
            count += torch.bincount(codes.feature, minlength=n)
            total.index_add_(0, codes.feature, size)
            square.index_add_(0, codes.feature, size.square())
        return FiringCounts(len(self.site_data.kept_positions), count.cpu(), total.cpu(), square.cpu())

    def _encode(self, documents: Sequence[int]) -> list[SparseCodes]:
        """Encode the kept positions of whole documents."""
        inputs = [self.source.x[document][self.site_data.keep[document]] for document in documents]
        with torch.no_grad():
            codes = encode_sparse(self.sae, send(torch.cat(inputs), self.settings.device))
        return codes.split([len(x) for x in inputs])


def _check_width(sae: Any, data: SiteData) -> None:
    width = data.x.shape[-1]
    if int(sae.d_in) != width:
        raise LoadError(
            f"the SAE reads vectors of width {int(sae.d_in)}, but {data.site} of model {data.model.name!r} has width "
            f"{width}; check the model and the site it was trained on"
        )
