"""Activations in memory, as a corpus and a site, without a model to run.

Shapes: docs documents, pos positions, d site width.
"""

from __future__ import annotations

import hashlib
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from sae_bench.engine.corpus import Corpus
from sae_bench.engine.site_data import SiteData
from sae_bench.errors import MeasurementError, UsageError
from sae_bench.model.language_model import Model
from sae_bench.registry.site import Site, parse_site

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
