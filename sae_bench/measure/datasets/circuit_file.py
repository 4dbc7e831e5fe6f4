"""Prompts of a circuit with two possible answers, as of indirect objects: which name is right, which is not.

One JSON object a line:

    {"prompt": "when Mary and John went to the store , John gave the drink to", "answer": "Mary", "distractor": "John",
     "factors": {"order": "ABBA", "template": "0"}}

Answers follow the prompt as they are written, leading space included, and are one token each. A dataset is checked
before it is used: what is asked is whether an effect holds for every order and template, so all of them must be there
equally often, and a name must be right as often as it is wrong. Prompts of one template about one pair of names are a
cluster, which holds every order equally often: effects of the order are then compared within clusters.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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

FACTORS = ("order", "template")
"The factors of a circuit's prompts, both needed. Declared before anything is measured."
FEWEST = 16
"Prompts a dataset needs: half of them choose latents, half are scored."


@dataclass(frozen=True)
class CircuitPrompt:
    """One prompt with its right and its wrong answer."""

    line: int
    "In the file, from 1."
    prompt: str
    answer: str
    distractor: str
    factors: Mapping[str, str]
    "Level of every factor."


@dataclass(frozen=True)
class PromptCluster:
    """All prompts of one template about one pair of names, in every order."""

    id: int
    "The line of its first prompt."
    prompts: tuple[CircuitPrompt, ...]
    factors: Mapping[str, str]
    "What all of its prompts share: the template."


@dataclass(frozen=True)
class CircuitSet:
    """A checked dataset."""

    path: str
    prompts: tuple[CircuitPrompt, ...]
    clusters: tuple[PromptCluster, ...]
    "In the order of their first lines."
    sha256: str
    "Of the file."

    def levels(self, factor: str) -> tuple[str, ...]:
        """Levels of a factor that occur, sorted."""
        return levels_of(self.prompts, factor)


def read_circuit(path: str | os.PathLike[str]) -> CircuitSet:
    """Read and check a dataset; whatever is wrong with it is a one-sentence `LoadError` with the line."""
    source = read_source("circuit dataset", path)
    prompts = tuple(_prompt(where, number, record) for where, number, record in source.records())
    if len(prompts) < FEWEST:
        raise LoadError(f"{source.name} holds {len(prompts)} prompts; at least {FEWEST} are needed")
    if declared_factors(source, prompts) != FACTORS:
        raise LoadError(
            f"{source.file}, line {prompts[0].line}: factors are {', '.join(prompts[0].factors) or 'none'}; "
            f"a circuit's prompts need both of {', '.join(FACTORS)}"
        )
    found = CircuitSet(str(source.file), prompts, _clusters(prompts), source.sha256)
    _check_distinct(source, found)
    check_balance(source, prompts, FACTORS)
    _check_answers(source, found)
    _check_clusters(source, found)
    return found


def _prompt(where: str, number: int, record: Mapping[str, Any]) -> CircuitPrompt:
    prompt, answer, distractor = (text_field(where, record, name) for name in ("prompt", "answer", "distractor"))
    if answer == distractor:
        raise LoadError(f"{where}: answer and distractor are both {answer!r}; they must differ")
    return CircuitPrompt(number, prompt, answer, distractor, factor_levels(where, record, FACTORS))


def _clusters(prompts: tuple[CircuitPrompt, ...]) -> tuple[PromptCluster, ...]:
    groups: dict[tuple[str, frozenset[str]], list[CircuitPrompt]] = {}
    for prompt in prompts:
        key = prompt.factors["template"], frozenset((prompt.answer.strip(), prompt.distractor.strip()))
        groups.setdefault(key, []).append(prompt)
    return tuple(
        PromptCluster(group[0].line, tuple(group), {"template": template}) for (template, _), group in groups.items()
    )


def _check_distinct(source: Source, found: CircuitSet) -> None:
    first: dict[str, int] = {}
    for prompt in found.prompts:
        text = prompt.prompt.strip()
        if text in first:
            raise LoadError(
                f"{source.name}: line {prompt.line} repeats the prompt of line {first[text]}; remove it, because "
                f"repeated prompts count as independent ones"
            )
        first[text] = prompt.line


def _check_answers(source: Source, found: CircuitSet) -> None:
    uneven = lopsided((prompt.answer for prompt in found.prompts), (prompt.distractor for prompt in found.prompts))
    if uneven is not None:
        name, right, wrong = uneven
        raise LoadError(
            f"{source.name} is not balanced: {name!r} is the answer of {right} prompts and the distractor of "
            f"{wrong}; it must be both equally often, or a model that likes the name looks like a circuit"
        )


def _check_clusters(source: Source, found: CircuitSet) -> None:
    orders = found.levels("order")
    if len(orders) < 2:
        raise LoadError(
            f"{source.name} has one order only, {orders[0]!r}; write every prompt in two orders, ABBA and BABA"
        )
    for cluster in found.clusters:
        counts = Counter(prompt.factors["order"] for prompt in cluster.prompts)
        if len({counts[order] for order in orders}) > 1:
            prompt = cluster.prompts[0]
            listed = ", ".join(f"{order!r} {counts[order]} times" for order in orders)
            raise LoadError(
                f"{source.name}: template {cluster.factors['template']!r} with the names {prompt.answer.strip()!r} and "
                f"{prompt.distractor.strip()!r} (line {prompt.line}) has order {listed}; write each of these prompts "
                f"in every order, or the order cannot be told from the names"
            )
