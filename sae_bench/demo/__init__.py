"""The bundled demo: a small model of a synthetic English, SAEs of six architectures, and a pinned corpus."""

from __future__ import annotations

from sae_bench.demo.paths import CIRCUIT, CONCEPTS, CONTRAST, CORPUS, MODEL, SAES, SITE
from sae_bench.registration import register_sae

KNOWN_FAILURES = {
    "standard": {
        "shrinkage.gamma_centred": "an L1 penalty pulls every activation towards 0; the demo keeps one such SAE",
        "orthogonality.duplicates": "nothing keeps an L1 SAE of this width from learning near-copies",
    }
}


def register_demo() -> None:
    """Register the six demo SAEs as ``demo/<architecture>``."""
    for name, path in SAES.items():
        if "-seed" in name:
            continue
        twin = SAES.get(f"{name}-seed1")
        register_sae(
            f"demo/{name}",
            path=path,
            model=MODEL,
            site=SITE,
            corpus=CORPUS,
            tags=("demo", f"architecture:{name}"),
            partner=twin,
            contrast=CONTRAST,
            concepts=CONCEPTS,
            circuit=CIRCUIT,
            known_failures=KNOWN_FAILURES.get(name),
        )
