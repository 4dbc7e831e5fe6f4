"""Forward passes of a model's bridge: whole, ended early, or with the first blocks skipped.

Shapes: b documents, p positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sae_bench.model.chunked_gelu import chained_gelus, in_chunks
from sae_bench.model.unembed import Unembedding

_LEVEL = 7411
"Marks our hooks, so that removing them leaves a user's own in place."


class StopForward(Exception):
    """Signal that ends a forward pass after the module that was to be read."""


class ForwardPasses:
    """Forward passes of one bridge."""

    def __init__(self, bridge: Any, unembedding: Unembedding, device: torch.device) -> None:
        self.bridge = bridge
        self.unembedding = unembedding
        self.device = device

    def logits(
        self, tokens: Tensor, select: Tensor | None = None, inputs: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return (b, p, V) float32 logits of tokens (b, p); with ``select``, bool (b, p), (n, V) of its true entries.

        ``inputs`` are further arguments of the forward pass (an attention mask, position ids).
        """
        options: dict[str, Any] = {"return_type": "logits", **(inputs or {})}
        if hasattr(getattr(self.bridge, "original_model", None), "config"):
            options["use_cache"] = False
        if select is None:
            with in_chunks(self._chains):
                logits: Tensor = self.bridge(tokens.to(self.device), **options)
            return logits.float()
        with in_chunks(self._chains), self.unembedding.only(select.to(self.device)) as picked:
            logits = self.bridge(tokens.to(self.device), **options)
        return (logits[0] if picked else logits[select.to(self.device)]).float()

    def input_of(self, module: nn.Module, tokens: Tensor) -> Tensor | None:
        """Run up to ``module`` and return its first input, (b, p, width); None when it is never called."""
        inputs: list[Tensor] = []

        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.append(args[0].detach())
            raise StopForward

        handle = module.register_forward_pre_hook(read)
        try:
            with torch.no_grad(), suppress(StopForward):
                self.logits(tokens)
        finally:
            handle.remove()
        return inputs[0] if inputs else None

    @contextmanager
    def skip_blocks(self, layer: int) -> Iterator[None]:
        """Let blocks before ``layer`` return their input, in the form of their own output, within the block."""
        blocks = list(self.bridge.blocks)[:layer]
        extra = self._extra_outputs if blocks else None

        def pass_through(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return hidden if extra is None else (hidden, *([None] * extra))

        try:
            for block in blocks:
                # A bridged block passes plain attribute access on to the module it wraps.
                object.__setattr__(block, "forward", pass_through)
            yield
        finally:
            for block in blocks:
                if "forward" in vars(block):
                    object.__delattr__(block, "forward")

    @cached_property
    def _chains(self) -> list[nn.Module]:
        return chained_gelus(self.bridge)

    @cached_property
    def _extra_outputs(self) -> int | None:
        """Number of values that a block returns after the residual stream; None when it returns a bare tensor."""
        counts: list[int | None] = []

        def count(module: nn.Module, args: Any, output: Any) -> None:
            counts.append(len(output) - 1 if isinstance(output, tuple) else None)
            raise StopForward

        handle = self.bridge.blocks[0].register_forward_hook(count)
        try:
            with torch.no_grad(), suppress(StopForward):
                self.logits(torch.zeros(1, 2, dtype=torch.int64))
        finally:
            handle.remove()
        return counts[0]


@contextmanager
def attached_hook(hook: Any, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``act`` with every tensor at a hook within the block; what it returns, unless None, replaces the tensor."""

    def called(tensor: Tensor, hook: Any) -> Tensor | None:
        return act(tensor)

    hook.add_hook(called, level=_LEVEL)
    try:
        yield
    finally:
        hook.remove_hooks("fwd", level=_LEVEL)
