"""Dataset of a circuit's prompts, each with a right and a wrong answer, as in the task of indirect objects.

One JSON object per line:

    {"prompt": "when Mary and John went to the store , John gave the drink to", "answer": "Mary", "distractor": "John",
     "factors": {"order": "ABBA", "template": "0"}}

Answers follow the prompt as they are written, leading space included, and are one token each. `circuits` measures
whether an effect is there for every order and template, so the reader checks that all of them occur equally often, and
that a name is right as often as it is wrong. Prompts of one template about one pair of names form a cluster, which
contains every order equally often, so that effects of the order are compared within clusters.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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

FACTORS = ("order", "template")
"Factors of a circuit's prompts, both required. They are declared before anything is measured."
FEWEST = 16
"Fewest prompts of a dataset: half of them choose features, half are scored."


@dataclass(frozen=True)
class CircuitPrompt:
    """Prompt with its right and its wrong answer."""

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
    "Factors that all of its prompts share: the template."


@dataclass(frozen=True)
class CircuitSet(LabelledDataset[CircuitPrompt]):
    """Checked dataset of a circuit's prompts."""

    clusters: tuple[PromptCluster, ...]
    "In the order of their first lines."

    @property
    def prompts(self) -> tuple[CircuitPrompt, ...]:
        """Return the prompts in the order of the file."""
        return self.items


def read_circuit(path: str | os.PathLike[str]) -> CircuitSet:
    """Read and check a dataset; a `LoadError` names the first mistake and its line in one sentence."""
    file = read_dataset_file("circuit dataset", path)
    prompts = read_items(file, _read_prompt, FEWEST, "prompts")
    if common_factors(file, prompts) != FACTORS:
        raise LoadError(
            f"{file.path}, line {prompts[0].line}: factors are {', '.join(prompts[0].factors) or 'none'}; "
            f"a circuit's prompts need both of {', '.join(FACTORS)}"
        )
    circuit = CircuitSet(str(file.path), prompts, file.sha256, _prompt_clusters(prompts))
    check_distinct(file, prompts, lambda prompt: prompt.prompt.strip(), "prompts")
    check_balance(file, prompts, FACTORS)
    _check_answers(file, prompts)
    _check_clusters(file, circuit)
    return circuit


def _read_prompt(where: str, line: int, record: Mapping[str, Any]) -> CircuitPrompt:
    prompt, answer, distractor = (read_text(where, record, name) for name in ("prompt", "answer", "distractor"))
    if answer == distractor:
        raise LoadError(f"{where}: answer and distractor are both {answer!r}; they must differ")
    return CircuitPrompt(line, prompt, answer, distractor, read_factor_levels(where, record, FACTORS))


def _prompt_clusters(prompts: tuple[CircuitPrompt, ...]) -> tuple[PromptCluster, ...]:
    groups: dict[tuple[str, frozenset[str]], list[CircuitPrompt]] = {}
    for prompt in prompts:
        key = prompt.factors["template"], frozenset((prompt.answer.strip(), prompt.distractor.strip()))
        groups.setdefault(key, []).append(prompt)
    return tuple(
        PromptCluster(group[0].line, tuple(group), {"template": template}) for (template, _), group in groups.items()
    )


def _check_answers(file: DatasetFile, prompts: tuple[CircuitPrompt, ...]) -> None:
    unbalanced = unbalanced_answer((prompt.answer for prompt in prompts), (prompt.distractor for prompt in prompts))
    if unbalanced is not None:
        name, right, wrong = unbalanced
        raise LoadError(
            f"{file.name} is not balanced: {name!r} is the answer of {right} prompts and the distractor of "
            f"{wrong}; it must be both equally often, or a model that likes the name looks like a circuit"
        )


def _check_clusters(file: DatasetFile, circuit: CircuitSet) -> None:
    orders = circuit.levels("order")
    if len(orders) < 2:
        raise LoadError(
            f"{file.name} has one order only, {orders[0]!r}; write every prompt in two orders, ABBA and BABA"
        )
    for cluster in circuit.clusters:
        counts = Counter(prompt.factors["order"] for prompt in cluster.prompts)
        if len({counts[order] for order in orders}) > 1:
            prompt = cluster.prompts[0]
            listed = ", ".join(f"{order!r} {counts[order]} times" for order in orders)
            raise LoadError(
                f"{file.name}: template {cluster.factors['template']!r} with the names {prompt.answer.strip()!r} and "
                f"{prompt.distractor.strip()!r} (line {prompt.line}) has order {listed}; write each of these prompts "
                f"in every order, or the order cannot be told from the names"
            )
