"""How far two next-token distributions lie apart: float32 log-probabilities, sums over the vocabulary in float64.

Everything goes through the vocabulary in slices that stay in a processor's caches; whole copies of the logits would
cost more time than the arithmetic. Shapes: k rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SLICE = 2048
"Entries of the vocabulary taken at once on a CPU."


def log_softmax_(logits: Tensor) -> Tensor:
    """``logits`` (k, V) float32, overwritten by their log-probabilities."""
    top, rest = _normaliser(logits)
    for part in _slices(logits):
        logits[:, part].sub_(top).sub_(rest)
    return logits


def surprise(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """(k,) minus the log-probability, (k, V), of each row's token, (k,)."""
    return -log_probs.gather(-1, tokens[:, None]).squeeze(-1)


def divergences(clean: Tensor, logits: Tensor, following: Tensor, distances: bool) -> Tensor:
    """(k, 2) KL from the clean distribution and surprise at the next token, in nats; (k, 4) with both distances.

    The distances are the Euclidean one of the log-probabilities and the total variation of the probabilities.

    Args:
        clean: (k, V) float32 log-probabilities.
        logits: (k, V) float32; overwritten by their log-probabilities, or with distances by their probabilities.
        following: int64 (k,), the next tokens.
        distances: whether they are wanted; each costs another pass.
    """
    top, rest = _normaliser(logits)
    kl, square, moved = torch.zeros(3, len(logits), dtype=torch.float64, device=logits.device)
    ce = -(logits.gather(-1, following[:, None]) - top - rest).squeeze(-1)
    for part in _slices(logits):
        logp, logq = clean[:, part], logits[:, part].sub_(top).sub_(rest)
        p, apart = logp.exp(), logp - logq
        if distances:
            square += apart.square().sum(-1)
            moved += logq.exp_().sub_(p).abs_().sum(-1)
        kl += apart.mul_(p).sum(-1)
    away = [square.sqrt(), moved / 2] if distances else []
    return torch.stack([kl.float(), ce, *(each.float() for each in away)], dim=-1)


def _normaliser(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit and the log of the sum of ``exp(logit - largest)``, (k, 1) each.

    They are taken off one after the other: their sum, rounded, would move every log-probability of a row.
    """
    tops, sums = [], []
    for part in _slices(logits):
        top = logits[:, part].amax(-1, keepdim=True)
        sums.append((logits[:, part] - top).exp_().sum(-1, keepdim=True))
        tops.append(top)
    highest = torch.stack(tops).amax(0)
    total = sum(each.double() * (top - highest).double().exp() for each, top in zip(sums, tops, strict=True))
    return highest, torch.as_tensor(total).log().to(logits.dtype)


def _slices(logits: Tensor) -> Iterator[slice]:
    width = SLICE if logits.device.type == "cpu" else logits.shape[-1]
    return (slice(start, start + width) for start in range(0, logits.shape[-1], width))
