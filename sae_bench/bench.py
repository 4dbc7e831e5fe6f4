"""What properties measure with: one SAE on one site, over the documents of a tier, each shared quantity computed once.

Shapes: b documents of a batch, p positions (the longest of them), d site width, n SAE features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sae_bench.batch import Batch, Companion, Firing, Outcome, scatter, surprise, whole_clusters
from sae_bench.capture import Progress, SiteData, Store, captured
from sae_bench.corpus import Corpus
from sae_bench.errors import LoadError, MeasurementError
from sae_bench.floors import Draw, Pool
from sae_bench.kept import KeptCodes, KeptRows
from sae_bench.model import Model
from sae_bench.sae import decoder_norms
from sae_bench.site import Site
from sae_bench.tiers import TIERS, Settings, Tier

__all__ = ["TIERS", "Batch", "Bench", "Companion", "Firing", "Outcome", "Settings", "SiteData", "Tier", "site_data"]

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


class Bench:
    """One SAE, ready to be measured."""

    def __init__(
        self,
        sae: Any,
        model: Model,
        corpus: Corpus,
        site_data: SiteData,
        settings: Settings,
        *,
        include_bos: bool = False,
        progress: Progress | None = None,
        partner: Any = None,
        next_layers: Sequence[Companion] = (),
        family: Sequence[Companion] = (),
        contrast: str | None = None,
        concepts: str | None = None,
        id: str = "",
        circuit: str | None = None,
        source: SiteData | None = None,
    ) -> None:
        self.sae = sae
        self.partner = partner
        "A second SAE of the same site, of another seed; None when none is registered."
        self.next_layers = tuple(next_layers)
        "SAEs of later layers, the nearest first."
        self.family = tuple(family)
        "SAEs of the same site with dictionaries of other sizes, without this one."
        self.contrast = contrast
        "Path of a labelled dataset for contrast steering; None when none is registered."
        self.concepts = concepts
        "Path of a file of concepts and cycles; None when none is registered."
        self.id = id
        "What the SAE is registered as, by which files name it; '' for one that is not."
        self.circuit = circuit
        "Path of a circuit's prompts; None when none are registered."
        self.model = model
        self.corpus = corpus
        self.site_data = site_data
        self.source = source or site_data
        "What the SAE reads; `site_data` itself unless it is a transcoder."
        self.settings = settings
        self.include_bos = include_bos
        self.site = site_data.site
        self._progress = progress
        _check_fit(sae, self.source)
        self.documents = whole_clusters(corpus.cluster, settings.documents or settings.tier.documents)
        first = dict.fromkeys(corpus.cluster[: self.documents])
        self.clusters: tuple[int, ...] = tuple(first)
        order = {cluster: index for index, cluster in enumerate(first)}
        self.cluster_of = np.array([order[cluster] for cluster in corpus.cluster[: self.documents]])
        self._memo: dict[str, Any] = {}
        self._memo_of: Batch | None = None
        self._pool: Pool | None = None
        self._shared: dict[Hashable, Any] = {}
        self._codes_of = KeptCodes(self._encode, settings.memory_bytes // 16)
        self._arms = KeptRows(settings.memory_bytes // 16)

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
        for group in torch.split(order, TIERS["smoke"].documents or len(order)):
            # Documents of similar length share a batch, so that little is computed for padding. Only among the
            # documents of a smoke run, which thus has the same batches, and the same numbers, in every tier.
            by_length = group[torch.argsort(self.corpus.lengths[group], stable=True)]
            for rows in torch.split(by_length, self._batch_documents()):
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
        x = data.x[rows, :longest].to(device)
        return Batch(
            documents=documents,
            tokens=self.corpus.tokens[rows, :longest].to(device),
            lengths=tuple(lengths.tolist()),
            x=x,
            source=x if self.source is data else self.source.x[rows, :longest].to(device),
            block_input=data.block_input[rows, :longest].to(device),
            keep=(data.keep[rows, :longest] & (at < lengths[:, None])).to(device),
            keep_ce=(data.keep_ce[rows, :longest] & (at < lengths[:, None] - 1)).to(device),
        )

    def document_codes(self, document: int) -> Tensor:
        """(kept, n) feature activations at the kept positions of a document, in the SAE's own precision."""
        return self._codes_of.dense(document)

    def codes(self, batch: Batch) -> Tensor:
        """(b, p, n) float32 feature activations; 0 outside the kept positions."""
        return self._once(batch, "codes", lambda: self._codes(batch))

    def reconstruct(self, batch: Batch) -> Tensor:
        """(b, p, d) float32 reconstruction xhat; x itself outside the kept positions."""
        return self._once(batch, "xhat", lambda: self._reconstruct(batch))

    def error(self, batch: Batch) -> Tensor:
        """(b, p, d) xhat - x; 0 outside the kept positions."""
        return self.reconstruct(batch) - batch.x

    def decode(self, batch: Batch, codes: Tensor) -> Tensor:
        """(b, p, d) what other codes (b, p, n) decode to; x itself outside the kept positions."""
        out = batch.x.clone()
        with torch.no_grad():
            for row, keep, x, code in zip(out, batch.keep, batch.source, codes, strict=True):
                row[keep] = self.sae.decode(code[keep], like=x[keep]).to(row)
        return out

    @cached_property
    def decoder_norms(self) -> Tensor:
        """float32 (n,) norm of every decoder row; 1 for an SAE that shows no decoder."""
        try:
            return decoder_norms(self.sae)
        except MeasurementError:
            return torch.ones(int(self.sae.d_sae), device=self.settings.device)

    @cached_property
    def firing(self) -> Firing:
        """Firing statistics over the whole corpus, whatever the tier: "dead" must not depend on it."""
        n, norms = int(self.sae.d_sae), self.decoder_norms.double()
        count = torch.zeros(n, dtype=torch.int64, device=norms.device)
        total, square = torch.zeros_like(norms), torch.zeros_like(norms)
        for document in range(len(self.corpus)):
            codes = self._codes_of.sparse(document)
            size = (codes.value.float().abs() * self.decoder_norms[codes.feature]).double()
            count += torch.bincount(codes.feature, minlength=n)
            total.index_add_(0, codes.feature, size)
            square.index_add_(0, codes.feature, size.square())
        return Firing(len(self.site_data.kept), count.cpu(), total.cpu(), square.cpu())

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """``compute()``, once per ``key`` for this SAE: what several properties need."""
        if key not in self._shared:
            self._shared[key] = compute()
        found: T = self._shared[key]
        return found

    def beside(self, other: Companion) -> Bench:
        """The bench of one of `next_layers` or `family`: the same model, documents and settings, at its own site."""
        same = other.site == self.site
        data = (
            self.site_data
            if same
            else site_data(self.model, other.site, self.corpus, self.settings, self.include_bos, self._progress)
        )
        return self.shared(
            ("beside", other),
            lambda: Bench(
                other.sae,
                self.model,
                self.corpus,
                data,
                self.settings,
                include_bos=self.include_bos,
                progress=self._progress,
                source=self.source if same else data,
            ),
        )

    def advance(self, label: str, done: int, total: int) -> None:
        """Show how far a long part of a measurement is."""
        if self._progress is not None:
            self._progress(label, done, total)

    def token_text(self, token: int) -> str:
        """A token id as it stands in a text, with its leading space; its number where there is no tokenizer."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            return str(token)
        text = str(tokenizer.decode([token]))
        # Some tokenizers drop the space that a word begins with when it is decoded alone.
        return f" {text}" if str(tokenizer.decode([token, token])) == f"{text} {text}" else text

    def outcome(
        self, batch: Batch, value: Tensor | None, *, distances: bool = False, arm: str | None = None
    ) -> Outcome:
        """KL and CE when ``value`` (b, p, d) stands at the site's kept positions; None is the clean run, KL 0.

        ``distances`` adds the Euclidean distance of the log-probabilities and the total variation distance of the
        probabilities, each of which costs another pass over the vocabulary. ``arm`` names what stands there: what was
        found under a name is kept for whoever asks for it next.
        """
        keep = batch.keep
        if value is None:
            kept, arm = self.site_data.kept_rows, "clean outcome"
        else:
            kept = self._arms
        found = kept.find(arm, batch) if arm is not None else None
        if found is None or (distances and found.shape[-1] < 4):
            found = self._outcome(batch, value, distances)  # (rows, 2 or 4)
            self._check(batch, found, keep, "the model's output")
            if arm is not None:
                kept.keep(arm, batch, found)
        return Outcome(
            kl=scatter(found[:, 0], keep),
            ce=scatter(found[:, 1], keep) * batch.keep_ce,
            distance=scatter(found[:, 2], keep) if distances else None,
            moved=scatter(found[:, 3], keep) if distances else None,
        )

    def log_probs(self, batch: Batch, value: Tensor | None = None, *, where: Tensor | None = None) -> Tensor:
        """(rows, V) float32 log-probabilities at the true entries of ``where`` (b, p), in its order; else at `keep`."""
        where = batch.keep if where is None else where
        value = batch.x if value is None else value
        return torch.cat([logq for logq, _ in self._runs(batch, value, where)])

    def final_residual(self, batch: Batch, value: Tensor) -> Tensor:
        """(rows, d_model) float32, what the final norm reads at `keep` when ``value`` (b, p, d) stands at the site."""
        value = torch.where(batch.keep[..., None], value.to(batch.x), batch.x)
        return self.model.final_residual(batch.tokens, batch.block_input, self.site, value)[batch.keep]

    def pool(self) -> Pool:
        """What noise is drawn from, over the whole corpus."""
        if self._pool is None:
            data = self.site_data
            self._pool = Pool(
                mean=data.mean,
                covariance=data.covariance,
                rows=data.rows,
                kept=data.kept,
                errors=self._all_errors,
            )
        return self._pool

    def draw(self, batch: Batch, arm: str, index: int) -> Draw:
        """Random numbers of draw ``index`` of an arm, each document its own."""
        return Draw(self.settings.seed, batch.documents, batch.lengths, arm, index)

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
            rows = torch.tensor(batch.documents)
            for name, values in fn(batch).items():
                values = values.detach().to(device="cpu", dtype=torch.float64)
                if values.dim() == 1:
                    shape: tuple[int, ...] = (self.documents,)
                    self._check(batch, values, None, name)
                else:
                    shape = (self.documents, self.corpus.tokens.shape[1], *values.shape[2:])
                    keep = batch.keep.cpu()
                    self._check(batch, values[keep], keep, name)
                    values = torch.where(keep.view(*keep.shape, *[1] * (values.dim() - 2)), values, 0.0)
                table = tables.setdefault(name, torch.zeros(shape, dtype=torch.float64))
                if values.dim() == 1:
                    table[rows] = values
                else:
                    table[rows, : values.shape[1]] = values
            done += len(batch.documents)
            if self._progress is not None and progress_label:
                self._progress(progress_label, done, self.documents)
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

    def _encode(self, document: int) -> Tensor:
        """(kept, n) codes of a whole document.

        One document at a time: a matrix product of another size rounds differently, and a feature near its threshold
        would fire in one batch and not in another.
        """
        x = self.source.x[document][self.site_data.keep[document]]
        with torch.no_grad():
            codes: Tensor = self.sae.encode(x.to(self.settings.device))
        return codes

    def _codes(self, batch: Batch) -> Tensor:
        codes = batch.x.new_zeros(*batch.keep.shape, int(self.sae.d_sae))
        for row, keep, document in zip(codes, batch.keep, batch.documents, strict=True):
            # A document that was cut keeps its first positions.
            row[keep] = self._codes_of.dense(document)[: int(keep.sum())].to(row)
        self._check(batch, codes[batch.keep], batch.keep, "a code of the SAE")
        return codes

    def _reconstruct(self, batch: Batch) -> Tensor:
        xhat = batch.x.clone()
        with torch.no_grad():
            for row, keep, x, document in zip(xhat, batch.keep, batch.source, batch.documents, strict=True):
                codes = self._codes_of.dense(document)[: int(keep.sum())]
                row[keep] = self.sae.decode(codes, like=x[keep]).to(xhat)
        self._check(batch, xhat[batch.keep], batch.keep, "the SAE's reconstruction")
        return xhat

    def _all_errors(self) -> Tensor:
        """(N, d) errors at the kept positions of the whole corpus, in document order."""
        data = self.site_data
        errors = Store(self.settings.memory_bytes // 8).empty(len(data.kept), data.x.shape[-1])
        start = 0
        for document, (x, read, keep) in enumerate(zip(data.x, self.source.x, data.keep, strict=True)):
            clean, seen = x[keep].to(self.settings.device), read[keep].to(self.settings.device)
            with torch.no_grad():
                found = (self.sae.decode(self._codes_of.dense(document), like=seen).float() - clean).cpu()
            if not bool(torch.isfinite(found).all()):
                raise MeasurementError(f"the SAE's reconstruction is NaN or infinite in document {document}")
            errors[start : start + len(found)] = found
            start += len(found)
        return errors

    def _clean(self, batch: Batch) -> Tensor:
        """(kept, V) clean log-probabilities, kept while the batch lasts; longer, and for all SAEs, where they fit."""

        def compute() -> Tensor:
            kept = self.site_data.kept_rows
            found = kept.find("clean", batch)
            # The clean run goes through the same replacement, so that putting x back changes nothing, to the last bit.
            return kept.keep("clean", batch, self.log_probs(batch)) if found is None else found

        return self._once(batch, "clean", compute)

    def _outcome(self, batch: Batch, value: Tensor | None, distances: bool) -> Tensor:
        """(rows, 2) KL and CE at the kept positions; (rows, 4) with both distances."""
        clean = self._clean(batch)
        following = functional.pad(batch.tokens[:, 1:], (0, 1))[batch.keep]
        if value is None:
            none = clean.new_zeros(len(clean))
            return torch.stack([none, surprise(clean, following), *([none, none] if distances else [])], dim=-1)
        likely = self._once(batch, "likely", clean.exp)
        found = []
        for logq, (start, stop) in self._runs(batch, value, batch.keep):
            ce = surprise(logq, following[start:stop])
            moved = logq.exp().sub_(likely[start:stop]).abs_().sum(-1).div_(2) if distances else ce
            # In place, and with P kept for the batch: this pass over the vocabulary is a tenth of an arm's cost.
            apart = torch.sub(clean[start:stop], logq, out=logq)
            away = [torch.linalg.vector_norm(apart, dim=-1), moved] if distances else []
            found.append(torch.stack([apart.mul_(likely[start:stop]).sum(-1), ce, *away], dim=-1))
        return torch.cat(found)

    def _runs(self, batch: Batch, value: Tensor, where: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Log-probabilities at ``where``, in slices of documents whose logits fit the budget, and their rows."""
        value = torch.where(batch.keep[..., None], value.to(batch.x), batch.x)
        # Logits, log-probabilities and one product of them are alive at once.
        fitting = self.settings.memory_bytes // 8 // (3 * 4 * batch.tokens.shape[1] * self.model.d_vocab)
        step, start = max(1, fitting), 0
        for first in range(0, len(batch.documents), step):
            rows = slice(first, first + step)
            if not bool(where[rows].any()):
                continue
            logits = self.model.resume(
                batch.tokens[rows], batch.block_input[rows], self.site, value[rows], select=where[rows]
            )
            stop = start + len(logits)
            yield functional.log_softmax(logits, dim=-1), (start, stop)
            start = stop

    def _check(self, batch: Batch, values: Tensor, keep: Tensor | None, what: str) -> None:
        """Raise where ``values`` (rows of ``keep``, ...) are not finite, naming document and position."""
        if bool(torch.isfinite(values).all()):
            return
        bad = (~torch.isfinite(values)).reshape(len(values), -1).any(-1).nonzero()[0].item()
        if keep is None:
            raise MeasurementError(f"{what} is NaN or infinite in document {batch.documents[int(bad)]}")
        row, position = keep.nonzero()[int(bad)].tolist()
        raise MeasurementError(f"{what} is NaN or infinite at document {batch.documents[row]}, position {position}")


def _check_fit(sae: Any, data: SiteData) -> None:
    width = data.x.shape[-1]
    if int(sae.d_in) != width:
        raise LoadError(
            f"the SAE reads vectors of width {int(sae.d_in)}, but {data.site} of model {data.model.name!r} has width "
            f"{width}; check the model and the site it was trained on"
        )
