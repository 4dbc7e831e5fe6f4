"""The bench a property measures on: one SAE at one site over the documents of a tier, with shared results cached.

Shapes: b documents of a batch, p positions (the longest of them), d site width, n SAE features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_bench.engine.batch import (
    WINDOW,
    Batch,
    FiringCounts,
    InterventionResult,
    RelatedInputs,
    RelatedSAE,
    check_finite,
    sort_by_length,
    whole_cluster_prefix,
)
from sae_bench.engine.corpus import Corpus
from sae_bench.engine.devices import send
from sae_bench.engine.interventions import Interventions
from sae_bench.engine.noise_pool import NoisePool, SeededDraws
from sae_bench.engine.sae_on_site import SAEOnSite
from sae_bench.engine.settings import TIERS, Settings, Tier
from sae_bench.engine.site_data import Progress, SiteData, capture_site
from sae_bench.model.language_model import Model
from sae_bench.sae.sparse_codes import SparseCodes

__all__ = [
    "TIERS",
    "Batch",
    "Bench",
    "FiringCounts",
    "InterventionResult",
    "RelatedInputs",
    "RelatedSAE",
    "Settings",
    "SiteData",
    "Tier",
    "capture_site",
]

T = TypeVar("T")


@dataclass(eq=False)
class Bench:
    """One SAE at one site, ready to be measured; `dataclasses.replace` changes its settings or its SAE."""

    sae: Any
    model: Model
    corpus: Corpus
    site_data: SiteData
    settings: Settings
    _: KW_ONLY
    include_bos: bool = False
    related: RelatedInputs = field(default_factory=RelatedInputs)
    "Other SAEs and labelled files that its registration names."
    id: str = ""
    "Registered id, by which files name the SAE; '' for one that is not registered."
    source: SiteData = None  # type: ignore[assignment]
    "Activations that the SAE reads; `site_data` itself unless it is a transcoder."
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.source = self.source or self.site_data
        self.site = self.site_data.site
        cluster = self.corpus.cluster
        self.n_documents = whole_cluster_prefix(cluster, self.settings.documents or self.settings.tier.documents)
        first = dict.fromkeys(cluster[: self.n_documents])
        self.clusters: tuple[int, ...] = tuple(first)
        order = {name: index for index, name in enumerate(first)}
        self.cluster_of = np.array([order[name] for name in cluster[: self.n_documents]])
        self._memo: dict[str, Any] = {}
        self._memo_of: Batch | None = None
        self._pool: NoisePool | None = None
        self._shared: dict[Hashable, Any] = {}
        self._sae_on_site = SAEOnSite(self.sae, self.site_data, self.source, self.settings)
        self._interventions = Interventions(self.site_data, self.settings)

    @property
    def has_model(self) -> bool:
        """Return False for activations without a model: metrics that run the model are undefined there."""
        return getattr(self.model, "runs", True)

    @property
    def keep(self) -> Tensor:
        """Mark the kept positions of the measured documents: bool (documents, pos)."""
        return self.site_data.keep[: self.n_documents]

    @property
    def keep_ce(self) -> Tensor:
        """Mark the kept positions of the measured documents: bool (documents, pos)."""
        return self.site_data.keep_ce[: self.n_documents]

    def batches(self) -> Iterator[Batch]:
        """Yield the measured documents, a batch at a time."""
        order = torch.arange(self.n_documents)
        if self.settings.order_seed is not None:
            generator = torch.Generator().manual_seed(self.settings.order_seed)
            order = torch.randperm(self.n_documents, generator=generator)
        for window in torch.split(order, WINDOW):
            for rows in torch.split(sort_by_length(window, self.corpus.lengths), self._batch_documents()):
                yield self.batch(tuple(rows.tolist()))

    def batches_of(self, documents: Sequence[int]) -> Iterator[Batch]:
        """Yield any documents of the corpus, a batch at a time."""
        size = self._batch_documents()
        for first in range(0, len(documents), size):
            yield self.batch(tuple(documents[first : first + size]))

    def batch(self, documents: tuple[int, ...], stop: int | None = None) -> Batch:
        """Return a batch of some documents, each cut after ``stop`` tokens."""
        data, device = self.site_data, self.settings.device
        rows = torch.tensor(documents)
        lengths = self.corpus.lengths[rows].clamp(max=self.corpus.tokens.shape[1] if stop is None else stop)
        longest = int(lengths.max())
        at = torch.arange(longest)
        x = send(data.x[rows, :longest], device)
        return Batch(
            documents=documents,
            tokens=send(self.corpus.tokens[rows, :longest], device),
            lengths=tuple(lengths.tolist()),
            x=x,
            source=x if self.source is data else send(self.source.x[rows, :longest], device),
            block_input=x if data.block_input is data.x else send(data.block_input[rows, :longest], device),
            keep=send(data.keep[rows, :longest] & (at < lengths[:, None]), device),
            keep_ce=send(data.keep_ce[rows, :longest] & (at < lengths[:, None] - 1), device),
        )

    def document_codes(self, document: int) -> Tensor:
        """Encode the kept positions of a document: (positions, n) feature activations in the SAE's own precision."""
        return self._sae_on_site.document_codes(document).dense()

    def sparse_codes(self, batch: Batch) -> list[SparseCodes]:
        """Encode each document's kept positions, without the zeros."""
        return self._sae_on_site.sparse_codes(batch)

    def l0_per_token(self, batch: Batch) -> Tensor:
        """Count the features that fire on each token, its L0: int64 (b, p)."""
        return self._once(batch, "l0", lambda: self._sae_on_site.l0_per_token(batch))

    def weighted_l1(self, batch: Batch, weight: Tensor) -> Tensor:
        """Sum |code| times the feature's ``weight`` (n,) on each token: float64 (b, p)."""
        return self._sae_on_site.weighted_l1(batch, weight)

    def codes(self, batch: Batch) -> Tensor:
        """Encode: (b, p, n) float32 feature activations, 0 outside the kept positions."""
        return self._once(batch, "codes", lambda: self._sae_on_site.codes(batch))

    def reconstruct(self, batch: Batch) -> Tensor:
        """Reconstruct: (b, p, d) float32 xhat, x itself outside the kept positions."""
        return self._once(batch, "xhat", lambda: self._sae_on_site.reconstruct(batch))

    def error(self, batch: Batch) -> Tensor:
        """Return xhat - x: (b, p, d), 0 outside the kept positions."""
        return self.reconstruct(batch) - batch.x

    def decode(self, batch: Batch, codes: Tensor) -> Tensor:
        """Decode any codes (b, p, n): (b, p, d), x itself outside the kept positions."""
        return self._sae_on_site.decode(batch, codes)

    @property
    def decoder_norms(self) -> Tensor:
        """Return the norm of every decoder row: float32 (n,), 1 for an SAE that shows no decoder."""
        return self._sae_on_site.decoder_norms

    @property
    def firing(self) -> FiringCounts:
        """Return firing statistics over the whole corpus, whatever the tier."""
        return self._sae_on_site.firing

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return ``compute()``, called once per ``key`` for this SAE: a result that several properties need."""
        if key not in self._shared:
            self._shared[key] = compute()
        result: T = self._shared[key]
        return result

    def related_bench(self, related: RelatedSAE) -> Bench:
        """Return the bench of an SAE of `related`: the same model, documents and settings, at its own site."""

        def make() -> Bench:
            if related.site == self.site:
                return replace(self, sae=related.sae, related=RelatedInputs(), id="")
            data = capture_site(self.model, related.site, self.corpus, self.settings, self.include_bos, self.progress)
            return replace(self, sae=related.sae, related=RelatedInputs(), id="", site_data=data, source=data)

        return self.shared(("related", related), make)

    def show_progress(self, label: str, done: int, total: int) -> None:
        """Report the progress of a long part of a measurement."""
        if self.progress is not None:
            self.progress(label, done, total)

    def token_text(self, token: int) -> str:
        """Return a token as it reads in a text, with its leading space; its id where there is no tokenizer."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            return str(token)
        text = str(tokenizer.decode([token]))
        # Some tokenizers drop the space that a word begins with when it is decoded alone.
        return f" {text}" if str(tokenizer.decode([token, token])) == f"{text} {text}" else text

    def intervene(
        self, batch: Batch, value: Tensor | None, *, distances: bool = False, condition: str | None = None
    ) -> InterventionResult:
        """Run the model with ``value`` (b, p, d) at the site's kept positions: KL and CE; None is the clean run, KL 0.

        ``distances`` adds the Euclidean distance of the log-probabilities and the total variation distance of the
        probabilities, each of which costs another pass over the vocabulary. ``condition`` names the value: a later call
        with the same batch and name returns the cached result.
        """
        return self._interventions.intervene(batch, value, distances, condition)

    def log_probs(self, batch: Batch, value: Tensor | None = None, *, where: Tensor | None = None) -> Tensor:
        """Return (rows, V) float32 log-probabilities at the true entries of ``where`` (b, p), by default of `keep`."""
        return self._interventions.log_probs(batch, value, batch.keep if where is None else where)

    def final_residual(self, batch: Batch, value: Tensor) -> Tensor:
        """Run the model with ``value`` (b, p, d) at the site: (rows, d_model) float32 input of the final norm."""
        value = torch.where(batch.keep[..., None], value.to(batch.x), batch.x)
        return self.model.final_residual(batch.tokens, batch.block_input, self.site, value)[batch.keep]

    def noise_pool(self) -> NoisePool:
        """Return the activations and errors that noise floors draw from, over the whole corpus."""
        if self._pool is None:
            data = self.site_data
            self._pool = NoisePool(
                mean=data.mean,
                covariance=data.covariance,
                rows=data.rows,
                kept_positions=data.kept_positions,
                errors=self._sae_on_site.errors,
            )
        return self._pool

    def draw(self, batch: Batch, condition: str, index: int) -> SeededDraws:
        """Return the random numbers of draw ``index`` of a condition, each document its own."""
        return SeededDraws(self.settings.seed, batch.documents, batch.lengths, condition, index)

    def per_cluster(self, table: Tensor) -> NDArray[np.float64]:
        """Sum a (documents, pos) or (documents,) table over each cluster: (clusters,)."""
        rows = table.reshape(self.n_documents, -1).to(device="cpu", dtype=torch.float64).sum(-1)
        sums = np.bincount(self.cluster_of, weights=rows.numpy(), minlength=len(self.clusters))
        return sums.astype(np.float64)

    def collect(self, fn: Callable[[Batch], Mapping[str, Tensor]], progress_label: str = "") -> dict[str, Tensor]:
        """Call ``fn`` on every batch and join its tables in document order.

        ``fn`` returns tensors (b,) or (b, p); they become float64 (documents,) or (documents, pos), 0 outside the kept
        positions. A NaN or inf at a kept position is a `MeasurementError`.
        """
        tables: dict[str, Tensor] = {}
        done = 0
        for batch in self.batches():
            rows, keep = torch.tensor(batch.documents), batch.keep.cpu()
            for name, values in fn(batch).items():
                values = values.detach().to(device="cpu", dtype=torch.float64)
                if values.dim() == 1:
                    shape: tuple[int, ...] = (self.n_documents,)
                    check_finite(batch, values, None, name)
                else:
                    shape = (self.n_documents, self.corpus.tokens.shape[1], *values.shape[2:])
                    check_finite(batch, values[keep], keep, name)
                    values = torch.where(keep.view(*keep.shape, *[1] * (values.dim() - 2)), values, 0.0)
                table = tables.setdefault(name, torch.zeros(shape, dtype=torch.float64))
                if values.dim() == 1:
                    table[rows] = values
                else:
                    table[rows, : values.shape[1]] = values
            done += len(batch.documents)
            if self.progress is not None and progress_label:
                self.progress(progress_label, done, self.n_documents)
        return tables

    def _batch_documents(self) -> int:
        widest = max(self.model.d_vocab, int(self.sae.d_sae))
        fitting = self.settings.memory_bytes // 4 // (4 * self.corpus.tokens.shape[1] * widest)
        return max(1, min(self.settings.batch_size, fitting))

    def _once(self, batch: Batch, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if self._memo_of is not batch:
            self._memo.clear()
            self._memo_of = batch
        if name not in self._memo:
            self._memo[name] = compute()
        result: Tensor = self._memo[name]
        return result
