"""Reader of labelled datasets with one JSON object per line, and the checks that all of them share."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from sae_bench.errors import LoadError, near

BALANCE = 0.1
"Counts that should be equal may differ by this share of their common value on each side, and always by one."


class FactorItem(Protocol):
    """Item of a dataset with its line and the levels of its factors."""

    @property
    def line(self) -> int:
        """Return the line in the file, from 1."""
        ...

    @property
    def factors(self) -> Mapping[str, str]:
        """Return the level of every declared factor."""
        ...


T = TypeVar("T", bound=FactorItem)


@dataclass(frozen=True)
class LabelledDataset(Generic[T]):
    """Checked dataset."""

    path: str
    items: tuple[T, ...]
    "In the order of the file."
    sha256: str
    "Of the file."

    def levels(self, factor: str) -> tuple[str, ...]:
        """Return the levels of a factor that occur, sorted."""
        return sorted_levels(self.items, factor)


@dataclass(frozen=True)
class DatasetFile:
    """Text of a dataset's file, with its name in messages."""

    kind: str
    "``contrast dataset``, ``circuit dataset``"
    path: Path
    sha256: str
    text: str

    @property
    def name(self) -> str:
        """Return the kind and the path."""
        return f"{self.kind} {self.path}"

    def records(self) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
        """Yield each object's place (for messages), its line from 1 and its fields; skip empty lines."""
        for number, line in enumerate(self.text.splitlines(), 1):
            if not line.strip():
                continue
            where = f"{self.path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise LoadError(f"{where}: not JSON ({error}); write one object a line") from None
            if not isinstance(record, dict):
                raise LoadError(f"{where}: a {type(record).__name__} where an object belongs")
            yield where, number, record


def read_dataset_file(kind: str, path: str | os.PathLike[str]) -> DatasetFile:
    """Read a dataset's file; one that cannot be read is a `LoadError`."""
    file = Path(path).expanduser()
    try:
        raw = file.read_bytes()
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{kind} {file} cannot be read: {error}") from None
    return DatasetFile(kind, file, hashlib.sha256(raw).hexdigest(), text)


def read_items(
    file: DatasetFile, read: Callable[[str, int, Mapping[str, Any]], T], fewest: int, plural: str
) -> tuple[T, ...]:
    """Read every record with ``read``; fewer than ``fewest`` items are a `LoadError`."""
    items = tuple(read(where, line, record) for where, line, record in file.records())
    if len(items) < fewest:
        raise LoadError(f"{file.name} holds {len(items)} {plural}; at least {fewest} are needed")
    return items


def read_text(where: str, record: Mapping[str, Any], name: str) -> str:
    """Return a field that must be a text that is not empty."""
    if name not in record:
        raise LoadError(f"{where}: no field {name!r}{near(name, record)}")
    value = record[name]
    if not isinstance(value, str) or not value.strip():
        raise LoadError(f"{where}: {name!r} is {value!r}; it must be a text that is not empty")
    return value


def read_factor_levels(where: str, record: Mapping[str, Any], known: Sequence[str]) -> dict[str, str]:
    """Return the field ``factors``: levels of some of the ``known`` factors, in the order of those."""
    factors = record.get("factors", {})
    if not isinstance(factors, dict):
        raise LoadError(f"{where}: 'factors' is {factors!r}; it must be an object")
    for name, level in factors.items():
        if name not in known:
            raise LoadError(f"{where}: unknown factor {name!r}; known: {', '.join(known)}")
        if not isinstance(level, str | int) or isinstance(level, bool) or level == "":
            raise LoadError(f"{where}: factor {name!r} is {level!r}; a level is a text or a whole number")
    return {name: str(factors[name]) for name in known if name in factors}


def common_factors(file: DatasetFile, items: Sequence[FactorItem]) -> tuple[str, ...]:
    """Return the factors of the first item; another item with other factors is a `LoadError`."""
    declared = tuple(items[0].factors)
    for item in items:
        if tuple(item.factors) != declared:
            raise LoadError(
                f"{file.path}, line {item.line}: factors are {', '.join(item.factors) or 'none'}, in the lines "
                f"before {', '.join(declared) or 'none'}; every line needs a level of every declared factor"
            )
    return declared


def sorted_levels(items: Sequence[FactorItem], factor: str) -> tuple[str, ...]:
    """Return the levels of a factor that occur, sorted."""
    return tuple(sorted({item.factors[factor] for item in items}))


def check_distinct(file: DatasetFile, items: Sequence[T], key: Callable[[T], Hashable], plural: str) -> None:
    """Raise a `LoadError` where two items have the same ``key``."""
    first_line: dict[Hashable, int] = {}
    repeated = []
    for item in items:
        line = first_line.setdefault(key(item), item.line)
        if line != item.line:
            repeated.append(f"line {item.line} repeats line {line}")
    if repeated:
        raise LoadError(
            f"{file.name} has {len(repeated)} repeated {plural} ({repeated[0]}); "
            f"remove them, because repeated {plural} count as independent ones"
        )


def are_unequal(counts: Sequence[int]) -> bool:
    """Return whether counts that should be equal differ by more than `BALANCE` allows."""
    fair = sum(counts) / len(counts)
    return max(counts) - min(counts) > max(1.0, 2 * BALANCE * fair)


def unbalanced_answer(right: Iterable[str], wrong: Iterable[str]) -> tuple[str, int, int] | None:
    """Return the first answer, by name, whose counts as right and as wrong differ, with both; None if all agree."""
    as_right, as_wrong = (Counter(answer.strip() for answer in answers) for answers in (right, wrong))
    for answer in sorted(as_right.keys() | as_wrong.keys()):
        if are_unequal((as_right[answer], as_wrong[answer])):
            return answer, as_right[answer], as_wrong[answer]
    return None


def check_balance(file: DatasetFile, items: Sequence[FactorItem], factors: Sequence[str]) -> None:
    """Raise a `LoadError` where levels of a factor are not equally frequent, or two factors are confounded."""
    for factor in factors:
        counts = Counter(item.factors[factor] for item in items)
        if are_unequal(list(counts.values())):
            listed = ", ".join(f"{level!r} {count} times" for level, count in sorted(counts.items()))
            raise LoadError(
                f"{file.name} is not balanced: factor {factor!r} has {listed}; every level must occur equally often"
            )
    for one, other in combinations(factors, 2):
        cells = Counter((item.factors[one], item.factors[other]) for item in items)
        for first in sorted_levels(items, one):
            for second in sorted_levels(items, other):
                if not cells[first, second]:
                    raise LoadError(
                        f"{file.name} confounds two factors: none of {len(items)} lines has {one} {first!r} with "
                        f"{other} {second!r}; cross them, or declare one of them only"
                    )
