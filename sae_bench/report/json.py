"""Convert frozen dataclasses to JSON and back, strictly: a wrong type, a missing or an unknown field is named.

Fields at their default are left out, so that a pull request shows what differs from it. Numbers are finite or
they are not written: there is no NaN in JSON, and a NaN that became a number is how a broken run turns green.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from sae_bench.errors import StoreError, near

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Convert ``value`` to JSON types: dataclasses without defaults, arrays as lists, what is not finite as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if _is_written(value, field)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def _is_written(record: Any, field: Field[Any]) -> bool:
    value = getattr(record, field.name)
    if field.default_factory is not MISSING:
        return bool(value)
    return field.default is MISSING or bool(value != field.default)


def rounded(tree: Any, digits: int = 6) -> Any:
    """Return a JSON tree with every float at ``digits`` significant digits."""
    if isinstance(tree, float):
        return float(f"{tree:.{digits}g}")
    if isinstance(tree, dict):
        return {key: rounded(each, digits) for key, each in tree.items()}
    return [rounded(each, digits) for each in tree] if isinstance(tree, list) else tree


def dumps(tree: Any, indent: int = 0) -> str:
    """Write canonical JSON text: sorted keys, one key a line, a list of scalars on one line."""
    pad = " " * (indent + 1)
    if isinstance(tree, dict) and tree:
        rows = [f"{pad}{json.dumps(key)}: {dumps(tree[key], indent + 1)}" for key in sorted(tree)]
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    if isinstance(tree, list) and any(isinstance(each, dict | list) for each in tree):
        return "[\n" + ",\n".join(pad + dumps(each, indent + 1) for each in tree) + "\n" + " " * indent + "]"
    return json.dumps(tree, allow_nan=False, ensure_ascii=False)


def loads(text: str, where: str) -> Any:
    """Read the tree in ``text``; a `StoreError` for broken JSON, NaN, infinities and keys given twice."""

    def constant(name: str) -> Any:
        raise StoreError(f"{where} holds {name}, which is not a number; it was not written by pytest-sae-bench")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            raise StoreError(f"{where} gives {twice!r} twice, as a badly resolved merge does; restore it from git")
        return tree

    try:
        return json.loads(text, parse_constant=constant, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        what = "is empty" if not text.strip() else f"is not complete JSON ({error})"
        raise StoreError(f"{where} {what}; restore it from git, or measure and accept again") from None


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def decode(kind: type[T], tree: Any, where: str) -> T:
    """Make a ``kind`` of its JSON tree; ``where``, file and dotted path, begins the `StoreError` where that fails."""
    result: T = _decode(kind, tree, where)
    return result


def _decode(kind: Any, tree: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return tree
    if origin in (Union, UnionType):
        if tree is None and NoneType in arguments:
            return None
        return _decode(next(each for each in arguments if each is not NoneType), tree, where)
    if is_dataclass(kind):
        return _decode_fields(kind, tree, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _expect(isinstance(tree, dict), "an object", tree, where)
        return {key: _decode(arguments[1], each, f"{where}.{key}") for key, each in tree.items()}
    if origin is Literal:
        _expect(tree in arguments, f"one of {', '.join(arguments)}", tree, where)
        return tree
    if origin is Sequence:
        _expect(isinstance(tree, list), "a list", tree, where)
        return tree
    if origin is tuple:
        _expect(isinstance(tree, list), "a list", tree, where)
        parts = arguments[:1] * len(tree) if arguments[-1] is Ellipsis else arguments
        _expect(len(parts) == len(tree), f"a list of {len(parts)}", tree, where)
        pairs = enumerate(zip(parts, tree, strict=True))
        return tuple(_decode(part, each, f"{where}[{row}]") for row, (part, each) in pairs)
    if isinstance(kind, type) and issubclass(kind, Enum):
        _expect(tree in [each.value for each in kind], f"one of {', '.join(each.value for each in kind)}", tree, where)
        return kind(tree)
    if isinstance(tree, bool) and kind is not bool:
        _expect(False, f"of type {kind.__name__}", tree, where)
    if kind is float:
        _expect(isinstance(tree, int | float) and math.isfinite(tree), "a number", tree, where)
        return float(tree)
    _expect(isinstance(tree, kind), f"of type {kind.__name__}", tree, where)
    return tree


def _decode_fields(kind: Any, tree: Any, where: str) -> Any:
    _expect(isinstance(tree, dict), "an object", tree, where)
    declared = {field.name: field for field in fields(kind)}
    for name in tree:
        if name not in declared:
            raise StoreError(f"{where} has an unknown field {name!r}{near(name, declared)}")
    for name, field in declared.items():
        if name not in tree and field.default is MISSING and field.default_factory is MISSING:
            raise StoreError(f"{where} lacks {name!r}; restore it from git, or measure and accept again")
    return kind(**{name: _decode(_hints(kind)[name], each, f"{where}.{name}") for name, each in tree.items()})


def _expect(condition: bool, expected: str, tree: Any, where: str) -> None:
    if not condition:
        text = json.dumps(tree)
        shown = text if len(text) < 40 else text[:37] + "..."
        raise StoreError(f"{where} must be {expected}, not {shown}; restore it from git, or measure and accept again")
