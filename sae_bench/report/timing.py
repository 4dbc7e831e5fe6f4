"""One timed operation of one SAE; timings are printed, and never part of a report or a verdict."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """One timed operation of one SAE. Tokens are activations of the pinned corpus at its site."""

    sae: str
    operation: str
    "One of `sae_bench.frontends.testing.OPERATIONS`."
    device: str
    threads: int
    tokens: int
    "In one call."
    seconds: float
    "Median of a call."
    product_seconds: float
    "Median of the bare product: (tokens, d_in) @ (d_in, d_sae), (tokens, d_sae) @ (d_sae, d_out), or both."
    peak_mebibytes: float | None
    "Most memory that a call allocates on top of its input; None on devices that do not tell."

    @property
    def tokens_per_second(self) -> float:
        """Return the number of activations encoded, decoded, or both, per second."""
        return self.tokens / self.seconds

    @property
    def share_of_product(self) -> float:
        """Its tokens a second as a share of the bare product's; 1 where nothing else takes time."""
        return self.product_seconds / self.seconds

    def info(self) -> dict[str, float]:
        """Return the fields that pytest-benchmark stores with the timing."""
        figures = {
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "share_of_product": self.share_of_product,
            "peak_mebibytes": self.peak_mebibytes,
        }
        return {name: value for name, value in figures.items() if value is not None}
