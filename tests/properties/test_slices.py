"""A vocabulary and a dictionary that are gone through in slices: every property says what it says of the whole.

The demo's are too small to be cut, those of every real model are not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import pytest

from sae_bench import capture, divergence, reading, unembedding
from sae_bench.bench import Bench, Settings
from sae_bench.loading import Loader
from sae_bench.measurement import Undefined
from sae_bench.properties import load_property, property_names
from sae_bench.sae import linear
from tests.properties.everything import SPEC, settings_for


@pytest.fixture(scope="module")
def make() -> Callable[[str, Settings], Bench]:
    """The same bench under any name, each with activations and clean runs of its own."""

    @cache
    def get(name: str, settings: Settings) -> Bench:
        capture._cache.clear()
        return Loader(settings).bench(SPEC)

    return get


@pytest.mark.parametrize("name", property_names())
def test_slices_change_no_number(
    name: str, make: Callable[[str, Settings], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    declared, settings = load_property(name), settings_for(name)
    whole = declared.measure(make("whole", settings)).estimates
    monkeypatch.setattr(capture, "_cache", OrderedDict())
    for module, size in ((unembedding, "SLICE"), (unembedding, "ROWS"), (divergence, "SLICE"), (linear, "FEATURES")):
        monkeypatch.setattr(module, size, 100)
    monkeypatch.setattr(unembedding, "SMALL", 1)
    monkeypatch.setattr(reading, "TOKENS", 1)
    cut = declared.measure(make("cut", settings)).estimates
    assert set(cut) == set(whole)
    for metric, estimate in whole.items():
        other = cut[metric]
        assert isinstance(other, Undefined) == isinstance(estimate, Undefined), metric
        if not isinstance(estimate, Undefined) and not isinstance(other, Undefined):
            assert other.value == pytest.approx(estimate.value, rel=1e-3, abs=1e-5), metric
