"""Labelled datasets for contrast steering: questions with an answer that shows a trait and one that does not.

One JSON object a line, in one of two forms:

    {"prompt": ..., "positive": ..., "negative": ..., "factors": {"answer_position": "A", "wording": "yes", ...}}
    {"question": ..., "answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}

The second is that of Anthropic's model-written evaluations; its factors are read off the answers and the choices.
Answers follow their prompt as they are written, leading space included. A dataset is checked before it is used, because
an imbalance of labels or factors is what makes contrast methods find something else than the trait.
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
    Source,
    check_balance,
    declared_factors,
    factor_levels,
    levels_of,
    lopsided,
    read_source,
    text_field,
)

FACTORS = ("answer_position", "wording", "template")
"Factors a dataset may declare, in the order in which they explain variance. Declared before anything is measured."
FEWEST = 16
"Pairs a dataset needs: half of them choose, half are scored."

_WRITTEN = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
_LETTER = re.compile(r"\s*\(?([A-Z])\)?\s*$")
_YES_NO = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """One question with both answers."""

    line: int
    "In the file, from 1."
    prompt: str
    positive: str
    negative: str
    factors: Mapping[str, str]
    "Level of every declared factor."


@dataclass(frozen=True)
class ContrastSet:
    """A checked dataset."""

    path: str
    pairs: tuple[Pair, ...]
    factors: tuple[str, ...]
    "Declared factors, in the order of `FACTORS`."
    sha256: str
    "Of the file."

    def levels(self, factor: str) -> tuple[str, ...]:
        """Levels of a factor that occur, sorted."""
        return levels_of(self.pairs, factor)


def shifted_path(path: str | os.PathLike[str]) -> Path | None:
    """``NAME_shifted.jsonl`` beside ``NAME.jsonl``; None when there is none."""
    file = Path(path)
    beside = file.with_name(f"{file.stem}_shifted{file.suffix}")
    return beside if beside.is_file() else None


def read_contrast(path: str | os.PathLike[str]) -> ContrastSet:
    """Read and check a dataset; whatever is wrong with it is a one-sentence `LoadError` with the line."""
    source = read_source("contrast dataset", path)
    pairs = tuple(_pair(where, number, record) for where, number, record in source.records())
    if len(pairs) < FEWEST:
        raise LoadError(f"{source.name} holds {len(pairs)} pairs; at least {FEWEST} are needed")
    found = ContrastSet(str(source.file), pairs, declared_factors(source, pairs), source.sha256)
    _check_distinct(source, found)
    _check_labels(source, found)
    check_balance(source, pairs, found.factors)
    return found


def _pair(where: str, number: int, record: Mapping[str, Any]) -> Pair:
    written = _WRITTEN[0] in record and "prompt" not in record
    names = _WRITTEN if written else ("prompt", "positive", "negative")
    prompt, positive, negative = (text_field(where, record, name) for name in names)
    if positive == negative:
        raise LoadError(f"{where}: both answers are {positive!r}; a pair needs two different ones")
    factors = _written_factors(prompt, positive, negative) if written else factor_levels(where, record, FACTORS)
    return Pair(number, prompt, positive, negative, factors)


def _written_factors(question: str, positive: str, negative: str) -> dict[str, str]:
    """Which letter the positive answer has, and whether it says yes or no, itself or in its choice's text."""
    letters = [_LETTER.match(answer) for answer in (positive, negative)]
    said = [_YES_NO.match(answer) for answer in (positive, negative)]
    factors = {}
    if letters[0] and letters[1]:
        factors["answer_position"] = letters[0][1]
        choices = [re.search(rf"\({letter[1]}\)\s*(.*)", question) for letter in letters if letter]
        said = [_YES_NO.match(choice[1]) if choice else None for choice in choices]
    if said[0] and said[1]:
        factors["wording"] = said[0][1].lower()
    return factors


def _check_distinct(source: Source, found: ContrastSet) -> None:
    first: dict[tuple[str, frozenset[str]], int] = {}
    repeated = []
    for pair in found.pairs:
        key = (pair.prompt.strip(), frozenset((pair.positive.strip(), pair.negative.strip())))
        if key in first:
            repeated.append(f"{pair.line} repeats {first[key]}")
        first.setdefault(key, pair.line)
    if repeated:
        raise LoadError(
            f"{source.name} has {len(repeated)} duplicates (line {repeated[0]}); "
            f"remove them, because repeated questions count as independent ones"
        )


def _check_labels(source: Source, found: ContrastSet) -> None:
    uneven = lopsided((pair.positive for pair in found.pairs), (pair.negative for pair in found.pairs))
    if uneven is not None:
        answer, positive, negative = uneven
        raise LoadError(
            f"{source.name} is not balanced: answer {answer!r} is the positive one in "
            f"{positive} pairs and the negative one in {negative}; it must be both equally often, "
            f"or steering towards the answer's text looks like steering towards the trait"
        )
