"""Benches of dictionaries in a stream whose later layers are a known function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import from_documents
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import SiteData
from sae_bench.measure.geometry import random_floor
from sae_bench.registry.site import Site
from tests.support.streams import DOCS, HERE, POS, D, Stream, V, normal


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Floors are neither read from the user's cache nor written to it."""
    monkeypatch.setattr(random_floor, "user_cache_dir", lambda name: str(tmp_path / name))


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    """``make_bench(sae, x=..., later=..., W_U=..., **rest)``; by default nothing happens behind the site."""

    def make(
        sae: Any,
        x: Tensor | None = None,
        later: Callable[[Tensor], Tensor] = lambda value: value,
        W_U: Tensor | None = None,
        site: Site = HERE,
        settings: Settings | None = None,
        **rest: Any,
    ) -> Bench:
        x = normal(DOCS, POS, D) if x is None else x
        docs, pos, d = x.shape
        model: Any = Stream(x, later, normal(d, V, seed=9) if W_U is None else W_U)
        corpus = from_documents(torch.arange(docs * pos).view(docs, pos).tolist(), has_bos=True)
        data = SiteData(model, site, corpus, include_bos=False, memory_bytes=1 << 28)
        data.fill()
        return Bench(sae, model, corpus, data, settings or Settings(), **rest)

    return make
