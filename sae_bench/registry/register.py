"""Register SAEs, from a ``conftest.py`` or an installed package."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sae_bench.registry.package_clash import verify_identity
from sae_bench.registry.registry import Registry
from sae_bench.registry.spec import LABELLED_FIELDS, SAESpec, check_list

SAES: Registry[SAESpec] = Registry("SAE")
"Every registered SAE of this process."

_PATHS = ("path", "model", "corpus", "partner", *LABELLED_FIELDS)
"Fields that may be a path relative to the registering file."
_PATH_LISTS = ("next_layers", "family")
"Fields that are lists of such paths."


def register_sae(
    id: str,
    *,
    path: str | Path | None = None,
    load: Callable[[], Any] | None = None,
    model: str | Path | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    site: str | None = None,
    output_site: str | None = None,
    corpus: str | Path | None = None,
    dtype: str | None = None,
    include_bos: bool = False,
    l0: float | None = None,
    tags: Sequence[str] = (),
    partner: str | Path | None = None,
    next_layers: Sequence[str | Path] = (),
    family: Sequence[str | Path] = (),
    contrast: str | Path | None = None,
    concepts: str | Path | None = None,
    circuit: str | Path | None = None,
    known_failures: Mapping[str, str] | None = None,
    limits: Sequence[str] = (),
) -> SAESpec:
    """Register one SAE; call it in ``conftest.py`` or in an entry point of the group ``sae_bench.saes``.

    Only ``id`` and one of ``path`` and ``load`` are needed where the SAE's own config has the rest. Relative paths
    start at the folder of the calling file. Nothing is loaded. See `SAESpec` for every field.

    Raises:
        UsageError: the id is taken or misspelled, or registering comes too late.
    """
    # Every parameter is a field of SAESpec, so their names are written once here and once there.
    arguments = dict(locals())
    verify_identity()
    caller = sys._getframe(1)
    base = Path(caller.f_code.co_filename).parent
    values = {name: _value(name, value, base) for name, value in arguments.items()}
    spec = SAESpec(**values, origin=f"{caller.f_code.co_filename}:{caller.f_lineno}")
    SAES.add(id, lambda: spec, origin=spec.origin)
    return spec


def _value(field: str, value: Any, base: Path) -> Any:
    """Convert an argument of `register_sae` to the value of the field."""
    if field in _PATHS:
        return None if value is None else _resolve(value, base)
    if field in _PATH_LISTS:
        check_list(field, value)
        return tuple(_resolve(path, base) for path in value)
    if field in ("model_kwargs", "known_failures"):
        return dict(value or {})
    return tuple(value) if field in ("tags", "limits") else value


def _resolve(path: str | Path, base: Path) -> str:
    """Resolve a path relative to the registering file if it exists there; hub names and targets stay as they are."""
    text = str(path)
    return str(base / text) if (base / text).exists() or isinstance(path, Path) else text


@cache
def load_entry_points() -> None:
    """Let installed packages register their SAEs (entry points of the group ``sae_bench.saes``)."""
    for point in entry_points(group="sae_bench.saes"):
        point.load()()
