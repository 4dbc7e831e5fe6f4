"""Read JSON configs of any format, with a one-sentence `LoadError` instead of a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from sae_bench.errors import LoadError

_MOST_BYTES = 16 * 2**20
"Largest config that is read, in bytes; a larger file is something else."


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in ``path``; a `LoadError` when it is missing, unreadable or no object."""
    if not path.is_file():
        raise LoadError(f"{path.parent} has no {path.name}; copy it from where the SAE was saved")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise LoadError(
                f"{path} has {path.stat().st_size} bytes, too many for the config of an SAE; give the SAE's own folder"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{path} is not readable JSON ({error}); save or download it again") from None
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds a JSON {type(content).__name__}, not an object; it is not the config of an SAE")
    return content


def peek_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in ``path``, or return an empty one: for ``recognise``, which must not fail."""
    try:
        return read_json(path)
    except LoadError:
        return {}


T = TypeVar("T", str, bool, int, float)


def optional_value(config: Mapping[str, Any], key: str, kind: type[T], what: str) -> T | None:
    """Return ``config[key]`` when it is there and not null; `LoadError` when it is of another kind."""
    value = config.get(key)
    if value is None:
        return None
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise LoadError(f"{key} of {what} is {value!r}, it must be a {kind.__name__} or null")
    return kind(value)


def positive_int(config: Mapping[str, Any], key: str, what: str) -> int:
    """Return ``config[key]`` as a positive integer; `LoadError` otherwise."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LoadError(f"{key} of {what} is {value!r}, it must be a positive integer")
    return value
