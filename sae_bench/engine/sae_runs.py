"""What an SAE makes of a site's activations: its codes over the whole corpus, without zeros, and the way back.

Shapes: b documents of a batch, p positions (the longest of them), d site width, n SAE features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sae_bench.engine.batch import WINDOW, Batch, FiringCounts, by_length, check_finite
from sae_bench.engine.cache import CachedCodes, groups_of
from sae_bench.engine.captured_activations import SiteData, TensorStore
from sae_bench.engine.devices import send
from sae_bench.engine.settings import Settings
from sae_bench.errors import LoadError, MeasurementError
from sae_bench.sae import decoded, decoder_norms, encoded
from sae_bench.sae.sparse_codes import SparseCodes

TOKENS = 512
"Encoded at once; a matrix product of fewer rows is slower, and one of more makes larger codes."
ENTRIES = 1 << 26
"Codes, zeros included, that are made at once."


class SAERuns:
    """One SAE on one site."""

    def __init__(self, sae: Any, site_data: SiteData, source: SiteData, settings: Settings) -> None:
        _check_fit(sae, source)
        self.sae = sae
        self.site_data = site_data
        self.source = source
        self.settings = settings
        rows = min(TOKENS, max(1, ENTRIES // int(sae.d_sae)))
        kept, documents = site_data.keep.sum(1).tolist(), torch.arange(len(site_data.keep))
        # As batches take them, so that what is not kept is encoded once for all who go through the documents in order.
        windows = torch.split(documents, WINDOW)
        self._order = [each for window in windows for each in by_length(window, site_data.corpus.lengths).tolist()]
        places = groups_of([kept[document] for document in self._order], rows)
        groups = [[self._order[place] for place in group] for group in places]
        self._kept = CachedCodes(self._encode, groups, settings.memory_bytes // 16)

    def of(self, document: int) -> SparseCodes:
        """Codes at the kept positions of a document, in the SAE's own precision."""
        return self._kept.of(document)

    def sparse(self, batch: Batch) -> list[SparseCodes]:
        """Codes at each document's kept positions; a document that was cut keeps its first positions."""
        counts = batch.keep.sum(1).tolist()
        return [self.of(each).first(count) for each, count in zip(batch.documents, counts, strict=True)]

    def active(self, batch: Batch) -> Tensor:
        """int64 (b, p) features that fire on a token."""
        found = batch.tokens.new_zeros(batch.keep.shape)
        for row, keep, codes in zip(found, batch.keep, self.sparse(batch), strict=True):
            row[keep] = torch.bincount(codes.token, minlength=codes.tokens)
        return found

    def strength(self, batch: Batch, weight: Tensor) -> Tensor:
        """float64 (b, p) sum of |code| times a feature's ``weight`` (n,)."""
        found = torch.zeros(batch.keep.shape, dtype=torch.float64, device=batch.keep.device)
        for row, keep, codes in zip(found, batch.keep, self.sparse(batch), strict=True):
            each = codes.value.double().abs() * weight[codes.feature]
            row[keep] = each.new_zeros(codes.tokens).index_add_(0, codes.token, each)
        return found

    def codes(self, batch: Batch) -> Tensor:
        """(b, p, n) float32 feature activations; 0 outside the kept positions."""
        found = batch.x.new_zeros(*batch.keep.shape, int(self.sae.d_sae))
        for row, keep, codes in zip(found, batch.keep, self.sparse(batch), strict=True):
            row[keep.nonzero().flatten()[codes.token], codes.feature] = codes.value.to(row)
        check_finite(batch, found[batch.keep], batch.keep, "a code of the SAE")
        return found

    def reconstruct(self, batch: Batch) -> Tensor:
        """(b, p, d) float32 reconstruction xhat; x itself outside the kept positions."""
        xhat = batch.x.clone()
        with torch.no_grad():
            for row, keep, x, codes in zip(xhat, batch.keep, batch.source, self.sparse(batch), strict=True):
                row[keep] = decoded(self.sae, codes, x[keep]).to(xhat)
        check_finite(batch, xhat[batch.keep], batch.keep, "the SAE's reconstruction")
        return xhat

    def decode(self, batch: Batch, codes: Tensor) -> Tensor:
        """(b, p, d) what other codes (b, p, n) decode to; x itself outside the kept positions."""
        out = batch.x.clone()
        with torch.no_grad():
            for row, keep, x, code in zip(out, batch.keep, batch.source, codes, strict=True):
                row[keep] = decoded(self.sae, code[keep], x[keep]).to(row)
        return out

    def errors(self) -> Tensor:
        """(N, d) errors at the kept positions of the whole corpus, in document order."""
        data = self.site_data
        errors = TensorStore(self.settings.memory_bytes // 8).empty(len(data.kept_positions), data.x.shape[-1])
        starts = [0, *data.keep.sum(1).cumsum(0).tolist()]
        for document in self._order:
            keep = data.keep[document]
            x = send(data.x[document][keep], self.settings.device)
            read = x if self.source is data else send(self.source.x[document][keep], self.settings.device)
            with torch.no_grad():
                found = (decoded(self.sae, self.of(document), read).float() - x).cpu()
            if not bool(torch.isfinite(found).all()):
                raise MeasurementError(f"the SAE's reconstruction is NaN or infinite in document {document}")
            errors[starts[document] : starts[document + 1]] = found
        return errors

    @cached_property
    def decoder_norms(self) -> Tensor:
        """float32 (n,) norm of every decoder row; 1 for an SAE that shows no decoder."""
        try:
            return decoder_norms(self.sae)
        except MeasurementError:
            return torch.ones(int(self.sae.d_sae), device=self.settings.device)

    @cached_property
    def firing(self) -> FiringCounts:
        """Firing statistics over the whole corpus, whatever the tier: "dead" must not depend on it."""
        n, norms = int(self.sae.d_sae), self.decoder_norms.double()
        count = torch.zeros(n, dtype=torch.int64, device=norms.device)
        total, square = torch.zeros_like(norms), torch.zeros_like(norms)
        for document in self._order:
            codes = self.of(document)
            size = (codes.value.float().abs() * self.decoder_norms[codes.feature]).double()
            count += torch.bincount(codes.feature, minlength=n)
            total.index_add_(0, codes.feature, size)
            square.index_add_(0, codes.feature, size.square())
        return FiringCounts(len(self.site_data.kept_positions), count.cpu(), total.cpu(), square.cpu())

    def _encode(self, documents: Sequence[int]) -> list[SparseCodes]:
        """Codes of whole documents."""
        kept = [self.source.x[document][self.site_data.keep[document]] for document in documents]
        with torch.no_grad():
            codes = encoded(self.sae, send(torch.cat(kept), self.settings.device))
        return codes.split([len(x) for x in kept])


def _check_fit(sae: Any, data: SiteData) -> None:
    width = data.x.shape[-1]
    if int(sae.d_in) != width:
        raise LoadError(
            f"the SAE reads vectors of width {int(sae.d_in)}, but {data.site} of model {data.model.name!r} has width "
            f"{width}; check the model and the site it was trained on"
        )
