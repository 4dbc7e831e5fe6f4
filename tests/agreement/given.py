"""What SAEBench and this project are given alike. Needs torch alone, see ``record_saebench.py``."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "sae_bench" / "demo"
RESULT = HERE / "saebench.json"
SAES = ("standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka")
SITE, BOS = "blocks.2.hook_resid_pre", 0
DOCUMENTS, POSITIONS = 16, 40
SHARPNESS = 10
"Factor of the last norm's output, and so of all logits, at which some probability is 0 in float32 (pitfall 3)."


def demo_sha256() -> str:
    """Of all that is read from the demo, and of nothing else in it."""
    digest = hashlib.sha256()
    saes = (path for name in SAES for path in (DEMO / "saes" / name).iterdir())
    for path in sorted([DEMO / "corpus.safetensors", *(DEMO / "model").iterdir(), *saes]):
        digest.update(str(path.relative_to(DEMO)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def demo_tokens() -> Tensor:
    """The first `POSITIONS` tokens of the first documents that are as long, (documents, positions)."""
    corpus = load_file(DEMO / "corpus.safetensors")
    return corpus["tokens"][corpus["lengths"] >= POSITIONS][:DOCUMENTS, :POSITIONS].long()
