"""The field's reference case: twelve SAEs on GPT-2 small's residual stream (Bloom 2024), with all they need.

In a ``conftest.py``, after ``pytest-sae-bench corpus build --dataset Skylion007/openwebtext --tokenizer gpt2 --docs 256
--length 128 -o owt.safetensors``::

    from benchmarks.presets import gpt2_small_res_jb

    gpt2_small_res_jb.register("owt.safetensors")

They were trained on activations of a model whose writing weights are centred, with BOS, in contexts of 128 tokens.
"""

from __future__ import annotations

from pathlib import Path

from sae_bench import register_sae
from sae_bench.registry.spec import SAESpec

MODEL = "gpt2"
PROCESSING = {"center_writing_weights": True}
RELEASE = "gpt2-small-res-jb"
LAYERS = range(12)
CONTEXT = 128
DATASET = "Skylion007/openwebtext"

L0 = dict(zip(LAYERS, (10, 10, 18, 23, 31, 41, 51, 54, 60, 70, 52, 56), strict=True))
"""By layer, as SAELens' table of releases gives it: rounded, on OpenWebText."""


def register(corpus: str | Path, *, include_bos: bool = False, concepts: str | Path | None = None) -> list[SAESpec]:
    """Register them as ``gpt2-small-res-jb/<layer>``; ``include_bos`` replicates studies that intervened on BOS."""
    return [
        register_sae(
            f"{RELEASE}/{layer}",
            path=f"sae_lens:{RELEASE}/{site(layer)}",
            model=MODEL,
            model_kwargs=PROCESSING,
            site=site(layer),
            corpus=corpus,
            include_bos=include_bos,
            concepts=concepts,
            tags=("family:gpt2-small-res-jb", "architecture:standard", f"layer:{layer}"),
        )
        for layer in LAYERS
    ]


def site(layer: int) -> str:
    """Where the SAE of a layer reads and writes."""
    return f"blocks.{layer}.hook_resid_pre"


CYCLE_LAYER = 7
CYCLES: dict[str, tuple[int, ...]] = {
    "days": (2592, 4445, 4663, 4733, 6531, 8179, 9566, 20927, 24185),
    "months": (
        *(3977, 4140, 5993, 7299, 9104, 9401, 10449, 11196),
        *(12661, 14715, 17068, 17528, 19589, 21033, 22043, 23304),
    ),
    "years": (1052, 2753, 4427, 6382, 8314, 9576, 9606, 13551, 19734, 20349),
}
"""Features of layer 7 that hold a cycle each, as Engels et al. found and publish them (2405.14860)."""

CONCEPTS = Path(__file__).with_name("gpt2_small_cycles.toml")
"""Days and months as words, with those features: for ``register(..., concepts=CONCEPTS)``."""
