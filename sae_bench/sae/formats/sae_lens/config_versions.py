"""SAELens' configs of any version, converted to version 6 and to `SAEInfo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_bench.errors import LoadError
from sae_bench.sae import SAEInfo
from sae_bench.sae.files.json_config import optional_value, positive_int
from sae_bench.sae.files.read_tensors import Tensors
from sae_bench.sae.files.weight_checks import dtype_name

_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
_METADATA = (
    "model_name",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "hook_name",
    "hook_name_out",
    "hook_head_index",
    "prepend_bos",
    "context_size",
    "dataset_path",
    "neuronpedia_id",
    "seqpos_slice",
    "sae_lens_version",
    "sae_lens_training_version",
)


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a config of any version to version 6: metadata in an object of its own, today's key names."""
    new = {_RENAMED.get(key, key): value for key, value in config.items()}
    if not isinstance(new.get("metadata"), Mapping):
        new["metadata"] = {key: new[key] for key in _METADATA if key in new}
    kwargs = new.get("activation_fn_kwargs")
    if new.get("activation_fn") == "topk" and isinstance(kwargs, Mapping) and "k" in kwargs:
        new.update(architecture="topk", k=kwargs["k"])
    # Early versions had a flag where later ones have a name.
    norm = new.get("normalize_activations") or "none"
    new["normalize_activations"] = "expected_average_only_in" if norm is True else norm
    return new


def info_of(config: Mapping[str, Any], architecture: str, weights: Tensors, what: str) -> SAEInfo:
    """Convert a modern ``config`` to `SAEInfo`; ``weights`` are as stored, ``what`` names the SAE in errors."""
    metadata = config["metadata"]
    known = {"model_name", "model_from_pretrained_kwargs", "hook_name", "hook_name_out", "prepend_bos", "context_size"}
    kwargs = metadata.get("model_from_pretrained_kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise LoadError(f"model_from_pretrained_kwargs of {what} is {kwargs!r}, it must be an object or null")
    extra = {key: value for key, value in metadata.items() if key not in known}
    if (reshape := config.get("reshape_activations", "none")) != "none":
        extra["reshape_activations"] = reshape
    site = optional_value(metadata, "hook_name", str, what)
    head = optional_value(metadata, "hook_head_index", int, what)
    if site is not None and head is not None:
        site = f"{site}[{head}]"
    return SAEInfo(
        format="sae_lens",
        architecture=optional_value(metadata, "training_architecture", str, what) or architecture,
        d_in=positive_int(config, "d_in", what),
        d_sae=positive_int(config, "d_sae", what),
        dtype=dtype_name(next(iter(weights.values()))) if weights else None,
        model=optional_value(metadata, "model_name", str, what),
        model_kwargs=dict(kwargs),
        site_in=site,
        site_out=optional_value(metadata, "hook_name_out", str, what) or site,
        prepend_bos=optional_value(metadata, "prepend_bos", bool, what),
        context_size=optional_value(metadata, "context_size", int, what),
        l0=optional_value(metadata, "l0", float, what),
        neuronpedia=optional_value(metadata, "neuronpedia_id", str, what),
        extra=extra,
    )
