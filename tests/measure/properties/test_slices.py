"""A vocabulary and a dictionary that are gone through in slices: every property says what it says of the whole.

The demo's are too small to be cut, those of every real model are not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import pytest

from sae_bench.engine import divergence, sae_on_site, site_data
from sae_bench.engine.bench import Bench
from sae_bench.engine.settings import Settings
from sae_bench.measure.measurement import Undefined
from sae_bench.measure.properties import load_property, property_names
from sae_bench.model import unembed
from sae_bench.run.load import Loader
from sae_bench.sae import linear
from tests.support.all_inputs import SPEC, settings_for

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def make() -> Callable[[str, Settings], Bench]:
    """The same bench under any name, each with activations and clean runs of its own."""

    @cache
    def get(name: str, settings: Settings) -> Bench:
        site_data._cache.clear()
        return Loader(settings).bench(SPEC)

    return get


@pytest.mark.parametrize("name", property_names())
def test_slices_change_no_number(
    name: str, make: Callable[[str, Settings], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    declared, settings = load_property(name), settings_for(name)
    whole = declared.measure(make("whole", settings)).estimates
    monkeypatch.setattr(site_data, "_cache", OrderedDict())
    for module, size in ((unembed, "SLICE"), (unembed, "ROWS"), (divergence, "SLICE"), (linear, "FEATURES")):
        monkeypatch.setattr(module, size, 100)
    monkeypatch.setattr(unembed, "SMALL", 1)
    monkeypatch.setattr(sae_on_site, "TOKENS", 1)
    cut = declared.measure(make("cut", settings)).estimates
    assert set(cut) == set(whole)
    for metric, estimate in whole.items():
        other = cut[metric]
        assert isinstance(other, Undefined) == isinstance(estimate, Undefined), metric
        if not isinstance(estimate, Undefined) and not isinstance(other, Undefined):
            assert other.value == pytest.approx(estimate.value, rel=1e-3, abs=1e-5), metric
