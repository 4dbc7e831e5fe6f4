"""Documents of the language as padded tensors of token ids."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from sae_bench.demo.language.documents import Document, document
from sae_bench.demo.language.vocabulary import vocabulary

IGNORED = -100
"""Label that cross-entropy skips."""


@lru_cache(maxsize=1)
def word_ids() -> dict[str, int]:
    """Return the token id of every word: the tokenizer's own table, without loading it."""
    return {word: index for index, word in enumerate(vocabulary())}


@dataclass(frozen=True)
class Batch:
    """Documents padded to one length."""

    tokens: torch.Tensor
    """Token ids (docs, pos), 0 beyond a document's length."""
    labels: torch.Tensor
    """Token ids, `IGNORED` beyond a document's length (docs, pos)."""
    documents: tuple[Document, ...]
    """The documents themselves."""


def pack(documents: list[Document]) -> Batch:
    """Pad documents to the longest of them."""
    ids = word_ids()
    longest = max(len(item.words) for item in documents)
    tokens = torch.zeros(len(documents), longest, dtype=torch.long)
    labels = torch.full_like(tokens, IGNORED)
    for row, item in enumerate(documents):
        line = torch.tensor([ids[word] for word in item.words])
        tokens[row, : len(line)] = line
        labels[row, : len(line)] = line
    return Batch(tokens, labels, tuple(documents))


def batches(rng: random.Random, size: int, pool: int = 8) -> Iterator[Batch]:
    """Yield endless batches of `size` fresh documents.

    `pool` batches are drawn at once and sorted by length, to pad little; their order is random.
    """
    while True:
        documents = sorted((document(rng) for _ in range(size * pool)), key=lambda item: len(item.words))
        groups = [documents[start : start + size] for start in range(0, len(documents), size)]
        rng.shuffle(groups)
        for group in groups:
            yield pack(group)
