"""Where things are measured, checked before anything is loaded, and the way there."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_bench.errors import UsageError

KNOWN = ("cpu", "cuda")


def check_device(name: str) -> None:
    """A `UsageError` where this machine, or the torch installed on it, has no device called ``name``."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and device.type == "mps":
        raise UsageError("device 'mps' has no float64, in which sums are taken here; leave --sae-device out")
    if device is None or device.type not in KNOWN:
        raise UsageError(f"unknown device {name!r}; give cpu, cuda or cuda:1 (the second one)")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise UsageError(
            f"there is no device {name!r}: torch {torch.__version__} finds {count} {device.type} devices here; leave "
            f"--sae-device out to measure on the CPU, or install a build of torch with {device.type}"
        )


def send(tensor: Tensor, device: str | torch.device) -> Tensor:
    """A tensor of the CPU on ``device``; a GPU takes it from page-locked memory while the CPU goes on."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
