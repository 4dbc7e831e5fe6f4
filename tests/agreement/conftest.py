"""Ours and theirs, on the demo and on planted activations."""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from sae_bench import check_sae
from sae_bench.demo.paths import MODEL, SAES
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import from_documents
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.measure.properties import load_property
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site
from sae_bench.sae.formats import read_sae

from . import given
from .planted import World


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    """What SAEBench said."""
    found: dict[str, Any] = json.loads(given.RESULT.read_text())
    return found


@pytest.fixture(scope="session")
def demo_model() -> Model:
    return load_model(str(MODEL))


@pytest.fixture(scope="session")
def bench(demo_model: Model) -> Callable[..., Bench]:
    """``bench(SAE or its name, tokens=..., include_bos=..., model=..., **settings)`` on the demo's model."""

    def make(
        sae: Any,
        *,
        tokens: Any = None,
        include_bos: bool = False,
        model: Model = demo_model,
        **settings: Any,
    ) -> Bench:
        corpus = from_documents((given.demo_tokens() if tokens is None else tokens).tolist(), has_bos=True)
        how, site = Settings(tier=TIERS["smoke"], **settings), parse_site(given.SITE)
        read = read_sae(str(SAES[sae])) if isinstance(sae, str) else sae
        data = capture_site(model, site, corpus, how, include_bos=include_bos)
        return Bench(read, model, corpus, data, how, include_bos=include_bos)

    return make


@pytest.fixture(scope="session")
def ours(bench: Callable[..., Bench]) -> Callable[[str, bool], Callable[[str], float]]:
    """``ours(SAE, include_bos)("kl_gap.kl_sae")`` on the tokens that SAEBench was given."""
    made = cache(lambda name, bos: bench(name, include_bos=bos))
    measured = cache(lambda name, bos, of: load_property(of).measure(made(name, bos)).estimates)
    return lambda name, bos: lambda metric: value(measured(name, bos, metric.split(".")[0]), metric)


def value(estimates: Any, metric: str) -> float:
    """The value of ``property.metric`` among a property's estimates."""
    return float(estimates[metric.split(".")[1]].value)


@pytest.fixture
def ours_on() -> Callable[[World], float]:
    """The explained variance that this suite reports for planted activations."""

    def measure(world: World) -> float:
        report = check_sae(world.sae, activations=world.x.flatten(0, 1), properties=["reconstruction"])
        found = report.saes["sae"].properties["reconstruction"].metrics["explained_variance"].value
        assert found is not None
        return float(found)

    return measure


@pytest.fixture(scope="session")
def sae_lens_evals() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("sae_lens", reason="sae-lens is not installed")
        from sae_lens import evals
    return evals


@pytest.fixture(scope="session")
def learning_evaluate() -> Any:
    """dictionary_learning's ``evaluate``; it is installed without what it trains with, of which it imports a name."""
    stub = types.ModuleType("nnsight")
    stub.LanguageModel = object  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        if "nnsight" not in sys.modules:
            patch.setitem(sys.modules, "nnsight", stub)
        pytest.importorskip("dictionary_learning", reason="dictionary-learning is not installed")
        from dictionary_learning.evaluation import evaluate
    return evaluate
