"""Labelled datasets for contrast steering: questions with an answer that shows a trait and one that does not.

One JSON object a line, in one of two forms:

    {"prompt": ..., "positive": ..., "negative": ..., "factors": {"answer_position": "A", "wording": "yes", ...}}
    {"question": ..., "answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}

The second is that of Anthropic's model-written evaluations; its factors are read off the answers and the choices.
Answers follow their prompt as they are written, leading space included. A dataset is checked before it is used, because
an imbalance of labels or factors is what makes contrast methods find something else than the trait.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from sae_bench.errors import LoadError, near

FACTORS = ("answer_position", "wording", "template")
"Factors a dataset may declare, in the order in which they explain variance. Declared before anything is measured."
BALANCE = 0.1
"Counts that should be equal may differ by this share of what they should be, and always by one."
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
        return tuple(sorted({pair.factors[factor] for pair in self.pairs}))


def shifted_path(path: str | os.PathLike[str]) -> Path | None:
    """``NAME_shifted.jsonl`` beside ``NAME.jsonl``; None when there is none."""
    file = Path(path)
    beside = file.with_name(f"{file.stem}_shifted{file.suffix}")
    return beside if beside.is_file() else None


def read_contrast(path: str | os.PathLike[str]) -> ContrastSet:
    """Read and check a dataset; whatever is wrong with it is a one-sentence `LoadError` with the line."""
    file = Path(path).expanduser()
    try:
        raw = file.read_bytes()
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"contrast dataset {file} cannot be read: {error}") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    pairs = tuple(_pair(f"{file}, line {number}", number, line) for number, line in lines)
    if len(pairs) < FEWEST:
        raise LoadError(f"contrast dataset {file} holds {len(pairs)} pairs; at least {FEWEST} are needed")
    declared = tuple(factor for factor in FACTORS if factor in pairs[0].factors)
    found = ContrastSet(str(file), _common(file, pairs, declared), declared, hashlib.sha256(raw).hexdigest())
    _check_distinct(found)
    _check_labels(found)
    _check_factors(found)
    return found


def _pair(where: str, number: int, line: str) -> Pair:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise LoadError(f"{where}: not JSON ({error}); write one object a line") from None
    if not isinstance(record, dict):
        raise LoadError(f"{where}: a {type(record).__name__} where an object belongs")
    written = _WRITTEN[0] in record and "prompt" not in record
    names = _WRITTEN if written else ("prompt", "positive", "negative")
    prompt, positive, negative = (_text(where, record, name) for name in names)
    if positive == negative:
        raise LoadError(f"{where}: both answers are {positive!r}; a pair needs two different ones")
    factors = _written_factors(prompt, positive, negative) if written else _given_factors(where, record)
    return Pair(number, prompt, positive, negative, factors)


def _text(where: str, record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        raise LoadError(f"{where}: no field {name!r}{near(name, record)}")
    value = record[name]
    if not isinstance(value, str) or not value.strip():
        raise LoadError(f"{where}: {name!r} is {value!r}; it must be a text that is not empty")
    return value


def _given_factors(where: str, record: Mapping[str, Any]) -> dict[str, str]:
    factors = record.get("factors", {})
    if not isinstance(factors, dict):
        raise LoadError(f"{where}: 'factors' is {factors!r}; it must be an object")
    for name, level in factors.items():
        if name not in FACTORS:
            raise LoadError(f"{where}: unknown factor {name!r}; known: {', '.join(FACTORS)}")
        if not isinstance(level, str | int) or isinstance(level, bool) or level == "":
            raise LoadError(f"{where}: factor {name!r} is {level!r}; a level is a text or a whole number")
    return {name: str(factors[name]) for name in FACTORS if name in factors}


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


def _common(file: Path, pairs: tuple[Pair, ...], declared: Sequence[str]) -> tuple[Pair, ...]:
    for pair in pairs:
        if tuple(pair.factors) != tuple(declared):
            raise LoadError(
                f"{file}, line {pair.line}: factors are {', '.join(pair.factors) or 'none'}, in the lines before "
                f"{', '.join(declared) or 'none'}; every pair needs a level of every declared factor"
            )
    return pairs


def _check_distinct(found: ContrastSet) -> None:
    first: dict[tuple[str, frozenset[str]], int] = {}
    repeated = []
    for pair in found.pairs:
        key = (pair.prompt.strip(), frozenset((pair.positive.strip(), pair.negative.strip())))
        if key in first:
            repeated.append(f"{pair.line} repeats {first[key]}")
        first.setdefault(key, pair.line)
    if repeated:
        raise LoadError(
            f"contrast dataset {found.path} has {len(repeated)} duplicates (line {repeated[0]}); "
            f"remove them, because repeated questions count as independent ones"
        )


def _unequal(counts: Sequence[int]) -> bool:
    fair = sum(counts) / len(counts)
    return max(counts) - min(counts) > max(1.0, 2 * BALANCE * fair)


def _check_labels(found: ContrastSet) -> None:
    positive = Counter(pair.positive.strip() for pair in found.pairs)
    negative = Counter(pair.negative.strip() for pair in found.pairs)
    for answer in sorted(positive.keys() | negative.keys()):
        if _unequal((positive[answer], negative[answer])):
            raise LoadError(
                f"contrast dataset {found.path} is not balanced: answer {answer!r} is the positive one in "
                f"{positive[answer]} pairs and the negative one in {negative[answer]}; it must be both equally often, "
                f"or steering towards the answer's text looks like steering towards the trait"
            )


def _check_factors(found: ContrastSet) -> None:
    for factor in found.factors:
        counts = Counter(pair.factors[factor] for pair in found.pairs)
        if _unequal(list(counts.values())):
            raise LoadError(
                f"contrast dataset {found.path} is not balanced: factor {factor!r} has {_listed(counts)}; "
                f"every level must occur equally often"
            )
    for one, other in combinations(found.factors, 2):
        cells = Counter((pair.factors[one], pair.factors[other]) for pair in found.pairs)
        for first in found.levels(one):
            for second in found.levels(other):
                if not cells[first, second]:
                    raise LoadError(
                        f"contrast dataset {found.path} confounds two factors: none of {len(found.pairs)} pairs has "
                        f"{one} {first!r} with {other} {second!r}; cross them, or declare one of them only"
                    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{level!r} {count} times" for level, count in sorted(counts.items()))
