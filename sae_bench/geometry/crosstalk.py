"""Interference between features that are active together: what one reads of the others' writing.

On a token with active set A and codes f (decoder norms folded in), feature i in A reads ``sum_j f_j (d_i . d_j)`` of
the others, j != i. Were directions random, each squared cosine would be 1/d on average, and the variance of that sum
``sum_j f_j^2 / d``. Own terms are left out on both sides: random directions give 1 at any number of active features.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ENTRIES = 1 << 23
"Gathered numbers alive at once: 32 MB."


def crosstalk(codes: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Variance that active features read of each other, and what random directions would give.

    Args:
        codes: (tokens, n) codes with decoder norms folded in.
        directions: float32 (n, d) unit directions; a zero row reads and writes nothing.

    Returns float64 (tokens,) ``sum_i sum_{j != i} f_j^2 (d_i . d_j)^2`` and ``sum_i sum_{j != i} f_j^2 / d``.
    """
    tokens, d = len(codes), directions.shape[1]
    active = (codes != 0).sum(1)
    power = codes.square().sum(1, dtype=torch.float64)
    read = torch.zeros(tokens, dtype=torch.float64, device=codes.device)
    order = active.argsort(descending=True)
    start = 0
    while start < tokens and int(active[order[start]]) > 1:
        # Tokens of similar activity go together: what is gathered is as wide as the most active of them.
        width = int(active[order[start]])
        rows = order[start : start + max(1, _ENTRIES // (width * max(width, d)))]
        value, index = codes[rows].abs().topk(width, dim=1)  # (rows, width)
        present = (value > 0).double()
        chosen = directions[index]  # (rows, width, d)
        squares = (chosen @ chosen.transpose(1, 2)).square().double()  # (rows, width, width)
        squares.diagonal(dim1=1, dim2=2).zero_()
        read[rows] = torch.einsum("ti,tij,tj->t", present, squares, value.double().square())
        start += len(rows)
    return read, (active - 1).clamp_min(0) * power / d
