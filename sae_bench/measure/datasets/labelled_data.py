"""Labelled datasets, one JSON object a line: what every reader checks, each mistake one sentence with its line."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from sae_bench.errors import LoadError, near

BALANCE = 0.1
"Counts that should be equal may differ by this share of what they should be, and always by one."


class Item(Protocol):
    """One line of a dataset, as far as its factors go."""

    @property
    def line(self) -> int:
        """In the file, from 1."""
        ...

    @property
    def factors(self) -> Mapping[str, str]:
        """Level of every declared factor."""
        ...


@dataclass(frozen=True)
class Source:
    """A dataset's file, and how messages call it."""

    what: str
    "``contrast dataset``, ``circuit dataset``"
    file: Path
    sha256: str
    text: str

    @property
    def name(self) -> str:
        """With its kind."""
        return f"{self.what} {self.file}"

    def records(self) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
        """Where each object stands (for messages), its line from 1, and its fields; empty lines are passed over."""
        for number, line in enumerate(self.text.splitlines(), 1):
            if not line.strip():
                continue
            where = f"{self.file}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise LoadError(f"{where}: not JSON ({error}); write one object a line") from None
            if not isinstance(record, dict):
                raise LoadError(f"{where}: a {type(record).__name__} where an object belongs")
            yield where, number, record


def read_source(what: str, path: str | os.PathLike[str]) -> Source:
    """The file of a dataset; one that cannot be read is a `LoadError`."""
    file = Path(path).expanduser()
    try:
        raw = file.read_bytes()
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{what} {file} cannot be read: {error}") from None
    return Source(what, file, hashlib.sha256(raw).hexdigest(), text)


def text_field(where: str, record: Mapping[str, Any], name: str) -> str:
    """A field that must be a text with something in it."""
    if name not in record:
        raise LoadError(f"{where}: no field {name!r}{near(name, record)}")
    value = record[name]
    if not isinstance(value, str) or not value.strip():
        raise LoadError(f"{where}: {name!r} is {value!r}; it must be a text that is not empty")
    return value


def factor_levels(where: str, record: Mapping[str, Any], known: Sequence[str]) -> dict[str, str]:
    """The field ``factors``: levels of some of the ``known`` factors, in the order of those."""
    factors = record.get("factors", {})
    if not isinstance(factors, dict):
        raise LoadError(f"{where}: 'factors' is {factors!r}; it must be an object")
    for name, level in factors.items():
        if name not in known:
            raise LoadError(f"{where}: unknown factor {name!r}; known: {', '.join(known)}")
        if not isinstance(level, str | int) or isinstance(level, bool) or level == "":
            raise LoadError(f"{where}: factor {name!r} is {level!r}; a level is a text or a whole number")
    return {name: str(factors[name]) for name in known if name in factors}


def declared_factors(source: Source, items: Sequence[Item]) -> tuple[str, ...]:
    """The factors that all items have; they must be the same ones."""
    declared = tuple(items[0].factors)
    for item in items:
        if tuple(item.factors) != declared:
            raise LoadError(
                f"{source.file}, line {item.line}: factors are {', '.join(item.factors) or 'none'}, in the lines "
                f"before {', '.join(declared) or 'none'}; every line needs a level of every declared factor"
            )
    return declared


def levels_of(items: Sequence[Item], factor: str) -> tuple[str, ...]:
    """Levels of a factor that occur, sorted."""
    return tuple(sorted({item.factors[factor] for item in items}))


def unequal(counts: Sequence[int]) -> bool:
    """Whether counts that should be equal are not, see `BALANCE`."""
    fair = sum(counts) / len(counts)
    return max(counts) - min(counts) > max(1.0, 2 * BALANCE * fair)


def lopsided(right: Iterable[str], wrong: Iterable[str]) -> tuple[str, int, int] | None:
    """The first answer, by name, that is right and wrong in unequal numbers, with both; None where all are balanced."""
    for_it, against = (Counter(answer.strip() for answer in answers) for answers in (right, wrong))
    for answer in sorted(for_it.keys() | against.keys()):
        if unequal((for_it[answer], against[answer])):
            return answer, for_it[answer], against[answer]
    return None


def check_balance(source: Source, items: Sequence[Item], factors: Sequence[str]) -> None:
    """Every level of a factor must be about as frequent as the others, and no two factors confounded."""
    for factor in factors:
        counts = Counter(item.factors[factor] for item in items)
        if unequal(list(counts.values())):
            listed = ", ".join(f"{level!r} {count} times" for level, count in sorted(counts.items()))
            raise LoadError(
                f"{source.name} is not balanced: factor {factor!r} has {listed}; every level must occur equally often"
            )
    for one, other in combinations(factors, 2):
        cells = Counter((item.factors[one], item.factors[other]) for item in items)
        for first in levels_of(items, one):
            for second in levels_of(items, other):
                if not cells[first, second]:
                    raise LoadError(
                        f"{source.name} confounds two factors: none of {len(items)} lines has {one} {first!r} with "
                        f"{other} {second!r}; cross them, or declare one of them only"
                    )
