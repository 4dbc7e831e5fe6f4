"""GELU activation functions of a model on a CPU, computed in chunks that stay in the processor's caches.

transformers writes some of them as a chain of operations (GPT-2's GELU is eight), each of which reads a whole batch
from memory and writes another one. Chunk by chunk, the same operations on the same numbers give the same bits sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CHAINED_GELUS = ("NewGELUActivation", "FastGELUActivation")
"""Classes of transformers that are such chains.

The other activation functions are one operation already, or hold a sigmoid, whose last bit depends on where a vector
instruction begins.
"""
CHUNK = 1 << 18
"Numbers in a chunk: one MB of float32."


def chained_gelus(model: nn.Module) -> list[nn.Module]:
    """Return the activation functions in ``model`` that are faster in chunks."""
    return [
        module
        for module in model.modules()
        if type(module).__name__ in CHAINED_GELUS and type(module).__module__ == "transformers.activations"
    ]


@contextmanager
def in_chunks(functions: Sequence[nn.Module]) -> Iterator[None]:
    """Let ``functions`` compute tensors on a CPU that need no gradient `CHUNK` numbers at a time, within the block.

    A function whose ``forward`` is already replaced stays as it is.
    """
    functions = [function for function in functions if "forward" not in vars(function)]
    try:
        for function in functions:
            object.__setattr__(function, "forward", _chunked(function.forward))
        yield
    finally:
        for function in functions:
            vars(function).pop("forward", None)


def _chunked(whole: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.numel() <= CHUNK:
            return whole(x)
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, out in zip(torch.split(x.reshape(-1), CHUNK), torch.split(result.view(-1), CHUNK), strict=True):
            out.copy_(whole(part))
        return result

    return forward
