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
    """Of everything here that is read from the demo."""
    digest = hashlib.sha256()
    for path in sorted([DEMO / "corpus.safetensors", *DEMO.glob("model/*"), *DEMO.glob("saes/*/*")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def demo_tokens() -> Tensor:
    """The first `POSITIONS` tokens of the first documents that are as long, (documents, positions)."""
    corpus = load_file(DEMO / "corpus.safetensors")
    return corpus["tokens"][corpus["lengths"] >= POSITIONS][:DOCUMENTS, :POSITIONS].long()
