"""Tiers of growing size, and the settings of one run. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tier:
    """Size of a measurement; each tier's documents, draws and features are a prefix of the next one's."""

    name: str
    documents: int | None
    "None: all of the corpus."
    draws: int
    "Noise draws a token, for the mean of a noise floor."
    rank_draws: int
    "Noise draws a token for the rank of the reconstruction among them; 0: no rank."
    features: int
    prompts: int | None
    questions: int | None
    "Approximate number of questions or prompts of a labelled dataset that are scored; None: half of it."


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
    """Settings of a run. Only the tier, the documents, the seed and the dtype change a number."""

    tier: Tier = TIERS["standard"]
    documents: int | None = None
    "Number of documents instead of the tier's."
    seed: int = 0
    batch_size: int = 16
    "Documents per batch at most; fewer where the vocabulary or the dictionary is large."
    device: str = "cpu"
    dtype: str = "float32"
    "Precision of the model."
    memory_bytes: int = 2 << 30
    """Three eighths for captured activations, an eighth for cached codes and clean log-probabilities, a quarter for
    those of a batch, an eighth each for logits and errors."""
    order_seed: int | None = None
    "Seed of a shuffled order of the documents, for tests: results must not change."
