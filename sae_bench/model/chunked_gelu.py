"""A model's activation functions on a CPU, done in parts that stay in a processor's caches.

transformers writes some of them as a chain of operations (GPT-2's GELU is eight), each of which reads a whole batch
from memory and writes another one. Part by part, the same operations on the same numbers give the same bits sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CHAINED_GELUS = ("NewGELUActivation", "FastGELUActivation")
"""Classes of transformers that are such chains.

Its others are one operation already, or hold a sigmoid, whose last bit depends on where a vector instruction begins.
"""
CHUNK = 1 << 18
"Numbers at once: one MB of float32."


def chained_gelus(model: nn.Module) -> list[nn.Module]:
    """Activation functions in ``model`` that gain from being done in parts."""
    return [
        module
        for module in model.modules()
        if type(module).__name__ in CHAINED_GELUS and type(module).__module__ == "transformers.activations"
    ]


@contextmanager
def in_chunks(functions: Sequence[nn.Module]) -> Iterator[None]:
    """For the duration, ``functions`` go through what is on a CPU, and keeps no gradient, `CHUNK` numbers at a time.

    One whose ``forward`` somebody has replaced is left as it is.
    """
    functions = [function for function in functions if "forward" not in vars(function)]
    try:
        for function in functions:
            object.__setattr__(function, "forward", _by_parts(function.forward))
        yield
    finally:
        for function in functions:
            vars(function).pop("forward", None)


def _by_parts(whole: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.numel() <= CHUNK:
            return whole(x)
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, out in zip(torch.split(x.reshape(-1), CHUNK), torch.split(result.view(-1), CHUNK), strict=True):
            out.copy_(whole(part))
        return result

    return forward
