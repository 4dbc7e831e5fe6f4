"""The format of the first attention SAEs (Kissane, Krzyzanowski): ``NAME.pt`` and ``NAME_cfg.json`` in one folder.

Tensors: W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_enc, b_dec, subtracted from the input; ReLU. They read
``attn.hook_z`` with its heads concatenated, and are of GPT-2 small, which their configs do not name.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from sae_bench.sae import LinearDecoderSAE, ReLU, SAEInfo
from sae_bench.sae.files.json_config import optional_value, peek_json, positive_int, read_json
from sae_bench.sae.files.read_tensors import PICKLES, only_tensors, read_pickled
from sae_bench.sae.files.weight_checks import canonical_weights, check_shape, dtype_name, hook_name


def recognise_file(path: Path, names: Set[str]) -> bool:
    """Return True when a weight file with entries ``names`` is of this family."""
    return path.suffix in PICKLES and {"act_size", "dict_size"} <= set(peek_json(_config(path)))


def read_file(path: Path) -> LinearDecoderSAE:
    """Read the SAE in ``path``, in float32 on the CPU; a `LoadError` in one sentence when its files are wrong."""
    config, stored, what = read_json(_config(path)), only_tensors(read_pickled(path), path), str(path)
    d_in, d_sae = positive_int(config, "act_size", what), positive_int(config, "dict_size", what)
    weights = canonical_weights(stored, what)
    for name, shape in {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in)}.items():
        check_shape(name, weights[name], shape, what)
    site = hook_name(config.get("act_name"))
    return LinearDecoderSAE(
        info=SAEInfo(
            "hook_z",
            "standard",
            d_in,
            d_sae,
            dtype_name(stored["W_enc"]),
            model=optional_value(config, "model_name", str, what),
            site_in=site,
            site_out=site,
            context_size=optional_value(config, "seq_len", int, what),
        ),
        W_enc=weights["W_enc"],
        activation=ReLU(weights["b_enc"]),
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        pre_bias=weights["b_dec"],
    )


def _config(path: Path) -> Path:
    return path.with_name(f"{path.stem}_cfg.json")
