"""To and from the files of other tools. What others measured keeps their names and formulas, and is not judged."""

from sae_bench.bridges.others import read_results
from sae_bench.bridges.outside import action_benchmark, log_to_wandb

__all__ = ["action_benchmark", "log_to_wandb", "read_results"]
