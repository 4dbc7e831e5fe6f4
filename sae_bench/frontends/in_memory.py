"""Load SAEs on a model, token ids or activations that are in memory instead of in files.

Shapes: docs documents, pos positions, d site width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from sae_bench.engine.batch import RelatedInputs
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import Corpus, from_documents
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import Progress, SiteData
from sae_bench.errors import MeasurementError, UsageError
from sae_bench.model.language_model import Model
from sae_bench.registry.site import Site, parse_site
from sae_bench.registry.spec import SAESpec
from sae_bench.run.load import Loader
from sae_bench.sae import check_outputs, check_width

CHUNK = 64
"Rows of an activation matrix that count as one document: neighbours in a buffer may come from one text."
NOWHERE = "blocks.0.hook_resid_pre"
"The site of activations that come without one."


class NoModel:
    """Placeholder for a `Model` that refuses to run."""

    runs = False
    name = "none"
    n_layers = 0
    context = 1 << 62
    device = "cpu"
    dtype = "float32"
    tokenizer = None
    tokenizer_sha256 = None

    def __init__(self, width: int, vocabulary: int) -> None:
        self.d_model = width
        self.d_vocab = vocabulary
        self.identity = {"weights": "none: activations were given"}

    def width(self, site: Site) -> int:
        """Return the width of the activations, at any site."""
        return self.d_model

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise MeasurementError(
            "this needs the model, and only activations were given; give check_sae the model and the token ids as well"
        )

    logits = capture = resume = gradient = final_logits = _refuse


def as_documents(activations: Tensor) -> tuple[Tensor, Tensor]:
    """Return activations as (docs, pos, d) float32 and lengths (docs,); rows (tokens, d) are cut into documents.

    Raises:
        UsageError: another shape, or a value that is not finite.
    """
    x = activations.detach().to(device="cpu", dtype=torch.float32)
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise UsageError(
            f"activations of shape {tuple(x.shape)}: give (tokens, width) or (documents, positions, width)"
        )
    if bad := int((~torch.isfinite(x)).any(-1).sum()):
        raise UsageError(f"{bad} of the activations given hold a NaN or an infinite value; leave them out")
    if x.ndim == 3:
        return x, torch.full((len(x),), x.shape[1])
    docs = -(-len(x) // CHUNK)
    lengths = torch.full((docs,), CHUNK)
    lengths[-1] = len(x) - CHUNK * (docs - 1)
    return torch.cat([x, x.new_zeros(docs * CHUNK - len(x), x.shape[1])]).view(docs, CHUNK, -1), lengths


def corpus_of_activations(x: Tensor, lengths: Tensor) -> Corpus:
    """Return a corpus without tokens, named by a hash of its activations (docs, pos, d)."""
    digest = hashlib.sha256(str(tuple(x.shape)).encode() + x.contiguous().numpy().tobytes()).hexdigest()
    return Corpus(
        path="",
        tokens=torch.zeros(x.shape[:2], dtype=torch.int64),
        lengths=lengths,
        cluster=tuple(range(len(x))),
        tokenizer_sha256=None,
        source="activations that were given",
        has_bos=False,
        sha256=digest,
    )


def site_data_of_activations(x: Tensor, corpus: Corpus, site: str | None, include_bos: bool) -> SiteData:
    """Return the data of a site, with ``x`` (docs, pos, d) as its captured activations."""
    model = cast(Model, NoModel(x.shape[-1], int(corpus.tokens.max()) + 1))
    data = SiteData(model, parse_site(site or NOWHERE), corpus, include_bos=include_bos, memory_bytes=2 * x.nbytes)
    data.x.copy_(x)
    data.block_input.copy_(x)
    return data


def corpus_of_tokens(corpus: Any, tokens: Any) -> Corpus | None:
    """Return token ids (documents, positions), or lists of them, as a corpus; None where a file is named."""
    if tokens is not None and corpus is not None:
        raise UsageError("check_sae takes corpus= or tokens=, not both: tokens are a corpus that is in no file")
    if isinstance(corpus, Corpus):
        return corpus
    if tokens is None:
        return None
    documents = tokens.tolist() if isinstance(tokens, Tensor) else [list(ids) for ids in tokens]
    first = {ids[0] for ids in documents if ids}
    # Documents that all begin with one token begin with BOS, unless there is one document only.
    return from_documents(documents, has_bos=len(first) == 1 and len(documents) > 1, source="given to check_sae")


class InMemoryModelLoader(Loader):
    """Loader that uses a model and token ids in memory, where there are any."""

    def __init__(self, settings: Settings, progress: Progress | None, model: Model | None, corpus: Corpus | None):
        super().__init__(settings, progress)
        self._in_memory = model, corpus

    def _model(self, place: Any) -> Model:
        return self._in_memory[0] or super()._model(place)

    def _corpus(self, path: str) -> Corpus:
        return self._in_memory[1] or super()._corpus(path)


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations and token ids in memory."""

    x: Tensor
    "(docs, pos, d) float32"
    corpus: Corpus
    is_matrix: bool
    "True for rows without positions: there is no first position to leave out."


class ActivationsLoader(Loader):
    """Loader of benches on activations in memory, without a model."""

    def __init__(self, settings: Settings, progress: Progress | None, activations: Activations) -> None:
        super().__init__(replace(settings, dtype="float32"), progress)
        self._activations = activations

    def _load(self, spec: SAESpec) -> Bench:
        sae = self._read(spec)
        activations = self._activations
        site = spec.site or sae.site_in or NOWHERE
        check_width(sae, activations.x.shape[-1], parse_site(site))
        check_outputs(sae)
        include_bos = spec.include_bos or activations.is_matrix
        data = site_data_of_activations(activations.x, activations.corpus, site, include_bos)
        related = RelatedInputs(partner=self._partner(spec, sae))
        return Bench(sae, data.model, activations.corpus, data, self.settings, include_bos=include_bos, related=related)
