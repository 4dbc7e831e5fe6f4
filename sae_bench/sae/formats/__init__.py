"""Read SAEs from folders, the Hugging Face hub, SAELens' releases, and Python objects.

One format is one module of this package, discovered by its name. A format of folders has ``recognise(folder) ->
bool`` (cheap, never fails) and ``read(folder) -> SAE`` (a `LoadError` in one sentence when the files are there but
wrong); a format of single files has ``recognise_file(path, names) -> bool``, given the names of the tensors in the
file, and ``read_file(path)``. Either may have ``adopt(obj)``, which converts a loaded object of that format's library
to an `SAE`, or returns None.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch

from sae_bench.errors import LoadError, UsageError
from sae_bench.registry.extensions import Extensions
from sae_bench.sae import SAE, check_outputs, wrap
from sae_bench.sae.files import resolve_target
from sae_bench.sae.files.read_tensors import PICKLES, peek_names
from sae_bench.sae.formats.sae_lens.write import write_sae_lens

__all__ = ["as_sae", "read_folder", "read_sae", "readers", "write_sae_lens"]

_WEIGHTS = (".safetensors", ".npz", *PICKLES)
_NEVER_READ = (".pkl", ".bin", ".ckpt", ".pickle", ".npy")


def read_sae(target: str, *, device: str = "cpu", dtype: str = "float32", base: Path | None = None) -> SAE:
    """Read the SAE that ``target`` names, checked by `check_outputs`, on ``device`` in ``dtype``.

    ``target`` is a folder or a file in it (relative to ``base``), ``hf:org/name[@revision]/sub/folder``,
    ``sae_lens:release/sae_id`` or ``module:attribute`` (an object with encode and decode, or a function that returns
    one). Nothing is ever unpickled. Every failure is a `LoadError` in one sentence.
    """
    precision = getattr(torch, dtype, None)
    if not isinstance(precision, torch.dtype) or not precision.is_floating_point:
        raise LoadError(f"unknown dtype {dtype!r} for an SAE; known: float32, bfloat16, float16, float64")
    if target.startswith("hf:"):
        sae = read_folder(resolve_target.download(target))
    elif target.startswith("sae_lens:"):
        sae = as_sae(resolve_target.sae_lens_release(target))
    elif (path := resolve_target.existing_path(target, base)) is not None:
        sae = read_folder(path)
    elif resolve_target.is_attribute(target):
        sae = as_sae(resolve_target.attribute(target, base))
    else:
        raise resolve_target.missing_path_error(target, base)
    sae = sae.to(device, precision)
    check_outputs(sae)
    return sae


def as_sae(obj: Any) -> SAE:
    """Convert ``obj`` to an `SAE`: by the reader of its library if there is one, else wrapped as it is."""
    for reader in readers():
        adopted: SAE | None = getattr(reader, "adopt", lambda _: None)(obj)
        if adopted is not None:
            return adopted
    return wrap(obj)


def read_folder(path: Path) -> SAE:
    """Read the SAE in a folder, in the folder of a file, or in a single file; float32, on the CPU."""
    if not path.is_file() and not path.is_dir():
        raise LoadError(f"{path} is neither a file nor a folder; give the folder or file that holds the SAE")
    folder = path.parent if path.is_file() else path
    matching = [reader for reader in readers() if _recognises(reader, folder)]
    files = [path] if path.is_file() else sorted(_weight_files(folder))
    if matching:
        _check_one_format(matching, folder)
        sae: SAE = matching[0].read(folder)
        return sae
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:3])
        raise LoadError(f"{folder} holds {len(files)} weight files ({names} ...); give the path of one of them")
    for file in files:
        if of_file := _readers_of(file):
            _check_one_format(of_file, file)
            single: SAE = of_file[0].read_file(file)
            return single
    raise _unrecognised(folder, [file.name for file in files])


def readers() -> tuple[ModuleType, ...]:
    """Return the modules that read a format: this package's by name, then registered ones (`register_format`)."""
    return (*_own_readers(), *(EXTENSIONS.load(name) for name in EXTENSIONS.names()))


def register_format(reader: ModuleType, name: str | None = None) -> None:
    """Add a format; call it in ``conftest.py``.

    ``reader`` is a module (or an object) with ``recognise(folder)`` and ``read(folder)``. A package names its module in
    an entry point of the group ``sae_bench.formats`` instead.

    Raises:
        UsageError: the name is taken, or a function is missing.
    """
    EXTENSIONS.register(name or reader.__name__.rsplit(".", 1)[-1], reader)


@cache
def _own_readers() -> tuple[ModuleType, ...]:
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in _own_names())


@cache
def _own_names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def _checked(name: str, reader: object) -> ModuleType:
    missing = [method for method in ("recognise", "read") if not callable(getattr(reader, method, None))]
    if missing:
        raise UsageError(f"format {name!r} has no {missing[0]}(); it needs recognise(folder) and read(folder)")
    return cast(ModuleType, reader)


EXTENSIONS: Extensions[ModuleType] = Extensions("format", _own_names, _checked)
"Formats of other packages and of this run's ``conftest.py``."


def _weight_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix in _WEIGHTS and file.is_file()]


def _readers_of(file: Path) -> list[ModuleType]:
    names = peek_names(file)
    return [reader for reader in readers() if hasattr(reader, "recognise_file") and reader.recognise_file(file, names)]


def _check_one_format(matching: list[ModuleType], path: Path) -> None:
    if len(matching) > 1:
        names = ", ".join(_name(reader) for reader in matching)
        raise LoadError(f"{path} looks like more than one format ({names}); leave the files of one of them in it")


def _unrecognised(folder: Path, weight_files: list[str]) -> LoadError:
    files = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    pickles = [name for name in weight_files or files if Path(name).suffix in _NEVER_READ]
    if pickles:
        return LoadError(
            f"{folder} stores its weights as {', '.join(pickles[:3])}, which is not read because unpickling runs code; "
            f"convert it to safetensors, or register load=, a function that returns an object with encode and decode"
        )
    if broken := [name for name in weight_files if not peek_names(folder / name)]:
        return LoadError(
            f"{folder / broken[0]} holds no tensors by name: it is truncated, a web page saved by mistake, or a pickle "
            f"of other objects, which is never run; save the SAE's state_dict() alone, or download it again"
        )
    below = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    inside = [str(entry) for entry in below if any(_recognises(reader, entry) for reader in readers())]
    if inside:
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        return LoadError(f"{folder} holds several SAEs; give the path of one of them: {', '.join(inside[:3])}{more}")
    formats = ", ".join(_name(reader) for reader in readers())
    listing = ", ".join(files[:6]) or "no files"
    return LoadError(
        f"{folder} ({listing}) is in no known format ({formats}); "
        f"to measure it, register load=, a function that returns an object with encode and decode"
    )


def _recognises(reader: ModuleType, folder: Path) -> bool:
    return bool(getattr(reader, "recognise", lambda _: False)(folder))


def _name(reader: ModuleType) -> str:
    return reader.__name__.rsplit(".", 1)[1]
