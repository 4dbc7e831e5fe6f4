"""Interference between features that are active together: what each one reads of the others' contributions.

On a token with active set A and codes f (decoder norms folded in), feature i in A reads ``sum_j f_j (d_i . d_j)`` of
the others, j != i. Were directions random, each squared cosine would be 1/d on average, and the variance of that sum
``sum_j f_j^2 / d``. Own terms are left out on both sides: random directions give 1 at any number of active features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_bench.sae.sparse_codes import SparseCodes

_ENTRIES = 1 << 23
"Gathered numbers alive at once: 32 MB."


def crosstalk(codes: SparseCodes, directions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance that active features read of each other, and the one that random directions would give.

    Args:
        codes: with decoder norms folded in.
        directions: float32 (n, d) unit directions; a zero row reads and writes nothing.
        tokens: int64 (m,), the tokens to measure.

    Returns float64 (m,) ``sum_i sum_{j != i} f_j^2 (d_i . d_j)^2`` and ``sum_i sum_{j != i} f_j^2 / d``.
    """
    d = directions.shape[1]
    counts = torch.bincount(codes.token, minlength=codes.tokens)
    active, first = counts[tokens], codes.token_start[tokens]
    read = torch.zeros(len(tokens), dtype=torch.float64, device=directions.device)
    order = active.argsort(descending=True)
    start = 0
    while start < len(tokens) and int(active[order[start]]) > 1:
        # Tokens of similar activity go together: what is gathered is as wide as the most active of them.
        width = int(active[order[start]])
        rows = order[start : start + max(1, _ENTRIES // (width * max(width, d)))]
        slot = torch.arange(width, device=directions.device)
        present = slot < active[rows, None]  # (rows, width)
        at = (first[rows, None] + slot).clamp(max=len(codes.value) - 1)
        chosen = directions[codes.feature[at]]  # (rows, width, d)
        squares = (chosen @ chosen.transpose(1, 2)).square().double()  # (rows, width, width)
        squares.diagonal(dim1=1, dim2=2).zero_()
        strength = codes.value[at].double().square() * present
        read[rows] = torch.einsum("ti,tij,tj->t", present.double(), squares, strength)
        start += len(rows)
    return read, (active - 1).clamp_min(0) * code_power(codes)[tokens] / d


def code_power(codes: SparseCodes) -> Tensor:
    """Return float64 (tokens,) sum of squared codes."""
    square = codes.value.double().square()
    return square.new_zeros(codes.tokens).index_add_(0, codes.token, square)
