"""What properties measure with: one SAE on one site, over the documents of a tier, each shared quantity computed once.

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
    by_length,
    check_finite,
    whole_clusters,
)
from sae_bench.engine.captured_activations import Progress, SiteData, captured
from sae_bench.engine.corpus import Corpus
from sae_bench.engine.devices import send
from sae_bench.engine.interventions import Interventions
from sae_bench.engine.noise_pool import NoisePool, SeededDraws
from sae_bench.engine.sae_runs import SAERuns
from sae_bench.engine.settings import TIERS, Settings, Tier
from sae_bench.model.language_model import Model
from sae_bench.registry.site import Site
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
    "site_data",
]

T = TypeVar("T")
Floats = NDArray[np.float64]


def site_data(
    model: Model,
    site: Site,
    corpus: Corpus,
    settings: Settings,
    include_bos: bool = False,
    progress: Progress | None = None,
) -> SiteData:
    """The activations of ``site`` over the corpus, captured once in this process."""
    return captured(model, site, corpus, include_bos=include_bos, memory_bytes=settings.memory_bytes, progress=progress)


@dataclass(eq=False)
class Bench:
    """One SAE, ready to be measured; `dataclasses.replace` gives it with other settings, or another SAE's."""

    sae: Any
    model: Model
    corpus: Corpus
    site_data: SiteData
    settings: Settings
    _: KW_ONLY
    include_bos: bool = False
    related: RelatedInputs = field(default_factory=RelatedInputs)
    "What its registration names to be read beside it."
    id: str = ""
    "What the SAE is registered as, by which files name it; '' for one that is not."
    source: SiteData = None  # type: ignore[assignment]
    "What the SAE reads; `site_data` itself unless it is a transcoder."
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.source = self.source or self.site_data
        self.site = self.site_data.site
        cluster = self.corpus.cluster
        self.documents = whole_clusters(cluster, self.settings.documents or self.settings.tier.documents)
        first = dict.fromkeys(cluster[: self.documents])
        self.clusters: tuple[int, ...] = tuple(first)
        order = {name: index for index, name in enumerate(first)}
        self.cluster_of = np.array([order[name] for name in cluster[: self.documents]])
        self._memo: dict[str, Any] = {}
        self._memo_of: Batch | None = None
        self._pool: NoisePool | None = None
        self._shared: dict[Hashable, Any] = {}
        self._reading = SAERuns(self.sae, self.site_data, self.source, self.settings)
        self._interventions = Interventions(self.site_data, self.settings)

    @property
    def has_model(self) -> bool:
        """False where only activations were given: whatever runs the model has no value there."""
        return getattr(self.model, "runs", True)

    @property
    def keep(self) -> Tensor:
        """bool (documents, pos) of the measured documents."""
        return self.site_data.keep[: self.documents]

    @property
    def keep_ce(self) -> Tensor:
        """bool (documents, pos) of the measured documents."""
        return self.site_data.keep_ce[: self.documents]

    def batches(self) -> Iterator[Batch]:
        """The measured documents, a batch at a time."""
        order = torch.arange(self.documents)
        if self.settings.order_seed is not None:
            generator = torch.Generator().manual_seed(self.settings.order_seed)
            order = torch.randperm(self.documents, generator=generator)
        for window in torch.split(order, WINDOW):
            for rows in torch.split(by_length(window, self.corpus.lengths), self._batch_documents()):
                yield self.batch(tuple(rows.tolist()))

    def batches_of(self, documents: Sequence[int]) -> Iterator[Batch]:
        """Any documents of the corpus, a batch at a time."""
        size = self._batch_documents()
        for first in range(0, len(documents), size):
            yield self.batch(tuple(documents[first : first + size]))

    def batch(self, documents: tuple[int, ...], stop: int | None = None) -> Batch:
        """A batch of given documents, each cut after ``stop`` tokens."""
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
        """(kept, n) feature activations at the kept positions of a document, in the SAE's own precision."""
        return self._reading.of(document).dense()

    def sparse(self, batch: Batch) -> list[SparseCodes]:
        """Codes at each document's kept positions, without their zeros."""
        return self._reading.sparse(batch)

    def active(self, batch: Batch) -> Tensor:
        """int64 (b, p) L0: features that fire on a token."""
        return self._once(batch, "l0", lambda: self._reading.active(batch))

    def strength(self, batch: Batch, weight: Tensor) -> Tensor:
        """float64 (b, p) sum of |code| times a feature's ``weight`` (n,)."""
        return self._reading.strength(batch, weight)

    def codes(self, batch: Batch) -> Tensor:
        """(b, p, n) float32 feature activations; 0 outside the kept positions."""
        return self._once(batch, "codes", lambda: self._reading.codes(batch))

    def reconstruct(self, batch: Batch) -> Tensor:
        """(b, p, d) float32 reconstruction xhat; x itself outside the kept positions."""
        return self._once(batch, "xhat", lambda: self._reading.reconstruct(batch))

    def error(self, batch: Batch) -> Tensor:
        """(b, p, d) xhat - x; 0 outside the kept positions."""
        return self.reconstruct(batch) - batch.x

    def decode(self, batch: Batch, codes: Tensor) -> Tensor:
        """(b, p, d) what other codes (b, p, n) decode to; x itself outside the kept positions."""
        return self._reading.decode(batch, codes)

    @property
    def decoder_norms(self) -> Tensor:
        """float32 (n,) norm of every decoder row; 1 for an SAE that shows no decoder."""
        return self._reading.decoder_norms

    @property
    def firing(self) -> FiringCounts:
        """Firing statistics over the whole corpus, whatever the tier."""
        return self._reading.firing

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """``compute()``, once per ``key`` for this SAE: what several properties need."""
        if key not in self._shared:
            self._shared[key] = compute()
        found: T = self._shared[key]
        return found

    def of(self, other: RelatedSAE) -> Bench:
        """The bench of an SAE of `beside`: the same model, documents and settings, at its own site."""

        def made() -> Bench:
            if other.site == self.site:
                return replace(self, sae=other.sae, related=RelatedInputs(), id="")
            data = site_data(self.model, other.site, self.corpus, self.settings, self.include_bos, self.progress)
            return replace(self, sae=other.sae, related=RelatedInputs(), id="", site_data=data, source=data)

        return self.shared(("related", other), made)

    def advance(self, label: str, done: int, total: int) -> None:
        """Show how far a long part of a measurement is."""
        if self.progress is not None:
            self.progress(label, done, total)

    def token_text(self, token: int) -> str:
        """A token id as it stands in a text, with its leading space; its number where there is no tokenizer."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            return str(token)
        text = str(tokenizer.decode([token]))
        # Some tokenizers drop the space that a word begins with when it is decoded alone.
        return f" {text}" if str(tokenizer.decode([token, token])) == f"{text} {text}" else text

    def outcome(
        self, batch: Batch, value: Tensor | None, *, distances: bool = False, condition: str | None = None
    ) -> InterventionResult:
        """KL and CE when ``value`` (b, p, d) stands at the site's kept positions; None is the clean run, KL 0.

        ``distances`` adds the Euclidean distance of the log-probabilities and the total variation distance of the
        probabilities, each of which costs another pass over the vocabulary. ``condition`` names what stands there: what was
        found under a name is kept for whoever asks for it next.
        """
        return self._interventions.outcome(batch, value, distances, condition)

    def log_probs(self, batch: Batch, value: Tensor | None = None, *, where: Tensor | None = None) -> Tensor:
        """(rows, V) float32 log-probabilities at the true entries of ``where`` (b, p), in its order; else at `keep`."""
        return self._interventions.log_probs(batch, value, batch.keep if where is None else where)

    def final_residual(self, batch: Batch, value: Tensor) -> Tensor:
        """(rows, d_model) float32, what the final norm reads at `keep` when ``value`` (b, p, d) stands at the site."""
        value = torch.where(batch.keep[..., None], value.to(batch.x), batch.x)
        return self.model.final_residual(batch.tokens, batch.block_input, self.site, value)[batch.keep]

    def pool(self) -> NoisePool:
        """What noise is drawn from, over the whole corpus."""
        if self._pool is None:
            data = self.site_data
            self._pool = NoisePool(
                mean=data.mean,
                covariance=data.covariance,
                rows=data.rows,
                kept_positions=data.kept_positions,
                errors=self._reading.errors,
            )
        return self._pool

    def draw(self, batch: Batch, condition: str, index: int) -> SeededDraws:
        """Random numbers of draw ``index`` of an arm, each document its own."""
        return SeededDraws(self.settings.seed, batch.documents, batch.lengths, condition, index)

    def per_cluster(self, table: Tensor) -> Floats:
        """(clusters,) sums of a (documents, pos) or (documents,) table."""
        rows = table.reshape(self.documents, -1).to(device="cpu", dtype=torch.float64).sum(-1)
        sums = np.bincount(self.cluster_of, weights=rows.numpy(), minlength=len(self.clusters))
        return sums.astype(np.float64)

    def collect(self, fn: Callable[[Batch], Mapping[str, Tensor]], progress_label: str = "") -> dict[str, Tensor]:
        """``fn`` over all batches, put together in document order.

        It returns tensors (b,) or (b, p); they become float64 (documents,) or (documents, pos), 0 outside the kept
        positions. A NaN or inf at a kept position is a `MeasurementError`.
        """
        tables: dict[str, Tensor] = {}
        done = 0
        for batch in self.batches():
            rows, keep = torch.tensor(batch.documents), batch.keep.cpu()
            for name, values in fn(batch).items():
                values = values.detach().to(device="cpu", dtype=torch.float64)
                if values.dim() == 1:
                    shape: tuple[int, ...] = (self.documents,)
                    check_finite(batch, values, None, name)
                else:
                    shape = (self.documents, self.corpus.tokens.shape[1], *values.shape[2:])
                    check_finite(batch, values[keep], keep, name)
                    values = torch.where(keep.view(*keep.shape, *[1] * (values.dim() - 2)), values, 0.0)
                table = tables.setdefault(name, torch.zeros(shape, dtype=torch.float64))
                if values.dim() == 1:
                    table[rows] = values
                else:
                    table[rows, : values.shape[1]] = values
            done += len(batch.documents)
            if self.progress is not None and progress_label:
                self.progress(progress_label, done, self.documents)
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
        found: Tensor = self._memo[name]
        return found
