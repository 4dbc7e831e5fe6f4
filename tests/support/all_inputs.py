"""One SAE with all that a registration can name beside it, so that every property has something to measure."""

from __future__ import annotations

from sae_bench.demo.paths import CIRCUIT, CONCEPTS, CONTRAST, CORPUS, MODEL, NEXT_LAYERS, SAES, SITE
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.registry.spec import SAESpec

SPEC = SAESpec(
    id="demo/gated", path=str(SAES["gated"]), model=str(MODEL), site=SITE, corpus=str(CORPUS),
    next_layers=tuple(str(SAES[name]) for name in NEXT_LAYERS), family=(str(SAES["topk-w96"]),),
    contrast=str(CONTRAST), concepts=str(CONCEPTS), circuit=str(CIRCUIT), partner=str(SAES["topk-seed1"]),
)  # fmt: skip

_DOCUMENTS = {"circles": 64, "tokens": 64}
"Of properties that have no value over the few documents that are enough for the others."


def settings_for(name: str, device: str = "cpu") -> Settings:
    """Settings of a short measurement of property ``name``."""
    return Settings(tier=TIERS["smoke"], documents=_DOCUMENTS.get(name, 16), device=device)
