"""Float tensors within a budget of memory; larger ones are mapped from files."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sae_bench.errors import MeasurementError


class TensorAllocator:
    """A budget of memory for float tensors; those beyond it are mapped from files in a temporary folder."""

    def __init__(self, memory_bytes: int) -> None:
        self.free_bytes = memory_bytes
        self.memory_bytes = 0
        "Bytes of the tensors in memory."
        self.mapped_bytes = 0
        "Bytes of the tensors in files."
        self._folder: Path | None = None

    def empty(self, *shape: int) -> Tensor:
        """Return an uninitialised float32 tensor; a `MeasurementError` when it fits neither in memory nor on disk."""
        size = 4 * prod(shape)
        if size <= self.free_bytes:
            self.free_bytes -= size
            self.memory_bytes += size
            return torch.empty(*shape)
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="sae-bench-", ignore_cleanup_errors=True)
            weakref.finalize(self, folder.cleanup)
            self._folder = Path(folder.name)
        free = shutil.disk_usage(self._folder).free
        if size > free:
            raise MeasurementError(
                f"activations of {size / 1e9:.1f} GB fit neither into memory nor into {self._folder.parent} "
                f"({free / 1e9:.1f} GB free); use a corpus with fewer documents, or set TMPDIR to a larger disk"
            )
        self.mapped_bytes += size
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            return torch.from_file(file.name, shared=True, size=size // 4, dtype=torch.float32).view(*shape)
