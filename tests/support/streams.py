"""A stream whose later layers are a known function, and dictionaries for its two sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sae_bench.engine.batch import RelatedSAE
from sae_bench.registry.site import Site
from sae_bench.sae import LinearDecoderSAE, ReLU, SAEInfo, weights_sha256

HERE, BEHIND = Site(1, "hook_resid_pre"), Site(2, "hook_resid_pre")
DOCS, POS, D, V = 24, 21, 24, 30


class Stream:
    """Token ids are positions in ``x`` (docs, pos, d); layer 1 is ``later``, after it comes an unembedding alone."""

    runs = True

    def __init__(self, x: Tensor, later: Callable[[Tensor], Tensor], W_U: Tensor) -> None:
        docs, pos, d = x.shape
        self.rows, self.later, self.W_U = x.reshape(docs * pos, d), later, W_U
        self.d_vocab, self.d_model, self.context = max(docs * pos, W_U.shape[1]), d, pos
        self.name, self.tokenizer, self.tokenizer_sha256 = "stream", None, None
        self.identity, self.device, self.dtype = {"name": f"stream {id(self)}"}, "cpu", "float32"

    def width(self, site: Site) -> int:
        return self.d_model

    def capture(self, tokens: Tensor, site: Site) -> SimpleNamespace:
        value = self.rows[tokens]
        value = value if site == HERE else self.later(value)
        return SimpleNamespace(value=value, block_input=value)

    def final_residual(self, tokens: Tensor, block_input: Tensor, site: Site, value: Tensor) -> Tensor:
        return self.later(value) if site == HERE else value

    def resume(self, tokens: Tensor, block_input: Tensor, site: Site, value: Tensor, select: Tensor) -> Tensor:
        return self.final_logits(self.final_residual(tokens, block_input, site, value))[select]

    def logit_blocks(self, *where: Any, select: Tensor, entries: int) -> Iterator[Tensor]:
        yield self.resume(*where, select)

    def norm_scale(self, resid: Tensor) -> Tensor:
        return torch.ones(*resid.shape[:-1], 1)

    def final_logits(self, resid: Tensor, scale: Tensor | None = None, *, differentiable: bool = False) -> Tensor:
        return resid @ self.W_U


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tied(W_dec: Tensor, bias: float = -0.5) -> LinearDecoderSAE:
    """A tied ReLU SAE of the directions of ``W_dec`` (n, d); it writes little, so that it explains something."""
    n, d = W_dec.shape
    directions = torch.nn.functional.normalize(W_dec, dim=1)
    return LinearDecoderSAE(
        info=SAEInfo(format="test", architecture="standard", d_in=d, d_sae=n),
        W_enc=directions.T.contiguous(),
        activation=ReLU(torch.full((n,), bias)),
        W_dec=0.08 * directions,
        b_dec=torch.zeros(d),
        pre_bias=torch.zeros(d),
    )


def companion(sae: Any, name: str = "next", site: Site = BEHIND) -> RelatedSAE:
    return RelatedSAE(name, sae, site, weights_sha256(sae))
