"""Activations of one site over a whole corpus: captured once, shared by all SAEs and properties of the site.

Shapes: docs documents, pos positions, d site width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from sae_bench.engine.cache import CachedRows
from sae_bench.engine.corpus import Corpus, check_context, check_tokenizer, check_vocabulary
from sae_bench.engine.devices import send
from sae_bench.engine.settings import Settings
from sae_bench.engine.tensor_allocator import TensorAllocator
from sae_bench.errors import MeasurementError
from sae_bench.model.language_model import Model
from sae_bench.registry.site import KINDS, Site

T = TypeVar("T")
Progress: TypeAlias = Callable[[str, int, int], None]
"Called with a label of the step, the number of documents done, and their total."

_TOKENS = 2048
"""Tokens per capturing pass. Fixed, so that the captured numbers do not depend on the batch size of a run. Twice as
many take a third more time, because intermediate tensors no longer fit into memory that is reused."""
_ROWS = 512
"Tokens in a float32 product of the covariance; with fewer, the float64 sums take longer than the products."


class SiteData:
    """Activations of one site over the whole corpus, with their masks, mean and covariance."""

    def __init__(self, model: Model, site: Site, corpus: Corpus, *, include_bos: bool, memory_bytes: int) -> None:
        check_vocabulary(corpus, model.d_vocab)
        check_tokenizer(corpus, model.tokenizer_sha256)
        check_context(corpus, model.context)
        self.model = model
        self.site = site
        self.corpus = corpus
        self.include_bos = include_bos
        docs, pos = corpus.tokens.shape
        self.tensors = TensorAllocator(memory_bytes - memory_bytes // 4)
        self.clean_cache = CachedRows(memory_bytes // 8)
        "Log-probabilities and losses of the clean run, for all SAEs of the site."
        self.x = self.tensors.empty(docs, pos, model.width(site))
        "(docs, pos, d) float32; 0 behind a document's end."
        residual = site.kind == KINDS[0]
        self.block_input = self.x if residual else self.tensors.empty(docs, pos, model.d_model)
        "(docs, pos, d_model) float32; the same tensor as `x` where the site is the block's input."
        at = torch.arange(pos)
        self.inside = at < corpus.lengths[:, None]
        "bool (docs, pos), up to each document's end."
        self.keep = self.inside & (at >= (0 if include_bos else 1))
        "bool (docs, pos), positions that are intervened on and averaged over."
        self.keep_ce = self.keep & (at < corpus.lengths[:, None] - 1)
        "bool (docs, pos), kept positions whose next token is in the document."
        self._shared: dict[Hashable, Any] = {}

    def fill(self, progress: Progress | None = None) -> None:
        """Run the model over the corpus up to the site and store the activations."""
        docs, pos = self.corpus.tokens.shape
        step = max(1, _TOKENS // pos)
        for start in range(0, docs, step):
            rows = slice(start, min(start + step, docs))
            longest = int(self.corpus.lengths[rows].max())
            captured = self.model.capture(self.corpus.tokens[rows, :longest], self.site)
            inside = self.inside[rows, :longest, None]
            pairs = [(self.block_input, captured.block_input), (self.x, captured.value)]
            for target, values in {id(target): (target, values) for target, values in pairs}.values():
                target[rows, longest:] = 0
                target[rows, :longest] = torch.where(inside, values.cpu(), 0)
            bad = ~torch.isfinite(self.x[rows]).all(-1)
            if bool(bad.any()):
                document, position = bad.nonzero()[0].tolist()
                raise MeasurementError(
                    f"the model's activation at {self.site} is NaN or infinite (document {start + document}, "
                    f"position {position}); try another dtype, for example --sae-dtype float32"
                )
            if progress is not None:
                progress("activations", rows.stop, docs)

    @property
    def rows(self) -> Tensor:
        """View `x` as (docs * pos, d)."""
        return self.x.view(-1, self.x.shape[-1])

    @cached_property
    def kept_positions(self) -> Tensor:
        """List the indices of the kept positions in `rows`, in document order: int64 (N,)."""
        return self.keep.flatten().nonzero().flatten()

    @cached_property
    def mean(self) -> Tensor:
        """Average over the kept positions of the whole corpus: (d,) float64."""
        total = torch.zeros(self.x.shape[-1], dtype=torch.float64)
        for part in torch.split(self.kept_positions, _TOKENS):
            total += self.rows[part].double().sum(0)
        return total / len(self.kept_positions)

    @cached_property
    def covariance(self) -> Tensor:
        """Compute the covariance over the kept positions of the whole corpus: (d, d) float64, from float32 products."""
        width, device = self.x.shape[-1], self.model.device
        total = torch.zeros(width, width, dtype=torch.float64, device=device)
        for part in torch.split(self.kept_positions, _ROWS):
            centred = send((self.rows[part].double() - self.mean).float(), device)
            total += (centred.T @ centred).double()
        return total.cpu() / len(self.kept_positions)

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return ``compute()``, called once per ``key``: results that do not depend on the SAE, such as ablations."""
        if key not in self._shared:
            self._shared[key] = compute()
        result: T = self._shared[key]
        return result


_cache: OrderedDict[Hashable, SiteData] = OrderedDict()


def capture_site(
    model: Model,
    site: Site,
    corpus: Corpus,
    settings: Settings,
    include_bos: bool = False,
    progress: Progress | None = None,
) -> SiteData:
    """Capture the activations of ``site`` over the corpus, or return them when this process has captured them before.

    Captures stay in memory while all of them together fit into half of ``settings.memory_bytes``; the oldest go first.
    """
    key = (str(model.identity), model.device, model.dtype, str(site), corpus.sha256, include_bos)
    budget = settings.memory_bytes // 2
    if key not in _cache:
        data = SiteData(model, site, corpus, include_bos=include_bos, memory_bytes=budget)
        data.fill(progress)
        _cache[key] = data
    _cache.move_to_end(key)
    while len(_cache) > 1 and sum(data.tensors.memory_bytes for data in _cache.values()) > budget:
        _cache.popitem(last=False)
    return _cache[key]
