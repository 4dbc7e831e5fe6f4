"""Read weight files: safetensors, numpy's archives, and torch's pickles without running them.

The declared sizes are compared with the size of the file before anything is read, so that a small file cannot allocate
much memory.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_bench.errors import LoadError

Tensors = dict[str, Tensor]

PICKLES = (".pt", ".pth")
"Suffixes of files that torch.save writes."

MOST_BYTES = 64 * 2**30
"Largest pickle or archive that is opened."

_DENSEST = 4
"Largest plausible compression ratio of weights; a file that declares more is no SAE."


def peek_names(path: Path) -> set[str]:
    """Return the names of the tensors in a weight file, or none: for ``recognise``, which must not fail."""
    if not path.is_file():
        return set()
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return set(file.keys())
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return {name.removesuffix(".npy") for name in archive.namelist()}
        return set(read_pickled(path, mapped=True)) if path.suffix in PICKLES else set()
    except (OSError, SafetensorError, zipfile.BadZipFile, LoadError, NotImplementedError):
        return set()


def read_safetensors(path: Path) -> Tensors:
    """Return all tensors of ``path`` as stored; `LoadError` when it is missing, truncated or something else."""
    _check_exists(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise LoadError(f"{path} is truncated or no safetensors file ({error}); save or download it again") from None


def read_npz(path: Path) -> Tensors:
    """Return all arrays of a numpy archive as tensors, none of them pickled; `LoadError` when it is anything else."""
    _check_exists(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_unpacked_size(path, archive, compressed=True)
            for member in archive.infolist():
                _check_array(path, archive, member)
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file.files}
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise LoadError(f"{path} is truncated or no archive of plain arrays ({error}); download it again") from None


def read_pickled(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a dict of tensors and plain values that ``torch.save`` wrote; nothing in the file is run.

    ``mapped`` leaves the values in the file until they are used. Read with ``weights_only=True``, which refuses
    everything but tensors and plain containers. A `LoadError` when it is missing, truncated, larger than `MOST_BYTES`,
    compressed, or no dict.
    """
    _check_exists(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_unpacked_size(path, archive, compressed=False)
        with warnings.catch_warnings():
            # Of protocols that other writers use: what cannot be read is an error below.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except LoadError:
        raise
    except Exception:
        # torch's own message advises to switch the protection off.
        content = None
    # A dict may hold one tensor spread over a huge shape that takes no room in the file.
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content) or not _fits(content, path):
        raise LoadError(
            f"{path} is not a plain dict of tensors: it is truncated, a web page saved by mistake, or a pickle of "
            f"other objects, which is never run; save the SAE's state_dict() alone, or download it again"
        )
    return content


def only_tensors(content: dict[str, Any], path: Path) -> Tensors:
    """Return ``content``, which must hold tensors alone; a `LoadError` names the first other value."""
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise LoadError(
                f"{path} is not a plain dict of tensors: {name} is a {type(value).__name__}; "
                f"save the SAE's state_dict() alone"
            )
    return content


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise LoadError(f"{path.parent} has no {path.name}; copy it from where the SAE was saved")


def _check_unpacked_size(path: Path, archive: zipfile.ZipFile, *, compressed: bool) -> None:
    """Raise a `LoadError` when the members of an archive would unpack to more than such a file can hold."""
    size, unpacked = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    most = min(MOST_BYTES, size * (_DENSEST if compressed else 1))
    if unpacked > most:
        raise LoadError(
            f"{path} has {size} bytes and declares {unpacked} bytes unpacked, more than the {most} that are read; "
            f"it is damaged or no SAE: download it again"
        )


def _check_array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise a `LoadError` when an array's header promises more values than its member holds."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    if math.prod(shape) * dtype.itemsize > member.file_size or dtype.kind not in "fiub":
        raise LoadError(
            f"{member.filename} of {path} is not a plain array of numbers in its {member.file_size} bytes; "
            f"download the file again"
        )


def _fits(content: dict[str, Any], path: Path) -> bool:
    size = path.stat().st_size
    return all(value.numel() * value.element_size() <= size for value in content.values() if isinstance(value, Tensor))
