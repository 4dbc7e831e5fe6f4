"""Accuracy of the model's most likely word where the grammar dictates it, by kind of sentence."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from sae_bench.demo.batches import IGNORED, Batch, pack, word_ids
from sae_bench.demo.language.documents import document
from sae_bench.demo.language.words import TOPICS

HELD_OUT_SEED = 20_000_003
"""Seed of the texts that accuracies and the held-out loss are measured on; training never uses it."""


@dataclass(frozen=True)
class Scores:
    """Loss and accuracies of the model on held-out documents."""

    loss: float
    """Mean cross-entropy, nats a token."""
    entropy_bound: float
    """Information in the grammar's choices, nats a token: an upper bound on the language's entropy."""
    accuracy: dict[str, float]
    """Share of right answers by kind of sentence."""
    answers: dict[str, int]
    """Number of answers by kind of sentence."""


FACTORS = {"day_steps": "step", "letter": "template", "indirect_object": "order"}
"""Kinds that are also counted by one of their labels."""


@lru_cache(maxsize=1)
def _verb_ids() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token ids of all singular and of all plural verb forms, in both cases."""
    pairs = [("is", "are"), *(pair for topic in TOPICS for pair in topic.verbs)]
    singular, plural = (
        [word_ids()[shape] for pair in pairs for shape in (pair[number], pair[number].upper())] for number in (0, 1)
    )
    return torch.tensor(singular), torch.tensor(plural)


def _answer_hits(batch: Batch, logits: torch.Tensor, hits: dict[str, list[bool]]) -> None:
    """Compare the likeliest next tokens with the documents' answers; logits are (docs, pos, vocabulary)."""
    right = logits.argmax(-1)[:, :-1] == batch.tokens[:, 1:]  # (docs, pos - 1)
    for row, item in enumerate(batch.documents):
        for start, sentence in zip(item.starts, item.sentences, strict=True):
            kind = sentence.labels["kind"]
            for answer in sentence.answers:
                hit = bool(right[row, start + answer - 1])
                hits[kind].append(hit)
                if kind in FACTORS:
                    hits[f"{kind}.{FACTORS[kind]}={sentence.labels[FACTORS[kind]]}"].append(hit)


def _agreement_hits(batch: Batch, logits: torch.Tensor, hits: dict[str, list[bool]]) -> None:
    """Test whether the verb's number is likelier than the other, summed over verbs; logits (docs, pos, vocabulary)."""
    singular, plural = _verb_ids()
    odds = logits[..., plural].logsumexp(-1) - logits[..., singular].logsumexp(-1)  # (docs, pos)
    for row, item in enumerate(batch.documents):
        for start, sentence in zip(item.starts, item.sentences, strict=True):
            verbs = [start + int(position) for position in sentence.labels.get("verbs", "").split()]
            for position in verbs:
                is_plural = bool((plural == batch.tokens[row, position]).any())
                hit = bool(odds[row, position - 1] > 0) == is_plural
                hits["agreement"].append(hit)
                if position == verbs[-1] and sentence.labels["between"] != "none":
                    hits["agreement.nested"].append(hit)


@torch.no_grad()
def score(model: Any, documents: int, seed: int = HELD_OUT_SEED, size: int = 64) -> Scores:
    """Measure loss and accuracies on `documents` held-out documents."""
    rng = random.Random(seed)
    hits: dict[str, list[bool]] = defaultdict(list)
    loss, bound, tokens = 0.0, 0.0, 0
    for start in range(0, documents, size):
        batch = pack([document(rng) for _ in range(min(size, documents - start))])
        logits = model(input_ids=batch.tokens).logits  # (docs, pos, vocabulary)
        labels = batch.labels[:, 1:]
        loss += float(
            F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        )
        bound += sum(item.nats for item in batch.documents)
        tokens += int((labels != IGNORED).sum())
        _answer_hits(batch, logits, hits)
        _agreement_hits(batch, logits, hits)
    return Scores(
        loss / tokens,
        bound / tokens,
        {kind: sum(of_kind) / len(of_kind) for kind, of_kind in sorted(hits.items())},
        {kind: len(of_kind) for kind, of_kind in sorted(hits.items())},
    )
