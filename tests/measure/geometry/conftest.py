"""Benches over given activations, random dictionaries, and the real SAEs where they are at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.engine.batch import RelatedInputs
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import from_documents
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import SiteData
from sae_bench.measure.geometry import random_floor
from sae_bench.registry.site import Site
from sae_bench.sae import LinearDecoderSAE, ReLU, SAEInfo

SITE = Site(1, "hook_resid_pre")


class Shown:
    """A stand-in model whose site shows given activations: token ids are positions."""

    def __init__(self, x: Tensor) -> None:
        docs, pos, d = x.shape
        self.rows = x.reshape(docs * pos, d)
        self.d_vocab, self.d_model, self.context = docs * pos, d, pos
        self.name, self.tokenizer, self.tokenizer_sha256 = "shown", None, None
        self.identity, self.device, self.dtype = {"name": "shown"}, "cpu", "float32"

    def width(self, site: Site) -> int:
        return self.d_model

    def capture(self, tokens: Tensor, site: Site) -> SimpleNamespace:
        return SimpleNamespace(value=self.rows[tokens], block_input=self.rows[tokens])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Floors are neither read from the user's cache nor written to it."""
    monkeypatch.setattr(random_floor, "user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "pytest-sae-bench"


@pytest.fixture(scope="session")
def make_bench() -> Callable[..., Bench]:
    """``make_bench(x (docs, pos, d), sae, partner=None, **settings)``; position 0 is left out."""

    def make(x: Tensor, sae: Any, partner: Any = None, **settings: Any) -> Bench:
        docs, pos, _ = x.shape
        model: Any = Shown(x)
        corpus = from_documents(torch.arange(docs * pos).view(docs, pos).tolist(), has_bos=True)
        data = SiteData(model, SITE, corpus, include_bos=False, memory_bytes=1 << 28)
        data.fill()
        return Bench(sae, model, corpus, data, Settings(**settings), related=RelatedInputs(partner=partner))

    return make


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., LinearDecoderSAE]:
    """``make_sae(W_dec, bias)``: a tied ReLU SAE; features with a bias of -inf are dead."""

    def make(W_dec: Tensor, bias: float | Tensor = 0.0) -> LinearDecoderSAE:
        n, d = W_dec.shape
        zeros = torch.zeros(d)
        return LinearDecoderSAE(
            info=SAEInfo(format="test", architecture="standard", d_in=d, d_sae=n),
            W_enc=torch.nn.functional.normalize(W_dec, dim=1).T.contiguous(),
            activation=ReLU(torch.zeros(n) + bias),
            W_dec=W_dec,
            b_dec=zeros,
            pre_bias=zeros,
        )

    return make


def random_rows(n: int, d: int, seed: int = 0) -> Tensor:
    """(n, d) normal rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * (0.2 + torch.rand(n, 1, generator=generator))


@pytest.fixture(scope="session")
def rows() -> Callable[..., Tensor]:
    return random_rows
