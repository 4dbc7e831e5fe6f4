"""The unembedding of a model alone: logits from its input, some rows at a time.

The logits of a batch are the largest tensor of a run. Computed for some hundred rows at a time, always in the same
memory, they stay in the processor's caches, and the system need not provide that memory again and again.

Shapes: k rows, d_model width of the residual stream, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SLICE = 2048
"Entries of the vocabulary whose logits are computed at once on a CPU: products that wide stay in its caches."
ROWS = 512
"Rows unembedded at once on a CPU; a product of fewer is slower."
SMALL = 1 << 21
"Logits that are computed at once on a CPU although they are of more rows than `ROWS`."


class Unembedding:
    """The unembedding of a TransformerBridge (or HookedTransformer) with the model's transformation of its logits."""

    def __init__(self, bridge: Any, d_vocab: int) -> None:
        self.bridge = bridge
        self.d_vocab = d_vocab
        self._buffer: Tensor | None = None

    def logits(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Return (k, V) float32 logits of ``rows`` (k, d_model), inputs of the unembedding; in ``out`` if possible."""
        with self.sliced(out):
            logits = self.bridge.unembed(rows[None])[0]
        transform = getattr(getattr(self.bridge, "adapter", None), "apply_output_logits_transform", None)
        cap = float(getattr(self.bridge.cfg, "output_logits_soft_cap", None) or 0.0)
        if transform is not None:
            logits = transform(logits)
        elif cap > 0:
            logits = cap * torch.tanh(logits / cap)
        result: Tensor = logits.float()
        return result

    def blocks(self, rows: Tensor, entries: int) -> Iterator[Tensor]:
        """Yield `logits` of ``rows`` (n, d_model), at most ``entries`` numbers at once; a block overwrites the last."""
        step = min(rows_at_once(self.d_vocab, entries, rows.device), len(rows))
        # Reused by the next run, because the system has to clear a new one, which takes as long as filling it.
        buffer, self._buffer = self._buffer, None
        if buffer is None or len(buffer) < step or buffer.device != rows.device or buffer.dtype != rows.dtype:
            buffer = rows.new_empty(step, self.d_vocab)
        try:
            for block in torch.split(rows, step):
                yield self.logits(block, buffer[: len(block)])
        finally:
            self._buffer = buffer

    @contextmanager
    def only(self, select: Tensor) -> Iterator[list[bool]]:
        """Let the unembedding read only the rows where ``select`` (b, p) is true; the list is not empty if it did."""
        picked: list[bool] = []

        def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not args or args[0].shape[:2] != select.shape:
                return None
            picked.append(True)
            return (args[0][select][None], *args[1:])

        handle = self.bridge.unembed.register_forward_pre_hook(pick)
        try:
            with self.sliced():
                yield picked
        finally:
            handle.remove()

    @contextmanager
    def sliced(self, out: Tensor | None = None) -> Iterator[None]:
        """Compute the logits of a large vocabulary in slices within the block, into ``out`` (k, V) if not None."""
        linear = getattr(self.bridge.unembed, "original_component", None)
        # A class of its own may do more than multiply.
        if type(linear) is not nn.Linear or linear.weight.device.type != "cpu" or len(linear.weight) <= SLICE:
            yield
            return
        weights = torch.split(linear.weight, SLICE)
        biases = [None] * len(weights) if linear.bias is None else torch.split(linear.bias, SLICE)

        def forward(rows: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                parts = zip(weights, biases, strict=True)
                return torch.cat([functional.linear(rows, weight, bias) for weight, bias in parts], dim=-1)
            flat, shape = rows.reshape(-1, rows.shape[-1]), (*rows.shape[:-1], linear.out_features)
            logits = flat.new_empty(len(flat), linear.out_features) if out is None else out
            for part, weight, bias in zip(torch.split(logits, SLICE, dim=-1), weights, biases, strict=True):
                if bias is None:
                    torch.mm(flat, weight.T, out=part)
                else:
                    torch.addmm(bias, flat, weight.T, out=part)
            return logits.view(shape)

        object.__setattr__(linear, "forward", forward)
        try:
            yield
        finally:
            object.__delattr__(linear, "forward")


def rows_at_once(d_vocab: int, entries: int, device: torch.device) -> int:
    """Return the best number of rows for one product, if at most ``entries`` logits may be in memory."""
    most = entries // d_vocab
    if device.type == "cpu":
        most = min(most, max(ROWS, SMALL // d_vocab))
    return max(1, most)
