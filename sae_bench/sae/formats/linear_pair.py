"""Two linear layers and a ReLU in one ``.pt`` file, as Goodfire and qresearch (DeepSeek-R1) publish them.

Tensors: ``encoder_linear.weight`` or ``encoder.weight`` (d_sae, d_in), the decoder's (d_in, d_sae), and both biases.
The decoder's bias is not subtracted from the input. The registration must give model and site.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import torch

from sae_bench.sae import LinearDecoderSAE, ReLU, SAEInfo
from sae_bench.sae.files.read_tensors import PICKLES, only_tensors, read_pickled
from sae_bench.sae.files.weight_checks import (
    check_names,
    check_orientation,
    check_shape,
    dtype_name,
    linear_layer_matrices,
)


def _names(suffix: str) -> set[str]:
    return {f"{part}{suffix}.{kind}" for part in ("encoder", "decoder") for kind in ("weight", "bias")}


def recognise_file(path: Path, names: Set[str]) -> bool:
    """Return True when a weight file with entries ``names`` is of this family."""
    # dictionary_learning's ae.pt of one class has the same names, and a config that names the class.
    return path.suffix in PICKLES and path.name != "ae.pt" and names in (_names("_linear"), _names(""))


def read_file(path: Path) -> LinearDecoderSAE:
    """Read the SAE in ``path``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    weights, what = only_tensors(read_pickled(path), path), str(path)
    suffix = "_linear" if "encoder_linear.weight" in weights else ""
    check_names(weights, _names(suffix), what)
    encoder, decoder = f"encoder{suffix}", f"decoder{suffix}"
    W_enc, W_dec = linear_layer_matrices(weights, f"{encoder}.weight", f"{decoder}.weight", what)
    d_in, d_sae = W_enc.shape
    shapes = {f"{decoder}.weight": (d_in, d_sae), f"{encoder}.bias": (d_sae,), f"{decoder}.bias": (d_in,)}
    for name, shape in shapes.items():
        check_shape(name, weights[name], shape, what)
    check_orientation(W_enc, W_dec, what)
    return LinearDecoderSAE(
        info=SAEInfo("linear_pair", "relu", d_in, d_sae, dtype_name(weights[f"{encoder}.weight"])),
        W_enc=W_enc,
        activation=ReLU(weights[f"{encoder}.bias"].float()),
        W_dec=W_dec,
        b_dec=weights[f"{decoder}.bias"].float(),
        pre_bias=torch.zeros(d_in),
    )
