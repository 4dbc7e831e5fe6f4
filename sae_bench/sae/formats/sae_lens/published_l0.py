"""What SAELens' training counted: ``sparsity.safetensors`` holds log10 of the density of every feature."""

from __future__ import annotations

from pathlib import Path

from sae_bench.errors import LoadError
from sae_bench.sae.files.read_tensors import read_safetensors
from sae_bench.sae.files.weight_checks import check_weights

SPARSITY = "sparsity.safetensors"
"Written beside the weights by some versions."


def published_l0(path: Path, d_sae: int) -> float:
    """The L0 of training: the sum over features of the share of tokens on which each of them fires.

    Raises:
        LoadError: the file holds something else, densities instead of their logarithms for one.
    """
    stored = read_safetensors(path)
    check_weights(stored, {"sparsity": (d_sae,)}, str(path))
    logs = stored["sparsity"].double()
    if bool((logs > 0).any()):
        raise LoadError(
            f"{path} holds numbers above 0, which no logarithm of a density is: it must be log10 of the share of "
            f"tokens on which each feature fires; write it so, or remove the file"
        )
    return float((10**logs).sum())
