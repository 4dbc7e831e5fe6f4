"""What the model says when something else stands at a site, beside what it says otherwise.

Shapes: b documents of a batch, p positions (the longest of them), d site width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from sae_bench.engine.batch import Batch, InterventionResult, check_finite, scatter
from sae_bench.engine.cache import CachedRows
from sae_bench.engine.captured_activations import SiteData
from sae_bench.engine.divergence import divergences, log_softmax_, surprise
from sae_bench.engine.settings import Settings


class Interventions:
    """Runs from one site on; the clean run is shared by all SAEs of the site, named arms are those of one SAE."""

    def __init__(self, site_data: SiteData, settings: Settings) -> None:
        self.site_data = site_data
        self.model = site_data.model
        self.entries = max(1, settings.memory_bytes // 8 // 4)
        "Logits alive at once."
        self._arms = CachedRows(settings.memory_bytes // 16)
        self._clean_of: tuple[Batch, Tensor] | None = None

    def outcome(self, batch: Batch, value: Tensor | None, distances: bool, condition: str | None) -> InterventionResult:
        """See `Bench.outcome`."""
        if value is None:
            kept, condition = self.site_data.kept_rows, "clean outcome"
        else:
            kept = self._arms
        found = kept.find(condition, batch) if condition is not None else None
        if found is None or (distances and found.shape[-1] < 4):
            found = self._outcome(batch, value, distances)  # (rows, 2 or 4)
            check_finite(batch, found, batch.keep, "the model's output")
            if condition is not None:
                kept.keep(condition, batch, found)
        return InterventionResult(
            kl=scatter(found[:, 0], batch.keep),
            ce=scatter(found[:, 1], batch.keep) * batch.keep_ce,
            distance=scatter(found[:, 2], batch.keep) if distances else None,
            moved=scatter(found[:, 3], batch.keep) if distances else None,
        )

    def log_probs(self, batch: Batch, value: Tensor | None, where: Tensor) -> Tensor:
        """See `Bench.log_probs`."""
        found, start = batch.x.new_empty(int(where.sum()), self.model.d_vocab), 0
        for logits in self._logits(batch, batch.x if value is None else value, where):
            found[start : start + len(logits)] = logits
            log_softmax_(found[start : start + len(logits)])
            start += len(logits)
        return found

    def _clean(self, batch: Batch) -> Tensor:
        """(rows, V) clean log-probabilities, kept while the batch lasts; longer, and for all SAEs, where they fit."""
        if self._clean_of is None or self._clean_of[0] is not batch:
            # Let go of the last batch's before the next one's are made.
            self._clean_of = None
            kept = self.site_data.kept_rows
            found = kept.find("clean", batch)
            if found is None:
                # The clean run goes through the same replacement, so that putting x back changes nothing, to the bit.
                found = kept.keep("clean", batch, self.log_probs(batch, None, batch.keep))
            self._clean_of = batch, found
        return self._clean_of[1]

    def _outcome(self, batch: Batch, value: Tensor | None, distances: bool) -> Tensor:
        """(rows, 2) KL and CE at the kept positions; (rows, 4) with both distances."""
        clean = self._clean(batch)
        following = functional.pad(batch.tokens[:, 1:], (0, 1))[batch.keep]
        if value is None:
            none = clean.new_zeros(len(clean))
            return torch.stack([none, surprise(clean, following), *([none, none] if distances else [])], dim=-1)
        found, start = [], 0
        for logits in self._logits(batch, value, batch.keep):
            rows = slice(start, start + len(logits))
            found.append(divergences(clean[rows], logits, following[rows], distances))
            start += len(logits)
        return torch.cat(found)

    def _logits(self, batch: Batch, value: Tensor, where: Tensor) -> Iterator[Tensor]:
        """(k, V) logits at ``where``, a block of rows at a time."""
        value = torch.where(batch.keep[..., None], value.to(batch.x), batch.x)
        return self.model.logit_blocks(
            batch.tokens, batch.block_input, self.site_data.site, value, select=where, entries=self.entries
        )
