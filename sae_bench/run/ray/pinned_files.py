"""Files of the pytest process, identified by content: a worker has them already, or fetches and stores a copy."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from sae_bench.errors import LoadError
from sae_bench.registry.file_hash import file_sha256
from sae_bench.registry.spec import LABELLED_FIELDS, RELATED_FIELDS, SAESpec

SAES = ("path", *RELATED_FIELDS)
DATA = ("corpus", *LABELLED_FIELDS)
FIELDS = (*SAES, "model", *DATA)
"Fields of a registration that may name files; some of them several."


@dataclass(frozen=True)
class PinnedPath:
    """Path of a registration, with the hashes of its files."""

    path: str
    sha256: str
    "Of the names and contents of `files`."
    folder: str
    "Folder that their names are relative to."
    files: Mapping[str, Any]
    "By name: whatever `fetch` turns into bytes; empty where every worker has them."

    @property
    def name(self) -> str:
        """Return `path` relative to `folder`."""
        return os.path.relpath(self.path, self.folder)


def pin_path(path: str, field: str, put: Callable[[bytes], Any] | None) -> PinnedPath | None:
    """Return the files at ``path``, each passed to ``put``; None for a hub name or a module."""
    path = os.path.abspath(path)
    folder, files = _listed(path, field)
    if not files:
        return None
    contents = {name: put(file.read_bytes()) for name, file in files.items()} if put is not None else {}
    return PinnedPath(path, _sha256(files), str(folder), contents)


def local_path(pinned: PinnedPath, field: str, fetch: Callable[[Any], bytes]) -> str:
    """Return a path on this machine with the same content: the original, or a copy."""
    if _same(pinned, field):
        return pinned.path
    if not pinned.files:
        raise LoadError(f"{pinned.path} changed while it was measured; run again")
    return _copy(pinned, fetch)


def named_paths(spec: SAESpec, field: str) -> tuple[str, ...]:
    """Return the paths that a field of a registration names: none, one or several."""
    names: str | tuple[str, ...] | None = getattr(spec, field)
    return names if isinstance(names, tuple) else (names,) if names else ()


def with_local_paths(spec: SAESpec, paths: Mapping[tuple[str, str], str]) -> SAESpec:
    """Return ``spec`` with paths of this machine; ``paths`` is by field and path of the registration."""
    changed: dict[str, Any] = {}
    for field in FIELDS:
        local = tuple(paths.get((field, path), path) for path in named_paths(spec, field))
        if local:
            changed[field] = local if isinstance(getattr(spec, field), tuple) else local[0]
    return replace(spec, **changed)


def bytes_of(spec: SAESpec, field: str) -> int:
    """Return the bytes of the files that a field names; 0 where it names none."""
    return sum(file.stat().st_size for path in named_paths(spec, field) for file in _listed(path, field)[1].values())


def _copy(pinned: PinnedPath, fetch: Callable[[Any], bytes]) -> str:
    target = copies_folder() / pinned.sha256
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=target.parent))
        for name, reference in pinned.files.items():
            file = making / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(fetch(reference))
        try:
            making.rename(target)
        except OSError:
            # Another worker of this machine was quicker.
            shutil.rmtree(making)
    return str(target / pinned.name)


@cache
def copies_folder() -> Path:
    """Return the folder of copies, each under the hash of its content."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("pytest-sae-bench")) / "content"


def _same(pinned: PinnedPath, field: str) -> bool:
    _, files = _listed(pinned.path, field)
    return bool(files) and _sha256(files) == pinned.sha256


def _listed(path: str, field: str) -> tuple[Path, dict[str, Path]]:
    """Return the folder that holds a path, and its files by name, sorted."""
    target = Path(path)
    if target.is_dir():
        # With its own name, which is also an SAE's when nothing else names it.
        return target.parent, _named(target.parent, (file for file in target.rglob("*") if file.is_file()))
    if not target.is_file():
        return target.parent, {}
    # A config lies next to an SAE's weights, and variants next to a dataset: NAME_shifted.jsonl.
    pattern = "*" if field in SAES else f"{glob.escape(target.stem)}*{target.suffix}"
    return target.parent, _named(target.parent, (file for file in target.parent.glob(pattern) if file.is_file()))


def _named(folder: Path, files: Any) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in sorted(files)}


def _sha256(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(f"{name}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()
