"""Benches over the real model and SAEs, and small ones over a planted world."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import load_corpus
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site
from sae_bench.sae.formats import read_sae


@pytest.fixture(scope="session")
def real_bench(real_assets: Path) -> Callable[..., Bench]:
    """``real_bench(name, **settings)``: documents 0-127 of the real corpus, as the golden numbers have them."""
    model = load_model(str(real_assets / "model"))
    corpus = load_corpus(real_assets / "eval_tokens.safetensors").take(128)
    site = parse_site("blocks.3.hook_resid_pre")

    @cache
    def sae(name: str) -> Any:
        return read_sae(str(real_assets / "saes" / f"{name}-l3"))

    def get(name: str, **changes: Any) -> Bench:
        settings = replace(Settings(tier=TIERS["standard"]), **changes)
        return Bench(sae(name), model, corpus, capture_site(model, site, corpus, settings), settings)

    return get


@pytest.fixture(scope="session")
def golden(real_assets: Path) -> Callable[[str], dict[str, Any]]:
    rows = {row["sae"]: row for row in json.loads((real_assets / "golden_reference.json").read_text())}
    return lambda name: rows[f"{name}-l3"]


@pytest.fixture(scope="session")
def golden_saelens(real_assets: Path) -> Callable[[str], dict[str, Any]]:
    rows = json.loads((real_assets / "golden_saelens.json").read_text())
    return lambda name: rows[f"{name}-l3"]


@pytest.fixture(scope="session")
def demo_bench() -> Callable[..., Bench]:
    """``demo_bench(change, name=..., **settings)``: the demo's TopK SAE, or what ``change`` makes of it."""
    from sae_bench.demo.paths import CORPUS, MODEL, SAES, SITE

    model, corpus, site = load_model(str(MODEL)), load_corpus(CORPUS), parse_site(SITE)

    def get(change: Callable[[Any], Any] = lambda sae: sae, name: str = "topk", **changes: Any) -> Bench:
        settings = replace(Settings(tier=TIERS["smoke"], documents=24), **changes)
        sae = change(read_sae(str(SAES[name])))
        return Bench(sae, model, corpus, capture_site(model, site, corpus, settings), settings)

    return get
