"""Forward passes of a model's bridge: whole, ended where all that is wanted has been seen, or with blocks skipped.

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
    """Ends a forward pass that has shown all that is wanted."""


class ForwardPasses:
    """Passes of one bridge."""

    def __init__(self, bridge: Any, unembedding: Unembedding, device: torch.device) -> None:
        self.bridge = bridge
        self.unembedding = unembedding
        self.device = device

    def whole(self, tokens: Tensor, select: Tensor | None = None, given: Mapping[str, Tensor] | None = None) -> Tensor:
        """(b, p, V) float32 logits of tokens (b, p); with ``select``, bool (b, p), those of its true entries, (n, V).

        ``given`` goes to the forward as it is (an attention mask, position ids).
        """
        options: dict[str, Any] = {"return_type": "logits", **(given or {})}
        if hasattr(getattr(self.bridge, "original_model", None), "config"):
            options["use_cache"] = False
        if select is None:
            with in_chunks(self._chains):
                logits: Tensor = self.bridge(tokens.to(self.device), **options)
            return logits.float()
        with in_chunks(self._chains), self.unembedding.only(select.to(self.device)) as picked:
            logits = self.bridge(tokens.to(self.device), **options)
        return (logits[0] if picked else logits[select.to(self.device)]).float()

    def read_by(self, module: nn.Module, tokens: Tensor) -> Tensor | None:
        """(b, p, width) what ``module`` reads first, and nothing is run behind it; None when it is never called."""
        seen: list[Tensor] = []

        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0].detach())
            raise StopForward

        handle = module.register_forward_pre_hook(look)
        try:
            with torch.no_grad(), suppress(StopForward):
                self.whole(tokens)
        finally:
            handle.remove()
        return seen[0] if seen else None

    @contextmanager
    def skipping(self, layer: int) -> Iterator[None]:
        """For the duration, blocks before ``layer`` return their input, in the form their own output would have."""
        blocks = list(self.bridge.blocks)[:layer]
        extra = self._extra_outputs if blocks else None

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return hidden if extra is None else (hidden, *([None] * extra))

        try:
            for block in blocks:
                # A bridged block passes plain attribute access on to the module it wraps.
                object.__setattr__(block, "forward", hand_on)
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
        """How many things a block returns beside the residual stream; None when it returns a bare tensor."""
        found: list[int | None] = []

        def look(module: nn.Module, args: Any, output: Any) -> None:
            found.append(len(output) - 1 if isinstance(output, tuple) else None)
            raise StopForward

        handle = self.bridge.blocks[0].register_forward_hook(look)
        try:
            with torch.no_grad(), suppress(StopForward):
                self.whole(torch.zeros(1, 2, dtype=torch.int64))
        finally:
            handle.remove()
        return found[0]


@contextmanager
def hooked(hook: Any, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """For the duration, ``act`` sees what passes a hook, and may put something else in its place."""

    def called(tensor: Tensor, hook: Any) -> Tensor | None:
        return act(tensor)

    hook.add_hook(called, level=_LEVEL)
    try:
        yield
    finally:
        hook.remove_hooks("fwd", level=_LEVEL)
