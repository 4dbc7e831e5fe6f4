"""A bench whose activations are given: a stand-in model shows them at its site and reads them out linearly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import from_documents
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import SiteData
from sae_bench.registry.site import Site

SITE = Site(1, "hook_resid_pre")


class LinearModel:
    """Position ids are tokens, so that a token names its activation; logits are a fixed linear map of the value."""

    def __init__(self, x: Tensor) -> None:
        docs, pos, d = x.shape
        self.rows = x.reshape(docs * pos, d)
        self.d_vocab, self.d_model, self.context = docs * pos, d, pos
        self.name, self.tokenizer, self.tokenizer_sha256 = "linear", None, None
        self.identity, self.device, self.dtype = {"name": "linear"}, "cpu", "float32"
        self.readout = torch.randn(d, self.d_vocab, generator=torch.Generator().manual_seed(99)) / d**0.5

    def width(self, site: Site) -> int:
        return self.d_model

    def capture(self, tokens: Tensor, site: Site) -> SimpleNamespace:
        return SimpleNamespace(value=self.rows[tokens], block_input=self.rows[tokens])

    def resume(self, tokens: Tensor, block_input: Tensor, site: Site, value: Tensor, select: Tensor) -> Tensor:
        return value[select] @ self.readout

    def logit_blocks(self, *where: Any, select: Tensor, entries: int) -> Iterator[Tensor]:
        yield self.resume(*where, select)


@pytest.fixture(scope="session")
def make_bench() -> Callable[..., Bench]:
    """``make_bench(x (docs, pos, d), sae, **settings)``."""

    def make(x: Tensor, sae: Any, **settings: Any) -> Bench:
        docs, pos, _ = x.shape
        model: Any = LinearModel(x)
        corpus = from_documents(torch.arange(docs * pos).view(docs, pos).tolist(), has_bos=True)
        data = SiteData(model, SITE, corpus, include_bos=False, memory_bytes=1 << 28)
        data.fill()
        return Bench(sae, model, corpus, data, Settings(**settings))

    return make


@pytest.fixture(scope="session")
def activations() -> Tensor:
    """(40, 33, 16) with a mean and a spectrum, and a first position a hundred times as long as the others."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 33, 16, generator=generator) * torch.linspace(2, 0.5, 16) + torch.linspace(-1, 1, 16)
    x[:, 0] *= 100
    return x
