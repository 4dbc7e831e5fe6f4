"""What example is bundled? A small model of synthetic English, SAEs of six architectures, a pinned corpus."""

from __future__ import annotations

from sae_bench.demo.paths import (
    ARCHITECTURES,
    CIRCUIT,
    CONCEPTS,
    CONTRAST,
    CORPUS,
    MODEL,
    NEXT_LAYERS,
    SAES,
    SITE,
    WIDTHS,
)
from sae_bench.registry.register import register_sae

KNOWN_FAILURES = {
    "standard": {
        "shrinkage.gamma_centred": "an L1 penalty pulls every activation towards 0; the demo keeps one such SAE",
        "orthogonality.duplicates": "nothing keeps an L1 SAE of this width from learning near-copies",
    }
}


def register_demo() -> None:
    """Register the six demo SAEs as ``demo/<architecture>``."""
    for name in ARCHITECTURES:
        register_sae(
            f"demo/{name}",
            path=SAES[name],
            model=MODEL,
            site=SITE,
            corpus=CORPUS,
            tags=("demo", f"architecture:{name}"),
            partner=SAES.get(f"{name}-seed1"),
            next_layers=[SAES[other] for other in NEXT_LAYERS],
            family=[SAES[other] for other in WIDTHS] if name == "topk" else (),
            contrast=CONTRAST,
            concepts=CONCEPTS,
            circuit=CIRCUIT,
            known_failures=KNOWN_FAILURES.get(name),
        )
