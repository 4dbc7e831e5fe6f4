"""Resolve a target to files or an object: a path, a download, a release of SAELens, or a Python attribute."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from sae_bench.errors import LoadError, first_line, near

_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
_ATTRIBUTE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<folder>.+?))?/?")
_RELEASE = re.compile(r"sae_lens:(?P<release>[^/]+)/(?P<sae_id>.+)")


def existing_path(target: str, base: Path | None) -> Path | None:
    """Return ``target`` as a path, relative ones to ``base`` (the working directory without), if it exists."""
    path = (base or Path()) / Path(target).expanduser()
    return path if path.exists() else None


def missing_path_error(target: str, base: Path | None) -> LoadError:
    """Return the error for a path that does not exist, with similar names from its folder."""
    path = (base or Path()) / Path(target).expanduser()
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return LoadError(
        f"no SAE at {path}: there is no such file or folder"
        f"{near(path.name, siblings) or '; give a folder, hf:repo/folder, sae_lens:release/id or module:attribute'}"
    )


def is_attribute(target: str) -> bool:
    """Return True when ``target`` has the form ``module:attribute``."""
    return _ATTRIBUTE.fullmatch(target) is not None


def attribute(target: str, base: Path | None) -> Any:
    """Return the object that ``module:attribute`` names; called when it has no ``encode`` of its own."""
    module_name, _, path = target.partition(":")
    obj = _import(target, module_name, base)
    for name in path.split("."):
        if not hasattr(obj, name):
            raise LoadError(f"{target}: {name!r} is not in {module_name}{near(name, dir(obj))}")
        obj = getattr(obj, name)
    if isinstance(obj, type) or (callable(obj) and not hasattr(obj, "encode")):
        return _call(target, obj)
    return obj


def download(target: str) -> Path:
    """Fetch ``hf:org/name[@revision]/sub/folder`` from the Hugging Face hub or its cache; return the local folder."""
    match = _HUB.fullmatch(target)
    if match is None:
        raise LoadError(f"{target} is not spelled hf:org/name/sub/folder or hf:org/name@revision/sub/folder")
    from huggingface_hub import snapshot_download

    folder = match["folder"] or ""
    patterns, ignored = _file_patterns(folder)
    try:
        root = snapshot_download(
            match["repo"], revision=match["revision"], allow_patterns=patterns, ignore_patterns=ignored
        )
        if (Path(root) / folder / "hyperparams.json").is_file():
            below = f"{folder}/checkpoints/final.safetensors".lstrip("/")
            snapshot_download(match["repo"], revision=match["revision"], allow_patterns=[below])
    except Exception as error:
        raise LoadError(
            f"cannot fetch {match['repo']} from the Hugging Face hub ({type(error).__name__}: {first_line(error)}); "
            f"check the name and the network, or download it and give its folder"
        ) from error
    local = Path(root) / folder
    if not local.exists():
        raise LoadError(f"{match['repo']} on the Hugging Face hub has no file or folder {folder!r} with an SAE's files")
    return local


def _file_patterns(folder: str) -> tuple[list[str], list[str]]:
    """Return patterns of the files to fetch, and of those not to, for an SAE's file or folder in a repository."""
    place, _, name = folder.rpartition("/")
    above = f"{place}/" if place else ""
    if name.endswith(_SUFFIXES):
        stem = name.rpartition(".")[0]
        return [folder, f"{above}{stem}_cfg.json", f"{above}cfg.json", f"{above}config.json"], []
    prefix = f"{folder}/" if folder else ""
    # sparsify names its model one folder up. A star also matches slashes, so files further down are excluded.
    patterns = [f"{prefix}*{suffix}" for suffix in (".json", *_SUFFIXES)]
    return [*patterns, *([f"{above}config.json"] if folder else [])], [f"{prefix}*/*"]


def sae_lens_release(target: str) -> Any:
    """Return the SAELens object that ``sae_lens:release/sae_id`` names."""
    match = _RELEASE.fullmatch(target)
    if match is None:
        raise LoadError(
            f"{target} is not spelled sae_lens:release/sae_id, as in sae_lens:gpt2-small-res-jb/blocks.8.hook_resid_pre"
        )
    try:
        from sae_lens import SAE as Release
    except ImportError:
        raise LoadError(
            f"{target} needs SAELens, which is not installed: pip install 'pytest-sae-bench[sae-lens]'"
        ) from None
    try:
        return Release.from_pretrained(match["release"], match["sae_id"], device="cpu")
    except Exception as error:
        raise LoadError(
            f"SAELens cannot load release {match['release']!r}, SAE {match['sae_id']!r} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def _import(target: str, module_name: str, base: Path | None) -> Any:
    # pytest's importlib mode leaves the project's folder off the path, and that is where such modules lie.
    folder = str((base or Path()).resolve())
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        raise LoadError(
            f"{target}: importing {module_name} failed ({type(error).__name__}: {first_line(error)}); "
            f"is it installed, or in {folder}?"
        ) from error
    finally:
        sys.path.remove(folder)


def _call(target: str, function: Any) -> Any:
    try:
        return function()
    except Exception as error:
        raise LoadError(f"{target}() failed ({type(error).__name__}: {first_line(error)})") from error
