"""Matches between two dictionaries of one space: features of one that the other one has as well.

MMCS(A, B) = mean over a of the largest cosine with a direction of B (Sharkey et al. 2022); it is not symmetric.
One-to-one matches: the largest set of pairs, no feature in two of them, whose cosine reaches `SAME_COSINE` (the
threshold of Paulo and Belrose 2025, who match by total cosine; the size of the largest set is as exact and needs no
n x n matrix).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from sae_bench.measure.geometry.neighbours import BLOCK, finite_norms

SAME_COSINE = 0.7
"Cosine from which two features of different dictionaries count as the same one."
MOST_PAIRS = 50_000_000
"Most pairs that are matched: with more, dictionaries are alike everywhere and the pairs would not fit in memory."


@dataclass(frozen=True, eq=False)
class Matching:
    """Largest cosines of directions of A (n) with directions of B (m), and the close pairs."""

    best_of_a: Tensor
    "float32 (n,), largest cosine of each direction of A with one of B."
    match_of_a: Tensor
    "int64 (n,), the row of B with that cosine."
    best_of_b: Tensor
    "float32 (m,), largest cosine of each direction of B with one of A."
    pairs: tuple[Tensor, Tensor] | None
    "int64, rows of A and of B whose cosine reaches `SAME_COSINE`; None where there are more than `MOST_PAIRS`."


def match_directions(a: Tensor, b: Tensor) -> Matching:
    """Return largest cosines both ways and all close pairs of decoder rows (n, d) and (m, d); none may be zero."""
    a, b = _unit(a), _unit(b)
    best_a = torch.full((len(a),), -torch.inf, device=a.device)
    best_b = torch.full((len(b),), -torch.inf, device=a.device)
    match_a = torch.zeros(len(a), dtype=torch.int64, device=a.device)
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    pairs = 0
    for i in range(0, len(a), BLOCK):
        for j in range(0, len(b), BLOCK):
            block = a[i : i + BLOCK] @ b[j : j + BLOCK].T
            nearest, index = block.max(1)
            match_a[i : i + BLOCK] = torch.where(nearest > best_a[i : i + BLOCK], index + j, match_a[i : i + BLOCK])
            best_a[i : i + BLOCK] = torch.maximum(best_a[i : i + BLOCK], nearest)
            best_b[j : j + BLOCK] = torch.maximum(best_b[j : j + BLOCK], block.amax(0))
            close = (block >= SAME_COSINE).nonzero(as_tuple=True)
            pairs += len(close[0])
            if pairs <= MOST_PAIRS:
                rows.append(close[0] + i)
                columns.append(close[1] + j)
    close_pairs = (torch.cat(rows), torch.cat(columns)) if pairs <= MOST_PAIRS else None
    return Matching(best_a, match_a, best_b, close_pairs)


def row_cosines(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return float64 (pairs,) cosine of row ``rows[p]`` of ``a`` with row ``columns[p]`` of ``b``; 0 for a zero row."""
    parts = [torch.empty(0, dtype=torch.float64, device=a.device)]
    for own, other in zip(torch.split(rows, 8 * BLOCK), torch.split(columns, 8 * BLOCK), strict=True):
        left, right = a.detach()[own].double(), b.detach()[other].double()
        parts.append(torch.nn.functional.cosine_similarity(left, right, dim=1, eps=0.0).nan_to_num(0.0))
    return torch.cat(parts)


def largest_matching(rows: Tensor, columns: Tensor, n: int, m: int) -> int:
    """Return the size of the largest one-to-one matching that uses only the given pairs of n rows and m columns."""
    graph = csr_array((np.ones(len(rows), dtype=np.int8), (rows.cpu().numpy(), columns.cpu().numpy())), shape=(n, m))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def _unit(rows: Tensor) -> Tensor:
    return (rows.detach().double() / finite_norms(rows)[:, None]).float()
