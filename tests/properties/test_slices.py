"""A vocabulary and a dictionary that are gone through in slices: every property says what it says of the whole.

The demo's are too small to be cut, those of every real model are not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import pytest

from sae_bench import capture, divergence, reading, unembedding
from sae_bench.bench import TIERS, Bench, Settings
from sae_bench.demo.paths import CIRCUIT, CONCEPTS, CONTRAST, CORPUS, MODEL, NEXT_LAYERS, SAES, SITE
from sae_bench.loading import Loader
from sae_bench.measurement import Undefined
from sae_bench.properties import load_property, property_names
from sae_bench.sae import linear
from sae_bench.spec import SAESpec

SPEC = SAESpec(
    id="demo/gated", path=str(SAES["gated"]), model=str(MODEL), site=SITE, corpus=str(CORPUS),
    next_layers=tuple(str(SAES[name]) for name in NEXT_LAYERS), family=(str(SAES["topk-w96"]),),
    contrast=str(CONTRAST), concepts=str(CONCEPTS), circuit=str(CIRCUIT), partner=str(SAES["topk-seed1"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def make() -> Callable[[str], Bench]:
    """The same bench under any name, each with activations and clean runs of its own."""

    @cache
    def get(name: str) -> Bench:
        capture._cache.clear()
        return Loader(Settings(tier=TIERS["smoke"], documents=16)).bench(SPEC)

    return get


@pytest.mark.parametrize("name", property_names())
def test_slices_change_no_number(name: str, make: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    declared = load_property(name)
    whole = declared.measure(make("whole")).estimates
    monkeypatch.setattr(capture, "_cache", OrderedDict())
    for module, size in ((unembedding, "SLICE"), (unembedding, "ROWS"), (divergence, "SLICE"), (linear, "FEATURES")):
        monkeypatch.setattr(module, size, 100)
    monkeypatch.setattr(unembedding, "SMALL", 1)
    monkeypatch.setattr(reading, "TOKENS", 1)
    cut = declared.measure(make("cut")).estimates
    assert set(cut) == set(whole)
    for metric, estimate in whole.items():
        other = cut[metric]
        assert isinstance(other, Undefined) == isinstance(estimate, Undefined), metric
        if not isinstance(estimate, Undefined) and not isinstance(other, Undefined):
            assert other.value == pytest.approx(estimate.value, rel=1e-3, abs=1e-5), metric
