"""OpenAI's format: one ``.pt`` file, a state dict that also holds the activation's name and settings.

Tensors: ``pre_bias`` (d_in,), subtracted from the input, ``latent_bias`` (d_sae,), ``encoder.weight`` (d_sae, d_in),
``decoder.weight`` (d_in, d_sae). TopK SAEs normalise every token (mean 0, standard deviation 1) and undo it, which
only the name of the activation shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_bench.errors import LoadError
from sae_bench.sae import Activation, LinearDecoderSAE, ReLU, SAEInfo, TopK
from sae_bench.sae.files.json_config import positive_int
from sae_bench.sae.files.read_tensors import PICKLES, read_pickled
from sae_bench.sae.files.weight_checks import check_k, check_orientation, check_shape, dtype_name, linear_layer_matrices

_NAMES = {"pre_bias", "latent_bias", "encoder.weight", "decoder.weight"}


def recognise_file(path: Path, names: Set[str]) -> bool:
    """Return True when a weight file with entries ``names`` is of this family."""
    return path.suffix in PICKLES and names >= _NAMES


def read_file(path: Path) -> LinearDecoderSAE:
    """Read the SAE in ``path``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    content, what = read_pickled(path), str(path)
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if missing := _NAMES - set(weights):
        raise LoadError(f"{', '.join(sorted(missing))} of {what} is not a tensor; download the file again")
    W_enc, W_dec = linear_layer_matrices(weights, "encoder.weight", "decoder.weight", what)
    d_in, d_sae = W_enc.shape
    for name, shape in {"decoder.weight": (d_in, d_sae), "pre_bias": (d_in,), "latent_bias": (d_sae,)}.items():
        check_shape(name, weights[name], shape, what)
    check_orientation(W_enc, W_dec, what)
    activation = _activation(content, weights["latent_bias"].float(), what)
    bias = weights["pre_bias"].float()
    return LinearDecoderSAE(
        info=SAEInfo(
            "openai", str(content.get("activation", "ReLU")), d_in, d_sae, dtype_name(weights["encoder.weight"])
        ),
        W_enc=W_enc,
        activation=activation,
        W_dec=W_dec,
        b_dec=bias,
        pre_bias=bias,
        token_norm="layer_norm" if isinstance(activation, TopK) else "none",
    )


def _activation(content: Mapping[str, Any], bias: Tensor, what: str) -> Activation:
    name, state = content.get("activation", "ReLU"), content.get("activation_state_dict", {})
    if name == "ReLU":
        return ReLU(bias)
    after = state.get("postact_fn") if isinstance(state, Mapping) else None
    if name != "TopK" or after != "ReLU":
        raise LoadError(
            f"activation {name!r} of {what}, followed by {after!r}, is not supported; ReLU and TopK with ReLU are"
        )
    k = positive_int(state, "k", what)
    check_k(k, len(bias), what)
    return TopK(bias, k)
