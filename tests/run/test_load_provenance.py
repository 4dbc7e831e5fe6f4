"""What an SAE's own config says of it reaches the report: its kind, and where its dashboards are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sae_bench.engine.settings import TIERS, Settings
from sae_bench.registry.spec import SAESpec
from sae_bench.run.load import Loader
from sae_bench.sae import SAEInfo

INFO = SAEInfo(format="sae_lens", architecture="jumprelu", d_in=4, d_sae=8)


@pytest.mark.parametrize("neuronpedia", ["gpt2-small/8-res-jb", None])
def test_kind_and_dashboard_are_those_of_the_config(monkeypatch: pytest.MonkeyPatch, neuronpedia: str | None) -> None:
    loader = Loader(Settings(TIERS["smoke"]))
    info = SAEInfo(**{**vars(INFO), "neuronpedia": neuronpedia})
    bench: Any = SimpleNamespace(sae=SimpleNamespace(info=info))
    monkeypatch.setattr(loader, "bench", lambda spec: bench)
    monkeypatch.setattr("sae_bench.run.load.check_loaded", lambda bench, spec: ())
    provenance = loader.description(SAESpec("lab/a", path="a", origin="here")).provenance
    dashboard = {"neuronpedia_id": neuronpedia} if neuronpedia else {}
    assert provenance == {"architecture": "jumprelu", "format": "sae_lens", **dashboard}
