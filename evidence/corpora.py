"""Small corpora cut from the demo's."""

from __future__ import annotations

from pathlib import Path

import torch

from sae_bench.demo.paths import BUNDLED
from sae_bench.engine.corpus import from_documents, load_corpus, save_corpus

LENGTH = 48
"Tokens of a document, at most."


def cut_corpus(path: Path, size: int, shuffle: bool = False) -> Path:
    """The first ``size`` documents of the demo's corpus, their tokens shuffled within each if asked for."""
    corpus = load_corpus(str(BUNDLED.corpus))
    documents = [
        row[: min(int(length), LENGTH)].tolist()
        for row, length in zip(corpus.tokens[:size], corpus.lengths, strict=False)
    ]
    if shuffle:
        generator = torch.Generator().manual_seed(20261120)
        documents = [
            [tokens[0], *(tokens[1 + at] for at in torch.randperm(len(tokens) - 1, generator=generator).tolist())]
            for tokens in documents
        ]
    save_corpus(path, from_documents(documents, has_bos=True, source="the demo's"))
    return path
