"""Registering SAEs, and choosing among them on the command line."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Any

from sae_bench.errors import UsageError, near
from sae_bench.registry.package_clash import verify_identity
from sae_bench.registry.registry import Registry
from sae_bench.registry.spec import SAESpec, id_from_target, listed

SAES: Registry[SAESpec] = Registry("SAE")
"Every registered SAE of this process."

_TARGET = re.compile(r"(\.{0,2}/|hf:|sae_lens:)|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


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

    Only ``id`` and one of ``path`` and ``load`` are needed where the SAE's own config says the rest. Relative paths
    start at the folder of the calling file. Nothing is loaded. See `SAESpec` for every field.

    Raises:
        UsageError: the id is taken or misspelled, or registering comes too late.
    """
    verify_identity()
    caller = sys._getframe(1)
    base = Path(caller.f_code.co_filename).parent
    spec = SAESpec(
        id=id,
        path=_anchor(path, base),
        load=load,
        model=_anchor(model, base),
        model_kwargs=dict(model_kwargs or {}),
        site=site,
        output_site=output_site,
        corpus=_anchor(corpus, base),
        dtype=dtype,
        include_bos=include_bos,
        l0=l0,
        tags=tuple(tags),
        partner=_anchor(partner, base),
        next_layers=_anchored("next_layers", next_layers, base),
        family=_anchored("family", family, base),
        contrast=_anchor(contrast, base),
        concepts=_anchor(concepts, base),
        circuit=_anchor(circuit, base),
        known_failures=dict(known_failures or {}),
        limits=tuple(limits),
        origin=f"{caller.f_code.co_filename}:{caller.f_lineno}",
    )
    SAES.add(id, lambda: spec, origin=spec.origin)
    return spec


def _anchored(field: str, paths: Sequence[str | Path], base: Path) -> tuple[str, ...]:
    listed(field, paths)
    return tuple(text for path in paths if (text := _anchor(path, base)) is not None)


def _anchor(path: str | Path | None, base: Path) -> str | None:
    """A path relative to the registering file if it exists there; hub names and targets stay as they are."""
    if path is None:
        return None
    text = str(path)
    return str(base / text) if (base / text).exists() or isinstance(path, Path) else text


@cache
def load_entry_points() -> None:
    """Let installed packages register their SAEs (entry points of the group ``sae_bench.saes``)."""
    for point in entry_points(group="sae_bench.saes"):
        point.load()()


@dataclass(frozen=True)
class TargetDefaults:
    """What the command line says about SAEs given as a target (``--sae-model`` and its like)."""

    model: str | None = None
    site: str | None = None
    output_site: str | None = None
    corpus: str | None = None

    def given(self) -> dict[str, str]:
        """The options that were used, and their values."""
        return {f"--sae-{name.replace('_', '-')}": value for name, value in vars(self).items() if value is not None}


def select(arguments: Sequence[str], defaults: TargetDefaults, registered: Mapping[str, SAESpec]) -> list[SAESpec]:
    """The SAEs that the ``--sae`` options mean, in registration order, then targets in the order given.

    Raises:
        UsageError: a glob or id matches nothing, two targets share an id, or a target option has no target.
    """
    globs = [text for text in arguments if not text.startswith("!") and not _is_target(text)]
    excluded = [text[1:] for text in arguments if text.startswith("!")]
    targets = [_from_target(text, defaults, registered) for text in arguments if _is_target(text)]
    for pattern in (*globs, *excluded):
        if not any(fnmatchcase(name, pattern) for name in registered):
            raise UsageError(f"--sae {pattern!r} matches no registered SAE{near(pattern, registered)}")
    if defaults.given() and not targets:
        raise UsageError(f"{', '.join(defaults.given())} speak of SAEs given as a target, and --sae names none")
    wanted = globs or ([] if targets else ["*"])
    chosen = [
        registered[name]
        for name in registered
        if any(fnmatchcase(name, pattern) for pattern in wanted)
        and not any(fnmatchcase(name, pattern) for pattern in excluded)
    ]
    ids = [spec.id for spec in (*chosen, *targets)]
    for twice in {name for name in ids if ids.count(name) > 1}:
        raise UsageError(f"two of the chosen SAEs have the id {twice!r}; register one of them under another id")
    return [*chosen, *targets]


def _is_target(text: str) -> bool:
    return bool(_TARGET.match(text)) or "=" in text


def _from_target(text: str, defaults: TargetDefaults, registered: Mapping[str, SAESpec]) -> SAESpec:
    name, equals, target = text.partition("=")
    if _TARGET.match(text) or not equals:
        return SAESpec(
            id=id_from_target(text),
            path=text,
            model=defaults.model,
            site=defaults.site,
            output_site=defaults.output_site,
            corpus=defaults.corpus,
            origin="--sae",
            typed=shlex.join(["--sae", text, *chain.from_iterable(defaults.given().items())]),
        )
    if name not in registered:
        raise UsageError(f"--sae {text!r}: {name!r} is not registered{near(name, registered)}")
    if not _TARGET.match(target):
        raise UsageError(f"--sae {text!r}: a target starts with './', '/', 'hf:', 'sae_lens:' or is 'module:attribute'")
    return replace(
        registered[name], path=target, load=None, baseline_id=name, origin="--sae", typed=shlex.join(["--sae", text])
    )
