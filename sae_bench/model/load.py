"""Load language models from a folder, a hub name, or an object. The only importer of TransformerLens."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from typing import Any

import torch

from sae_bench.errors import LoadError, UsageError, near
from sae_bench.model.files import (
    check_complete,
    check_finite_weights,
    model_folder,
    one_line,
    quiet,
    tensors_sha256,
    tokenizer_sha256,
    weight_files,
)
from sae_bench.model.language_model import Model, SiteCapture

__all__ = ["OPTIONS", "PROCESSING", "Model", "SiteCapture", "load_model", "load_tokenizer", "wrap_model"]

PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
"Weight processing by TransformerLens' names; all off by default."

OPTIONS = ("hf_config_overrides", "n_ctx", "revision", "trust_remote_code")
"Further options of a model, by TransformerBridge's names."


def load_model(name: str, *, kwargs: Mapping[str, Any] = {}, device: str = "cpu", dtype: str = "float32") -> Model:
    """Load a Hugging Face folder or hub name (TransformerLens' short names work as well).

    ``kwargs`` holds flags of `PROCESSING` and `OPTIONS`. Weights are read from safetensors only. Whatever is missing or
    does not fit is a one-sentence `LoadError`; an unknown option is a `UsageError`.
    """
    _import_transformer_lens()
    known = PROCESSING + OPTIONS
    for key in kwargs:
        if key not in known:
            raise UsageError(f"unknown model option {key!r}{near(key, known)}")
    torch_dtype = _dtype(dtype)
    processing = {key: True for key in PROCESSING if kwargs.get(key)}
    options = {key: kwargs[key] for key in OPTIONS if kwargs.get(key) is not None}
    folder = model_folder(_official(name), options.pop("revision", None))
    files = weight_files(name, folder)
    with quiet() as log:
        try:
            bridge = _boot(str(folder), torch_dtype, device, options, processing)
        except Exception as error:
            raise LoadError(f"model {name!r} cannot be loaded: {one_line(error)}") from error
    check_complete(name, log.getvalue())
    check_finite_weights(name, bridge)
    return Model(
        bridge,
        name=name,
        processing=processing | {key: value for key, value in options.items() if key != "trust_remote_code"},
        tokenizer_sha256=tokenizer_sha256(folder),
        weights=lambda: tensors_sha256(files),
    )


def load_tokenizer(name: str) -> tuple[Any, str | None]:
    """Return the tokenizer of a model's folder or hub name, and the sha256 of its ``tokenizer.json``."""
    from transformers import AutoTokenizer

    folder = model_folder(_official(name))
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
        except Exception as error:
            raise LoadError(f"model {name!r} has no readable tokenizer: {one_line(error)}") from error
    return tokenizer, tokenizer_sha256(folder)


def wrap_model(model: object, *, name: str = "") -> Model:
    """Wrap a TransformerBridge or, on TransformerLens 3, a HookedTransformer object as a `Model`."""
    missing = [attribute for attribute in ("cfg", "blocks", "hook_dict", "unembed") if not hasattr(model, attribute)]
    if missing:
        raise UsageError(
            f"a {type(model).__name__} cannot be used as a language model (it has no {', '.join(missing)}); give a "
            f"TransformerBridge, a HookedTransformer, or the name or folder of a Hugging Face model"
        )
    config: Any = vars(model).get("cfg") or model.cfg  # type: ignore[attr-defined]
    name = name or str(getattr(config, "model_name", "") or type(model).__name__)
    check_finite_weights(name, model)
    return Model(model, name=name)


def _boot(
    folder: str, dtype: torch.dtype, device: str, options: Mapping[str, Any], processing: Mapping[str, bool]
) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(folder, device=device, dtype=dtype, **options)
    if processing:
        bridge.enable_compatibility_mode(disable_warnings=True, **{key: key in processing for key in PROCESSING})
    return bridge


def _import_transformer_lens() -> None:
    """Import TransformerLens with the garbage collector off, and exclude its objects from later collections.

    The half a million objects of its imports stay to the end. Walking them takes a quarter of the import's time, and a
    third of a second each time that a library (hypothesis, for one) asks for a collection.
    """
    if "transformer_lens" in sys.modules or not gc.isenabled():
        return
    gc.disable()
    try:
        import transformer_lens.model_bridge  # noqa: F401
    finally:
        gc.enable()
    # Before any model is loaded: models hold cycles, which only the collector can free.
    gc.freeze()


def _official(name: str) -> str:
    """Return the hub name behind one of TransformerLens' short names (``gpt2-small``), which SAE configs often hold."""
    from transformer_lens.supported_models import MODEL_ALIASES

    return next((official for official, aliases in MODEL_ALIASES.items() if name in aliases), name)


def _dtype(name: str) -> torch.dtype:
    known = ("float32", "float64", "bfloat16", "float16")
    if name not in known:
        raise UsageError(f"unknown dtype {name!r}; known: {', '.join(known)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
