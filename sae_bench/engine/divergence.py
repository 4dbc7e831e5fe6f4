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
        logits: (k, V) float32; overwritten by their log-probabilities.
        following: int64 (k,), the next tokens.
        distances: whether they are wanted; each costs another pass.
    """
    kl, square, moved = torch.zeros(3, len(logits), dtype=torch.float64, device=logits.device)
    for logp, logq in _log_probs(clean, logits):
        p, apart = logp.exp(), logp - logq
        if distances:
            square += apart.square().sum(-1)
            moved += logq.exp().sub_(p).abs_().sum(-1)
        kl += apart.mul_(p).sum(-1)
    away = [square.sqrt(), moved / 2] if distances else []
    found = [kl.float(), surprise(logits, following), *(each.float() for each in away)]
    return torch.stack(found, dim=-1)


def kl_divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """float64 (k,) KL in nats from log-probabilities to logits, (k, V) both, which are overwritten by theirs."""
    kl = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for logp, logq in _log_probs(clean, logits):
        kl += (logp - logq).mul_(logp.exp()).sum(-1)
    return kl


def entropy(log_probs: Tensor) -> Tensor:
    """float64 (k,) in nats, of log-probabilities (k, V)."""
    found = torch.zeros(len(log_probs), dtype=torch.float64, device=log_probs.device)
    for part in _slices(log_probs):
        logp = log_probs[:, part]
        found -= logp.exp().mul_(logp).sum(-1)
    return found


def _log_probs(clean: Tensor, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices of both log-probabilities, those of ``logits`` in their place."""
    top, rest = _normaliser(logits)
    for part in _slices(logits):
        yield clean[:, part], logits[:, part].sub_(top).sub_(rest)


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
