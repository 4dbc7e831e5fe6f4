"""Options of a run: settings of the measurement, and limits and reports to judge against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sae_bench.engine.settings import TIERS, Settings
from sae_bench.judge.limits import Rule


@dataclass(frozen=True)
class RunOptions:
    """Settings that a run measures with, and limits and reports that it judges against."""

    tier: str = "standard"
    documents: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = Settings.batch_size
    memory_bytes: int = Settings.memory_bytes
    baselines: Path = Path("baselines")
    reference: Path | None = None
    "A report to compare with instead of the accepted ones."
    compare: bool = True
    rules: tuple[Rule, ...] = ()
    "From the command line and the ini file."
    strict: bool = False
    selfcheck: bool = False
    "Measure again with changes that should make no difference, and record the spread."

    def settings(self) -> Settings:
        """Return the settings of a bench under these options."""
        return Settings(
            tier=TIERS[self.tier],
            documents=self.documents,
            seed=self.seed,
            batch_size=self.batch_size,
            memory_bytes=self.memory_bytes,
            device=self.device,
            dtype=self.dtype,
        )
