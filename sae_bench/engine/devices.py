"""Devices: check that one exists before anything is loaded, and send tensors to it."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_bench.errors import UsageError

KNOWN = ("cpu", "cuda")


def check_device(name: str) -> None:
    """Raise a `UsageError` when this machine, or the torch installed on it, has no device called ``name``."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and device.type == "mps":
        raise UsageError("device 'mps' has no float64, which sums need; leave out --sae-device to measure on the CPU")
    if device is None or device.type not in KNOWN:
        raise UsageError(f"unknown device {name!r}; give cpu, cuda, or cuda:1 for the second GPU")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise UsageError(
            f"device {name!r} does not exist: torch {torch.__version__} finds {count} {device.type} devices here; "
            f"leave out --sae-device to measure on the CPU, or install a build of torch with {device.type}"
        )


def send(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Copy a tensor to ``device``; to a GPU from page-locked memory, while the CPU goes on."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
