"""Write the pinned evaluation corpus, the contrast sets and the circuit's prompts."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from sae_bench.demo.batches import pack
from sae_bench.demo.language.documents import SHORTEST, Document, document
from sae_bench.demo.language.prompts import PersonaQuestion, indirect_object_clusters, persona_questions
from sae_bench.demo.paths import DemoPaths
from sae_bench.model.files import tokenizer_sha256

CORPUS_SEED = 30_000_001
CONTRAST_SEED = 40_000_003
DOCUMENTS = 512
CIRCUIT_SEED = 50_000_017
QUESTIONS = 240
NAME_PAIRS = 24
"Pairs of names for each template of the circuit's prompts."


@cache
def corpus_documents() -> tuple[Document, ...]:
    """Return the documents of the evaluation corpus with their labels, in the order they were drawn."""
    rng = random.Random(CORPUS_SEED)
    documents: list[Document] = []
    while len(documents) < DOCUMENTS:
        item = document(rng)
        if len(item.words) >= SHORTEST:
            documents.append(item)
    return tuple(documents)


def write_corpus(folder: DemoPaths) -> None:
    """Write 512 held-out documents, every one a cluster of its own."""
    documents = list(corpus_documents())
    batch = pack(documents)
    lengths = torch.tensor([len(item.words) for item in documents], dtype=torch.int32)
    tensors = {
        "tokens": batch.tokens.to(torch.int32),  # (docs, pos)
        "lengths": lengths,  # (docs,)
        "cluster": torch.arange(DOCUMENTS, dtype=torch.int32),  # (docs,)
    }
    metadata = {
        "schema": "1",
        "bos": "true",
        "tokenizer_sha256": tokenizer_sha256(folder.model) or "",
        "source": f"Synthetic English from the demo's own generator, seed {CORPUS_SEED}, never used in training.",
    }
    save_file(tensors, folder.corpus, metadata=metadata)


def _write_lines(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(record, sort_keys=True) + "\n" for record in records), encoding="utf-8")


def _write_questions(path: Path, questions: list[PersonaQuestion]) -> None:
    _write_lines(
        path,
        (
            {
                "prompt": item.prompt,
                "positive": item.positive,
                "negative": item.negative,
                "factors": dict(item.factors),
            }
            for item in questions
        ),
    )


def _distinct(n: int, cells: int, draw: Callable[[], list[PersonaQuestion]]) -> list[PersonaQuestion]:
    """Draw n different questions; a repeated one is replaced by another of the same cell, which keeps the balance."""
    questions: dict[str, PersonaQuestion] = {}
    counts = Counter[tuple[str, ...]]()
    while len(questions) < n:
        for item in draw():
            cell = (*item.factors.values(), item.pole)
            if item.prompt not in questions and counts[cell] < n // cells:
                questions[item.prompt] = item
                counts[cell] += 1
    return list(questions.values())


def write_contrast(folder: DemoPaths) -> None:
    """Write the contrast set and its shifted variant, neither with a repeated question."""
    rng = random.Random(CONTRAST_SEED)
    for shifted in (False, True):
        cells = 4 if shifted else 12
        questions = _distinct(QUESTIONS, cells, partial(persona_questions, cells, rng, shifted=shifted))
        _write_questions(folder.contrast_shifted if shifted else folder.contrast, questions)


def write_circuit(folder: DemoPaths) -> None:
    """Write 480 prompts of the indirect-object task: 24 pairs of names in 5 templates, 2 orders and both roles."""
    _write_lines(
        folder.circuit,
        (
            {
                "prompt": item.prompt,
                "answer": item.answer,
                "distractor": item.distractor,
                "factors": {"order": item.order, "template": str(item.template)},
            }
            for item in indirect_object_clusters(NAME_PAIRS, random.Random(CIRCUIT_SEED))
        ),
    )
