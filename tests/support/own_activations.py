"""Activations as a training script has them at hand, and a process that remembers no registration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.toy_saes import WIDTH


@pytest.fixture
def activations() -> Tensor:
    """(512, width), with one coordinate much larger than the others as in a residual stream."""
    x = torch.randn(512, WIDTH, generator=torch.Generator().manual_seed(0))
    x[:, 3] *= 20
    return x


@pytest.fixture
def contract(activations: Tensor) -> Callable[..., Any]:
    """``contract(sae, **options)``: the property's result on the activations."""
    from sae_bench import check_sae

    def run(sae: Any, **options: Any) -> Any:
        report = check_sae(sae, activations=activations, properties=["contract"], **options)
        return report.saes["sae"].properties["contract"]

    return run


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Registrations of other tests of this process."""
    from sae_bench.measure.properties import EXTENSIONS
    from sae_bench.registry.register import SAES, load_entry_points

    SAES.__init__("SAE")  # type: ignore[misc]
    EXTENSIONS.registered.__init__("property")  # type: ignore[misc]
    load_entry_points()
    yield
    SAES.__init__("SAE")  # type: ignore[misc]
    EXTENSIONS.registered.__init__("property")  # type: ignore[misc]


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first documents of the demo's corpus: reading the whole of it takes most of a small run's time."""
    from sae_bench.demo.paths import CORPUS
    from sae_bench.engine.corpus import load_corpus, save_corpus

    path = tmp_path_factory.mktemp("corpus") / "corpus.safetensors"
    save_corpus(path, load_corpus(CORPUS).take(24))
    return path
