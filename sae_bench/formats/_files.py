"""Reading config and weight files of any family, with sentences instead of tracebacks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_bench.errors import LoadError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; `LoadError` when it is missing, unreadable or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{path.parent} has no {path.name}; copy it from where the SAE was saved") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LoadError(f"{path} is not readable JSON ({error}); save or download it again") from None
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds a JSON {type(content).__name__}, not an object; it is no SAE's config")
    return content


def peek_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, or an empty one: for recognising, where nothing may fail."""
    try:
        return read_json(path)
    except LoadError:
        return {}


def peek_names(path: Path) -> set[str]:
    """Names of the tensors in a safetensors file, or none: for recognising, where nothing may fail."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError):
        return set()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of ``path`` as stored; `LoadError` when it is missing, truncated or something else."""
    if not path.is_file():
        raise LoadError(f"{path.parent} has no {path.name}; copy it from where the SAE was saved")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{path} is truncated or no safetensors file ({error}); save or download it again") from None


def check_names(found: Mapping[str, Tensor], expected: Iterable[str], what: str) -> None:
    """`LoadError` that names missing and surplus tensors unless ``found`` holds exactly ``expected``."""
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or surplus:
        clauses = [f"lack {', '.join(missing)}"] if missing else []
        clauses += [f"have {', '.join(surplus)} too many"] if surplus else []
        raise LoadError(
            f"the weights of {what} {' and '.join(clauses)} (expected {', '.join(sorted(expected))}); "
            f"the config's architecture does not belong to these weights"
        )


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], what: str) -> None:
    """`LoadError` unless ``tensor`` has ``shape``; says so when it is the transpose."""
    if tuple(tensor.shape) == shape:
        return
    hint = "transposed" if tuple(tensor.shape) == shape[::-1] else "of another SAE"
    raise LoadError(
        f"{name} of {what} has shape {tuple(tensor.shape)} where its config asks for {shape}; it looks {hint}"
    )


def check_orientation(W_enc: Tensor, W_dec: Tensor, what: str) -> None:
    """`LoadError` when exactly one of two square matrices is transposed, which shapes cannot show.

    An encoder column and the decoder row of its feature point the same way in any trained SAE; here they are compared
    in both orientations, W_enc (d_in, d_sae), W_dec (d_sae, d_in). Weights without such alignment pass.
    """
    if W_enc.shape[0] != W_enc.shape[1]:
        return
    stored = float(torch.nn.functional.cosine_similarity(W_enc.T.float(), W_dec.float(), dim=1).mean())
    turned = float(torch.nn.functional.cosine_similarity(W_enc.float(), W_dec.float(), dim=1).mean())
    if turned > 0.2 and stored < turned / 2:
        raise LoadError(
            f"W_enc or W_dec of {what} is transposed: encoder and decoder directions have mean cosine {stored:.2f} "
            f"as stored and {turned:.2f} with one of them turned; save W_enc as (d_in, d_sae), W_dec as (d_sae, d_in)"
        )


T = TypeVar("T", str, bool, int, float)


def said(config: Mapping[str, Any], key: str, kind: type[T], what: str) -> T | None:
    """``config[key]`` when it is there and not null; `LoadError` when it is of another kind."""
    value = config.get(key)
    if value is None:
        return None
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise LoadError(f"{key} of {what} is {value!r}, it must be a {kind.__name__} or null")
    return kind(value)


def positive_int(config: Mapping[str, Any], key: str, what: str) -> int:
    """``config[key]`` as a positive integer; `LoadError` otherwise."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LoadError(f"{key} of {what} is {value!r}, it must be a positive integer")
    return value
