"""SAEBench's own SAEs of Pythia 70M (deduplicated), read from the files that dictionary_learning saved.

One repository holds a sweep of sparsities for each architecture, at the residual stream behind block 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sae_bench import register_sae
from sae_bench.registry.spec import SAESpec

MODEL = "EleutherAI/pythia-70m-deduped"
REPOSITORY = "canrager/lm_sae"
SWEEPS: Mapping[str, str] = {
    "standard": "pythia70m_sweep_standard_ctx128_0712",
    "panneal": "pythia70m_sweep_panneal_ctx128_0730",
    "gated": "pythia70m_sweep_gated_ctx128_0730",
    "topk": "pythia70m_sweep_topk_ctx128_0730",
}
"Folder of the repository by architecture."


def register(
    corpus: str | Path, *, layer: int = 4, trainers: Mapping[str, Sequence[int]] | None = None
) -> list[SAESpec]:
    """Register them as ``sae-bench-pythia-70m/<architecture>-<trainer>``; ``trainers`` chooses runs of each sweep."""
    chosen = trainers or {"standard": (10,), "panneal": (16,), "gated": (0,), "topk": (0,)}
    return [
        register_sae(
            f"sae-bench-pythia-70m/{architecture}-{trainer}",
            path=f"hf:{REPOSITORY}/{SWEEPS[architecture]}/resid_post_layer_{layer}/trainer_{trainer}",
            model=MODEL,
            site=f"blocks.{layer}.hook_resid_post",
            corpus=corpus,
            tags=("family:sae-bench-pythia-70m", f"architecture:{architecture}", f"layer:{layer}"),
        )
        for architecture, numbers in chosen.items()
        for trainer in numbers
    ]
