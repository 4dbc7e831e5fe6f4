"""The L0 of SAELens' training, from ``sparsity.safetensors``: log10 of the density of every feature."""

from __future__ import annotations

from pathlib import Path

from sae_bench.errors import LoadError
from sae_bench.sae.files.read_tensors import read_safetensors
from sae_bench.sae.files.weight_checks import check_weights

SPARSITY = "sparsity.safetensors"
"File that some versions write next to the weights."


def published_l0(path: Path, d_sae: int) -> float:
    """Sum the densities of all features, the share of tokens on which each fires: the L0 of training.

    Raises:
        LoadError: the file holds other values, for example densities instead of their logarithms.
    """
    stored = read_safetensors(path)
    check_weights(stored, {"sparsity": (d_sae,)}, str(path))
    logs = stored["sparsity"].double()
    if bool((logs > 0).any()):
        raise LoadError(
            f"{path} holds numbers above 0, but it must hold log10 of the share of tokens on which each feature fires, "
            f"which is at most 0; write the logarithms, or remove the file"
        )
    return float((10**logs).sum())
