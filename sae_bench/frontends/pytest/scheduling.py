"""Spread items over xdist workers: items of one SAE stay together, so that it is loaded and captured once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from typing import Any

from sae_bench.errors import UsageError

_PARAMETER = re.compile(r"\[([^\[\]]+)\]$")


def group_of(nodeid: str, saes: Collection[str]) -> str:
    """Return the SAE in the brackets of a node id; every other item is a group of its own."""
    match = _PARAMETER.search(nodeid)
    return match[1] if match and match[1] in saes else nodeid


def by_sae(config: Any, log: Any, saes: Collection[str]) -> Any:
    """Return an xdist scheduler that assigns whole SAEs; ``loadgroup`` does not group on every pytest."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class BySAE(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid, frozenset(saes))

    return BySAE(config, log)


def device_of(worker: str, device: str) -> str:
    """Return the device of an xdist worker (``gw0``, ``gw1`` ...): with several GPUs, ``cuda`` is one for each."""
    if device != "cuda":
        return device
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{int(worker.removeprefix('gw')) % gpus}" if gpus > 1 else device


def check_gpus(workers: int, device: str) -> None:
    """Raise a `UsageError` where xdist workers would share GPUs that nobody named: each loads its own model."""
    if device != "cuda":
        return
    import torch

    gpus = torch.cuda.device_count()
    if workers > gpus:
        raise UsageError(
            f"-n {workers} with --sae-device cuda loads {workers} models into the memory of {gpus} GPU"
            f"{'s' * (gpus != 1)}; give -n {gpus}, or name the GPU that all shall share: --sae-device cuda:0"
        )


def share_cores(workers: int) -> None:
    """Leave this worker its part of the cores, unless ``OMP_NUM_THREADS`` says otherwise.

    More threads than cores wait for one another at every product: a run takes ten times as long.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by torch and by numpy's libraries when they are imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
