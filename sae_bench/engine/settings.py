"""How much a run measures, and how: tiers of growing size, and the settings of one run. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tier:
    """How much is measured; each tier's documents, draws and features are a prefix of the next one's."""

    name: str
    documents: int | None
    "None: all of the corpus."
    draws: int
    "Noise draws a token, for the mean of an arm."
    rank_draws: int
    "Draws where a rank among them is wanted; 0: no rank."
    features: int
    prompts: int | None
    questions: int | None
    "About how many questions or prompts of a labelled dataset are scored; None: half of it."


TIERS: Mapping[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier("smoke", documents=64, draws=1, rank_draws=0, features=32, prompts=16, questions=32),
        Tier("standard", documents=256, draws=4, rank_draws=0, features=32, prompts=32, questions=None),
        Tier("full", documents=None, draws=16, rank_draws=100, features=128, prompts=None, questions=None),
    )
}


@dataclass(frozen=True)
class Settings:
    """How a run measures. Only the seed and the dtype change a number."""

    tier: Tier = TIERS["standard"]
    documents: int | None = None
    "Instead of the tier's."
    seed: int = 0
    batch_size: int = 16
    "Documents per batch, at most; fewer where the vocabulary or the dictionary is large."
    device: str = "cpu"
    dtype: str = "float32"
    "Of the model."
    memory_bytes: int = 2 << 30
    """Three eighths of it for captured activations, an eighth for codes and clean log-probabilities that are kept, a
    quarter for those of a batch, an eighth each for logits and errors."""
    order_seed: int | None = None
    "Measures the documents in a shuffled order (results must not change)."
