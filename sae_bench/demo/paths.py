"""Paths of the bundled demo's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SITE = "blocks.2.hook_resid_pre"
"""The site of the six registered SAEs."""

ARCHITECTURES = ("standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka")
"""Registered SAEs, which a plain run measures; all other SAEs are compared with one of them."""

NEXT_LAYERS = {"topk-layer3": "blocks.3.hook_resid_pre", "topk-layer4": "blocks.3.hook_resid_post"}
"""TopK SAEs one and two blocks after `SITE`, by name; the second reads the input of the final norm."""

WIDTHS = {"topk-w96": 96, "topk-w192": 192, "topk-w384": 384, "topk-w1536": 1536}
"""Number of features of the TopK SAEs that differ from ``topk`` (768) in it only."""

SAE_NAMES = (*ARCHITECTURES, "topk-seed1", *NEXT_LAYERS, *WIDTHS)
"""``topk-seed1`` differs from ``topk`` in its seed only."""


def site_of(name: str) -> str:
    """Return the site that an SAE was trained on."""
    return NEXT_LAYERS.get(name, SITE)


@dataclass(frozen=True)
class DemoPaths:
    """The files of one build of the demo."""

    root: Path
    """The folder that holds them."""

    @property
    def model(self) -> Path:
        """Hugging Face folder of the model and its tokenizer."""
        return self.root / "model"

    def sae(self, name: str) -> Path:
        """Return the folder of one SAE in SAELens' format."""
        return self.root / "saes" / name

    @property
    def corpus(self) -> Path:
        """The pinned evaluation corpus."""
        return self.root / "corpus.safetensors"

    @property
    def contrast(self) -> Path:
        """Persona questions for contrast steering, one JSON object a line."""
        return self.root / "contrast.jsonl"

    @property
    def contrast_shifted(self) -> Path:
        """Shifted variant of `contrast`: another wording, after a sentence of context."""
        return self.root / "contrast_shifted.jsonl"

    @property
    def concepts(self) -> Path:
        """Known meanings of the language's words and sentences, and its cycles."""
        return self.root / "concepts.toml"

    @property
    def circuit(self) -> Path:
        """Prompts that stop before their indirect object, one JSON object a line."""
        return self.root / "circuit.jsonl"

    @property
    def card(self) -> Path:
        """The card with measured numbers."""
        return self.root / "README.md"


BUNDLED = DemoPaths(Path(__file__).parent)
"""The demo in this package."""

MODEL = BUNDLED.model
SAES = {name: BUNDLED.sae(name) for name in SAE_NAMES}
CORPUS = BUNDLED.corpus
CONTRAST = BUNDLED.contrast
CONTRAST_SHIFTED = BUNDLED.contrast_shifted
CONCEPTS = BUNDLED.concepts
CIRCUIT = BUNDLED.circuit
CARD = BUNDLED.card
