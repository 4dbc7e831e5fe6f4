"""Reading SAEs from wherever they are: folders, the Hugging Face hub, SAELens' releases, Python objects.

One family of files is one module of this package, found by itself, with ``recognise(folder) -> bool`` (cheap, never
fails) and ``read(folder) -> SAE`` (a `LoadError` in one sentence when the files are there but wrong); optionally
``adopt(obj)``, which turns a loaded object of that family's library into an `SAE`, or returns None.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sae_bench.errors import LoadError
from sae_bench.formats import _targets
from sae_bench.formats._write_sae_lens import write_sae_lens
from sae_bench.sae import SAE, check_contract, wrap

__all__ = ["as_sae", "read_folder", "read_sae", "readers", "write_sae_lens"]

_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")


def read_sae(target: str, *, device: str = "cpu", dtype: str = "float32", base: Path | None = None) -> SAE:
    """The SAE that ``target`` names, checked (`check_contract`), on ``device`` in ``dtype``.

    ``target`` is a folder or a file in it (relative to ``base``), ``hf:org/name[@revision]/sub/folder``,
    ``sae_lens:release/sae_id`` or ``module:attribute`` (an object with encode and decode, or a function that returns
    one). Nothing is ever unpickled. Every failure is a `LoadError` in one sentence.
    """
    precision = getattr(torch, dtype, None)
    if not isinstance(precision, torch.dtype) or not precision.is_floating_point:
        raise LoadError(f"unknown dtype {dtype!r} for an SAE; known: float32, bfloat16, float16, float64")
    if target.startswith("hf:"):
        sae = read_folder(_targets.download(target))
    elif target.startswith("sae_lens:"):
        sae = as_sae(_targets.sae_lens_release(target))
    elif (path := _targets.existing_path(target, base)) is not None:
        sae = read_folder(path)
    elif _targets.is_attribute(target):
        sae = as_sae(_targets.attribute(target, base))
    else:
        raise _targets.not_found(target, base)
    sae = sae.to(device, precision)
    check_contract(sae)
    return sae


def as_sae(obj: Any) -> SAE:
    """``obj`` as an `SAE`: by the reader of its library where there is one, else wrapped as it is."""
    for reader in readers():
        adopted: SAE | None = getattr(reader, "adopt", lambda _: None)(obj)
        if adopted is not None:
            return adopted
    return wrap(obj)


def read_folder(path: Path) -> SAE:
    """The SAE in a folder, or in the folder of a file, in float32 on the CPU."""
    named = path.name if path.is_file() else None
    path = path.parent if named else path
    found = [reader for reader in readers() if reader.recognise(path)]
    if len(found) == 1:
        sae: SAE = found[0].read(path)
        return sae
    if found:
        names = ", ".join(_name(reader) for reader in found)
        raise LoadError(f"{path} looks like more than one format ({names}); keep the files of one of them in it")
    if named and Path(named).suffix in _PICKLES:
        raise _pickled(path, [named])
    raise _unrecognised(path)


@cache
def readers() -> tuple[ModuleType, ...]:
    """The modules of this package that read a family of files, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)


def _unrecognised(folder: Path) -> LoadError:
    files = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    pickles = [name for name in files if Path(name).suffix in _PICKLES]
    if pickles and not any(name.endswith(".safetensors") for name in files):
        return _pickled(folder, pickles)
    below = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    inside = [str(entry) for entry in below if any(reader.recognise(entry) for reader in readers())]
    if inside:
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        return LoadError(f"{folder} is not one SAE but holds some; name one of them: {', '.join(inside[:3])}{more}")
    known = ", ".join(_name(reader) for reader in readers())
    listing = ", ".join(files[:6]) or "no files"
    return LoadError(
        f"{folder} ({listing}) is in no known format ({known}); "
        f"to measure it, register load=, a function that returns an object with encode and decode"
    )


def _pickled(folder: Path, names: list[str]) -> LoadError:
    return LoadError(
        f"{folder} holds its weights as {', '.join(names[:3])}, which is not read because unpickling runs code; "
        f"convert it to safetensors, or register load=, a function that returns an object with encode and decode"
    )


def _name(reader: ModuleType) -> str:
    return reader.__name__.rsplit(".", 1)[1]
