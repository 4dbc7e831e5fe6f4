"""Gemma Scope's canonical residual SAEs of Gemma 2 2B, 16k wide, read from their own ``params.npz``.

The model is ``google/gemma-2-2b``, not the instruction-tuned one, with its weights as they are: centring them would
change the residual stream that the SAEs were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sae_bench import register_sae
from sae_bench.registry.spec import SAESpec

MODEL = "google/gemma-2-2b"
REPOSITORY = "google/gemma-scope-2b-pt-res"
FOLDERS: Mapping[int, str] = {
    5: "layer_5/width_16k/average_l0_68",
    12: "layer_12/width_16k/average_l0_82",
    19: "layer_19/width_16k/average_l0_73",
}
"The SAE of its width whose L0 is closest to 100 ('canonical'), by layer; the folder's name holds its L0."


def register(corpus: str | Path, layers: Sequence[int] = tuple(FOLDERS)) -> list[SAESpec]:
    """Register them as ``gemma-scope-2b-res-16k/<layer>``."""
    return [
        register_sae(
            f"gemma-scope-2b-res-16k/{layer}",
            path=f"hf:{REPOSITORY}/{FOLDERS[layer]}",
            model=MODEL,
            site=f"blocks.{layer}.hook_resid_post",
            corpus=corpus,
            tags=("family:gemma-scope-2b-res-16k", "architecture:jumprelu", f"layer:{layer}"),
        )
        for layer in layers
    ]
