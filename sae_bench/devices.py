"""Which device measures, checked before anything is loaded."""

from __future__ import annotations

import torch

from sae_bench.errors import UsageError

KNOWN = ("cpu", "cuda", "mps")


def check_device(name: str) -> None:
    """A `UsageError` where this machine, or the torch installed on it, has no device called ``name``."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KNOWN:
        raise UsageError(f"unknown device {name!r}; give cpu, cuda, cuda:1 (the second one) or mps")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "mps" and not torch.backends.mps.is_available():
        count = 0
    if (device.index or 0) >= count:
        raise UsageError(
            f"there is no device {name!r}: torch {torch.__version__} finds {count} {device.type} devices here; leave "
            f"--sae-device out to measure on the CPU, or install a build of torch with {device.type}"
        )
