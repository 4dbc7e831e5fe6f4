"""Two halves of the corpus, split by cluster: one half chooses or fits, the other one is scored.

Clusters alternate, so that chunks of one text are never in both halves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_bench.measure.arrays import Ints


def half_of_documents(cluster: Sequence[int]) -> Ints:
    """Return (documents,) 0 or 1: the parity of each document's cluster, clusters numbered as they first occur."""
    number = {name: index for index, name in enumerate(dict.fromkeys(cluster))}
    return np.array([number[name] % 2 for name in cluster], dtype=np.int64)


def document_halves(cluster: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the documents of even clusters, which choose, and those of odd clusters, which are scored."""
    half = half_of_documents(cluster)
    even, odd = (tuple(np.flatnonzero(half == parity).tolist()) for parity in (0, 1))
    return even, odd
