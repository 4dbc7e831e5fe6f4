"""Where the bundled demo keeps its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SITE = "blocks.2.hook_resid_pre"
"""The one site all SAEs were trained on."""

SAE_NAMES = ("standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka", "topk-seed1")
"""Six architectures, and a second TopK SAE that differs in its seed only."""


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
        """Folder of one SAE in SAELens' format."""
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
        """The same kind of questions in a wording and behind a context that the first set doesn't have."""
        return self.root / "contrast_shifted.jsonl"

    @property
    def concepts(self) -> Path:
        """What the language's words and sentences are known to mean, and its cycles."""
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
"""What the package ships."""

MODEL = BUNDLED.model
SAES = {name: BUNDLED.sae(name) for name in SAE_NAMES}
CORPUS = BUNDLED.corpus
CONTRAST = BUNDLED.contrast
CONTRAST_SHIFTED = BUNDLED.contrast_shifted
CONCEPTS = BUNDLED.concepts
CIRCUIT = BUNDLED.circuit
CARD = BUNDLED.card
