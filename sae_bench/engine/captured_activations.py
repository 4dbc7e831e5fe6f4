"""What a site shows over a whole corpus: captured once, shared by all SAEs and properties that look at it.

Shapes: docs documents, pos positions, d site width.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from sae_bench.engine.cache import CachedRows
from sae_bench.engine.corpus import Corpus, check_context, check_tokenizer, check_vocabulary
from sae_bench.engine.devices import send
from sae_bench.errors import MeasurementError
from sae_bench.model.language_model import Model
from sae_bench.registry.site import KINDS, Site

T = TypeVar("T")
Progress: TypeAlias = Callable[[str, int, int], None]
"Called with what is being done, how many documents are done, and of how many."

_TOKENS = 2048
"""Tokens per capturing pass. Fixed, so that the captured numbers do not depend on anybody's batch size; what twice as
many make between a block's layers no longer fits into memory that is used again, and takes a third more time."""
_ROWS = 512
"Tokens in a float32 product of the covariance: of fewer, adding up in float64 takes longer than the products."


class TensorStore:
    """Float tensors within a budget of memory; what does not fit is mapped from files in a folder of its own."""

    def __init__(self, memory_bytes: int) -> None:
        self.left = memory_bytes
        self.held = 0
        self.mapped = 0
        "Bytes in memory, and in files."
        self._folder: Path | None = None

    def empty(self, *shape: int) -> Tensor:
        """An uninitialised float32 tensor."""
        size = 4
        for extent in shape:
            size *= extent
        if size <= self.left:
            self.left -= size
            self.held += size
            return torch.empty(*shape)
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="sae-bench-", ignore_cleanup_errors=True)
            weakref.finalize(self, folder.cleanup)
            self._folder = Path(folder.name)
        free = shutil.disk_usage(self._folder).free
        if size > free:
            raise MeasurementError(
                f"activations of {size / 1e9:.1f} GB fit neither into memory nor into {self._folder.parent} "
                f"({free / 1e9:.1f} GB free); use a corpus with fewer documents, or set TMPDIR to a larger disk"
            )
        self.mapped += size
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            return torch.from_file(file.name, shared=True, size=size // 4, dtype=torch.float32).view(*shape)


class SiteData:
    """Activations of one site over the whole corpus, and what follows from them."""

    def __init__(self, model: Model, site: Site, corpus: Corpus, *, include_bos: bool, memory_bytes: int) -> None:
        check_vocabulary(corpus, model.d_vocab)
        check_tokenizer(corpus, model.tokenizer_sha256)
        check_context(corpus, model.context)
        self.model = model
        self.site = site
        self.corpus = corpus
        self.include_bos = include_bos
        docs, pos = corpus.tokens.shape
        self.store = TensorStore(memory_bytes - memory_bytes // 4)
        self.kept_rows = CachedRows(memory_bytes // 8)
        "What the clean model says, for all SAEs."
        self.x = self.store.empty(docs, pos, model.width(site))
        "(docs, pos, d) float32; 0 behind a document's end."
        residual = site.kind == KINDS[0]
        self.block_input = self.x if residual else self.store.empty(docs, pos, model.d_model)
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
        """Run the model over the corpus, up to the site."""
        docs, pos = self.corpus.tokens.shape
        step = max(1, _TOKENS // pos)
        for start in range(0, docs, step):
            rows = slice(start, min(start + step, docs))
            longest = int(self.corpus.lengths[rows].max())
            seen = self.model.capture(self.corpus.tokens[rows, :longest], self.site)
            inside = self.inside[rows, :longest, None]
            both = {id(self.block_input): (self.block_input, seen.block_input), id(self.x): (self.x, seen.value)}
            for target, values in both.values():
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
        """(docs * pos, d) view of `x`."""
        return self.x.view(-1, self.x.shape[-1])

    @cached_property
    def kept_positions(self) -> Tensor:
        """int64 (N,), which `rows` are kept positions, in document order."""
        return self.keep.flatten().nonzero().flatten()

    @cached_property
    def mean(self) -> Tensor:
        """(d,) float64 mean over the kept positions of the whole corpus."""
        total = torch.zeros(self.x.shape[-1], dtype=torch.float64)
        for kept in torch.split(self.kept_positions, _TOKENS):
            total += self.rows[kept].double().sum(0)
        return total / len(self.kept_positions)

    @cached_property
    def covariance(self) -> Tensor:
        """(d, d) float64 covariance over the kept positions of the whole corpus; products in float32."""
        width, device = self.x.shape[-1], self.model.device
        total = torch.zeros(width, width, dtype=torch.float64, device=device)
        for kept in torch.split(self.kept_positions, _ROWS):
            centred = send((self.rows[kept].double() - self.mean).float(), device)
            total += (centred.T @ centred).double()
        return total.cpu() / len(self.kept_positions)

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """``compute()``, once per ``key``: results that do not depend on the SAE (ablations, the clean run)."""
        if key not in self._shared:
            self._shared[key] = compute()
        result: T = self._shared[key]
        return result


_cache: OrderedDict[Hashable, SiteData] = OrderedDict()


def captured(
    model: Model,
    site: Site,
    corpus: Corpus,
    *,
    include_bos: bool = False,
    memory_bytes: int,
    progress: Progress | None = None,
) -> SiteData:
    """The site's data, from memory when this process has captured it before.

    Captures stay in memory while all of them together fit into half of ``memory_bytes``; the oldest go first.
    """
    key = (str(model.identity), model.device, model.dtype, str(site), corpus.sha256, include_bos)
    if key not in _cache:
        data = SiteData(model, site, corpus, include_bos=include_bos, memory_bytes=memory_bytes // 2)
        data.fill(progress)
        _cache[key] = data
    _cache.move_to_end(key)
    while len(_cache) > 1 and sum(data.store.held for data in _cache.values()) > memory_bytes // 2:
        _cache.popitem(last=False)
    return _cache[key]
