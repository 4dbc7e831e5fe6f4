"""Interventions: the model runs on from a site whose activation is replaced, and is compared with its clean run.

Shapes: b documents of a batch, p positions (the longest of them), d site width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from sae_bench.engine.batch import Batch, InterventionResult, check_finite, scatter
from sae_bench.engine.cache import CachedRows
from sae_bench.engine.divergence import divergences, log_softmax_, surprise
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import SiteData


class Interventions:
    """Interventions at one site; all SAEs of the site share the clean run, named conditions belong to one SAE."""

    def __init__(self, site_data: SiteData, settings: Settings) -> None:
        self.site_data = site_data
        self.model = site_data.model
        self.entries = max(1, settings.memory_bytes // 8 // 4)
        "Logits in memory at once."
        self._conditions = CachedRows(settings.memory_bytes // 16)
        self._clean_of: tuple[Batch, Tensor] | None = None

    def intervene(
        self, batch: Batch, value: Tensor | None, distances: bool, condition: str | None
    ) -> InterventionResult:
        """See `Bench.intervene`."""
        if value is None:
            cache, condition = self.site_data.clean_cache, "clean outcome"
        else:
            cache = self._conditions
        columns = cache.get(condition, batch) if condition is not None else None
        if columns is None or (distances and columns.shape[-1] < 4):
            columns = self._columns(batch, value, distances)  # (rows, 2 or 4)
            check_finite(batch, columns, batch.keep, "the model's output")
            if condition is not None:
                cache.put(condition, batch, columns)
        return InterventionResult(
            kl=scatter(columns[:, 0], batch.keep),
            ce=scatter(columns[:, 1], batch.keep) * batch.keep_ce,
            logprob_distance=scatter(columns[:, 2], batch.keep) if distances else None,
            total_variation=scatter(columns[:, 3], batch.keep) if distances else None,
        )

    def log_probs(self, batch: Batch, value: Tensor | None, where: Tensor) -> Tensor:
        """See `Bench.log_probs`."""
        rows, start = batch.x.new_empty(int(where.sum()), self.model.d_vocab), 0
        for logits in self._logits(batch, batch.x if value is None else value, where):
            rows[start : start + len(logits)] = logits
            log_softmax_(rows[start : start + len(logits)])
            start += len(logits)
        return rows

    def _clean(self, batch: Batch) -> Tensor:
        """Return (rows, V) clean log-probabilities, cached for this batch and, where they fit, for all SAEs."""
        if self._clean_of is None or self._clean_of[0] is not batch:
            # Free the last batch's before the next ones are computed.
            self._clean_of = None
            cache = self.site_data.clean_cache
            log_probs = cache.get("clean", batch)
            if log_probs is None:
                # The clean run goes through the same replacement, so that putting x back changes nothing, to the bit.
                log_probs = cache.put("clean", batch, self.log_probs(batch, None, batch.keep))
            self._clean_of = batch, log_probs
        return self._clean_of[1]

    def _columns(self, batch: Batch, value: Tensor | None, distances: bool) -> Tensor:
        """Compute (rows, 2) KL and CE at the kept positions; (rows, 4) with both distances."""
        clean = self._clean(batch)
        following = functional.pad(batch.tokens[:, 1:], (0, 1))[batch.keep]
        if value is None:
            zeros = clean.new_zeros(len(clean))
            return torch.stack([zeros, surprise(clean, following), *([zeros, zeros] if distances else [])], dim=-1)
        parts, start = [], 0
        for logits in self._logits(batch, value, batch.keep):
            rows = slice(start, start + len(logits))
            parts.append(divergences(clean[rows], logits, following[rows], distances))
            start += len(logits)
        return torch.cat(parts)

    def _logits(self, batch: Batch, value: Tensor, where: Tensor) -> Iterator[Tensor]:
        """Yield (k, V) logits at ``where``, a block of rows at a time."""
        value = torch.where(batch.keep[..., None], value.to(batch.x), batch.x)
        return self.model.logit_blocks(
            batch.tokens, batch.block_input, self.site_data.site, value, select=where, entries=self.entries
        )
