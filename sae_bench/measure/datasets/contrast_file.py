"""Dataset for contrast steering: questions with an answer that shows a trait and one that does not.

One JSON object per line, in one of two forms:

    {"prompt": ..., "positive": ..., "negative": ..., "factors": {"answer_position": "A", "wording": "yes", ...}}
    {"question": ..., "answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}

The second is that of Anthropic's model-written evaluations; its factors are derived from the answers and the choices.
Answers follow their prompt as they are written, leading space included. The reader checks the balance of labels and
factors, because an imbalance makes contrast methods detect something else than the trait.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_bench.errors import LoadError
from sae_bench.measure.datasets.labelled_data import (
    DatasetFile,
    LabelledDataset,
    check_balance,
    check_distinct,
    common_factors,
    read_dataset_file,
    read_factor_levels,
    read_items,
    read_text,
    unbalanced_answer,
)

FACTORS = ("answer_position", "wording", "template")
"Factors that a dataset may declare, in the order in which they explain variance, before anything is measured."
FEWEST = 16
"Fewest pairs of a dataset: half of them choose directions, half are scored."

_EVALUATION_FIELDS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
_LETTER = re.compile(r"\s*\(?([A-Z])\)?\s*$")
_YES_NO = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """Question with both answers."""

    line: int
    "In the file, from 1."
    prompt: str
    positive: str
    negative: str
    factors: Mapping[str, str]
    "Level of every declared factor."


@dataclass(frozen=True)
class ContrastSet(LabelledDataset[Pair]):
    """Checked dataset of contrast questions."""

    factors: tuple[str, ...]
    "Declared factors, in the order of `FACTORS`."

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Return the questions with their answers in the order of the file."""
        return self.items


def shifted_path(path: str | os.PathLike[str]) -> Path | None:
    """Return the path of the shifted variant, ``NAME_shifted.jsonl`` next to ``NAME.jsonl``; None without one."""
    file = Path(path)
    variant = file.with_name(f"{file.stem}_shifted{file.suffix}")
    return variant if variant.is_file() else None


def read_contrast(path: str | os.PathLike[str]) -> ContrastSet:
    """Read and check a dataset; a `LoadError` names the first mistake and its line in one sentence."""
    file = read_dataset_file("contrast dataset", path)
    pairs = read_items(file, _read_pair, FEWEST, "pairs")
    contrast = ContrastSet(str(file.path), pairs, file.sha256, common_factors(file, pairs))
    check_distinct(file, pairs, _pair_key, "questions")
    _check_labels(file, pairs)
    check_balance(file, pairs, contrast.factors)
    return contrast


def _read_pair(where: str, line: int, record: Mapping[str, Any]) -> Pair:
    evaluation = _EVALUATION_FIELDS[0] in record and "prompt" not in record
    names = _EVALUATION_FIELDS if evaluation else ("prompt", "positive", "negative")
    prompt, positive, negative = (read_text(where, record, name) for name in names)
    if positive == negative:
        raise LoadError(f"{where}: both answers are {positive!r}; a pair needs two different ones")
    factors = (
        _evaluation_factors(prompt, positive, negative) if evaluation else read_factor_levels(where, record, FACTORS)
    )
    return Pair(line, prompt, positive, negative, factors)


def _evaluation_factors(question: str, positive: str, negative: str) -> dict[str, str]:
    """Derive the positive answer's letter, and its yes or no, from the answers or from the choices in the question."""
    letters = [_LETTER.match(answer) for answer in (positive, negative)]
    wording = [_YES_NO.match(answer) for answer in (positive, negative)]
    factors = {}
    if letters[0] and letters[1]:
        factors["answer_position"] = letters[0][1]
        choices = [re.search(rf"\({letter[1]}\)\s*(.*)", question) for letter in letters if letter]
        wording = [_YES_NO.match(choice[1]) if choice else None for choice in choices]
    if wording[0] and wording[1]:
        factors["wording"] = wording[0][1].lower()
    return factors


def _pair_key(pair: Pair) -> tuple[str, frozenset[str]]:
    """Return the texts that make two pairs the same question, whichever answer is the positive one."""
    return pair.prompt.strip(), frozenset((pair.positive.strip(), pair.negative.strip()))


def _check_labels(file: DatasetFile, pairs: tuple[Pair, ...]) -> None:
    unbalanced = unbalanced_answer((pair.positive for pair in pairs), (pair.negative for pair in pairs))
    if unbalanced is not None:
        answer, positive, negative = unbalanced
        raise LoadError(
            f"{file.name} is not balanced: answer {answer!r} is the positive one in "
            f"{positive} pairs and the negative one in {negative}; it must be both equally often, "
            f"or steering towards the answer's text looks like steering towards the trait"
        )
