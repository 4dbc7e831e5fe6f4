"""Divergences of two next-token distributions: float32 log-probabilities, sums over the vocabulary in float64.

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
    """Overwrite ``logits`` (k, V) float32 with their log-probabilities."""
    top, rest = _normaliser(logits)
    for part in _slices(logits):
        logits[:, part].sub_(top).sub_(rest)
    return logits


def surprise(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Return minus the log-probability (k, V) of each row's token (k,): (k,)."""
    return -log_probs.gather(-1, tokens[:, None]).squeeze(-1)


def divergences(clean: Tensor, logits: Tensor, following: Tensor, distances: bool) -> Tensor:
    """Return (k, 2) KL from the clean distribution and surprise at the next token, in nats; (k, 4) with both distances.

    The distances are the Euclidean one of the log-probabilities and the total variation of the probabilities.

    Args:
        clean: (k, V) float32 log-probabilities.
        logits: (k, V) float32; overwritten by their log-probabilities.
        following: int64 (k,), the next tokens.
        distances: compute them as well; each costs another pass.
    """
    kl, square, absolute = torch.zeros(3, len(logits), dtype=torch.float64, device=logits.device)
    for logp, logq in _log_probs(clean, logits):
        p, difference = logp.exp(), logp - logq
        if distances:
            square += difference.square().sum(-1)
            absolute += logq.exp().sub_(p).abs_().sum(-1)
        kl += difference.mul_(p).sum(-1)
    extra = [square.sqrt(), absolute / 2] if distances else []
    columns = [kl.float(), surprise(logits, following), *(column.float() for column in extra)]
    return torch.stack(columns, dim=-1)


def kl_divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """Return KL in nats of log-probabilities and logits, (k, V) both: float64 (k,). The logits are overwritten."""
    kl = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for logp, logq in _log_probs(clean, logits):
        kl += (logp - logq).mul_(logp.exp()).sum(-1)
    return kl


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy of log-probabilities (k, V) in nats: float64 (k,)."""
    total = torch.zeros(len(log_probs), dtype=torch.float64, device=log_probs.device)
    for part in _slices(log_probs):
        logp = log_probs[:, part]
        total -= logp.exp().mul_(logp).sum(-1)
    return total


def _log_probs(clean: Tensor, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield slices of both log-probabilities; those of ``logits`` overwrite the logits."""
    top, rest = _normaliser(logits)
    for part in _slices(logits):
        yield clean[:, part], logits[:, part].sub_(top).sub_(rest)


def _normaliser(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logit and the log of the sum of ``exp(logit - largest)``, (k, 1) each.

    Callers subtract them one after the other: their rounded sum would shift every log-probability of a row.
    """
    tops, sums = [], []
    for part in _slices(logits):
        top = logits[:, part].amax(-1, keepdim=True)
        sums.append((logits[:, part] - top).exp_().sum(-1, keepdim=True))
        tops.append(top)
    highest = torch.stack(tops).amax(0)
    total = sum(part.double() * (top - highest).double().exp() for part, top in zip(sums, tops, strict=True))
    return highest, torch.as_tensor(total).log().to(logits.dtype)


def _slices(logits: Tensor) -> Iterator[slice]:
    width = SLICE if logits.device.type == "cpu" else logits.shape[-1]
    return (slice(start, start + width) for start in range(0, logits.shape[-1], width))
