"""Records that a report is made of. Their fields are documented here, their JSON is in `json`.

Names of `judge` that readers of a report need are exported here too, so that `show` needs nothing below this room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from sae_bench.judge.limits import Limit, SourcedLimit
from sae_bench.judge.messages import number
from sae_bench.judge.verdicts import (
    SEVERITY,
    ChangedDocuments,
    Difference,
    DocumentChange,
    Drift,
    Judgement,
    Verdict,
    exit_code,
)
from sae_bench.measure.measurement import Better, Series

__all__ = [
    "SCHEMA",
    "SEVERITY",
    "Acceptance",
    "Better",
    "ChangedDocuments",
    "Command",
    "Difference",
    "DocumentChange",
    "Drift",
    "Judgement",
    "Kind",
    "Limit",
    "LoadCheck",
    "MetricResult",
    "PerCluster",
    "PropertyResult",
    "Purpose",
    "SAEResult",
    "Series",
    "SourcedLimit",
    "Verdict",
    "exit_code",
    "number",
]

Kind: TypeAlias = Literal["ratio", "influence", "exact", "undefined", "unmeasured"]
Purpose: TypeAlias = Literal["reproduce", "decide", "accept", "if wanted", "if removed", "if lost"]
SCHEMA = 2
"Of reports and accepted files. Raised when an older reader would misunderstand a newer file."


@dataclass(frozen=True)
class PerCluster:
    """Evidence of a value, in the order of the property's clusters: a ratio's parts or influences."""

    numerator: tuple[float, ...] | None = None
    denominator: tuple[float, ...] | None = None
    influence: tuple[float, ...] | None = None
    second: tuple[float, ...] | None = None
    "Influences by a second clustering."
    overlap: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MetricResult(Judgement):
    """One metric: its judgement, its declaration and its evidence."""

    better: Better
    version: int
    kind: Kind
    "The evidence behind the value; ``unmeasured`` where the property returned none."
    n: int | None = None
    "Clusters that it rests on; None for exact values."
    overruled: tuple[SourcedLimit, ...] = ()
    "Declared limits that others took the place of."
    target: float | None = None
    meaning: str = ""
    family: str = ""
    condition: str = ""
    factor: str = ""
    "As `Metric` declares them: they place the metric in a chart."
    noise_free: bool = False
    of_weights: bool = False
    "It follows from the SAE's weights alone."
    per_cluster: PerCluster | None = None
    anchor: float | None = None
    "In accepted files: the value that drift is compared with."
    noise: float | None = None
    "Spread of the measurement when nothing changes."


@dataclass(frozen=True)
class Command:
    """A command that follows from a verdict, or what to write where no command does it."""

    purpose: Purpose
    text: str

    def __str__(self) -> str:
        return f"{self.purpose + ':':12}{self.text}"


@dataclass(frozen=True)
class LoadCheck:
    """One check of an SAE when it was loaded. A failed one may be intended; whoever reads the report has to know."""

    name: str
    ok: bool
    text: str


@dataclass(frozen=True)
class Acceptance:
    """Person, time and reason of accepted values."""

    who: str
    when: str
    "UTC, ISO 8601."
    reason: str
    commit: str | None = None
    "Of the checkout that was measured."
    previous: Mapping[str, float | None] = field(default_factory=dict)
    "The values that these replaced."


@dataclass(frozen=True)
class PropertyResult:
    """One property of one SAE."""

    name: str
    version: int
    context: Mapping[str, Any]
    "Everything that has to agree where two results are compared."
    context_digest: str
    metrics: Mapping[str, MetricResult]
    clusters: tuple[int, ...] = ()
    question: str = ""
    "The property's question, in one sentence."
    primary_metric: str = ""
    verdict: Verdict | None = None
    exceeds_limit: bool = False
    message: str = ""
    "The verdict in one sentence."
    decided_by: str = ""
    "The metric whose verdict is the property's."
    error: str = ""
    "Cause of a property that could not be measured."
    differences: tuple[Difference, ...] = ()
    "Fields in which its context is not the accepted one."
    different_sparsity: bool = False
    "L0 exceeds its limit, so that no metric counts as improved."
    commands: tuple[Command, ...] = ()
    "Commands that follow from the verdict."
    lines: tuple[str, ...] = ()
    "The whole text of the verdict, made from the fields above; to be printed, never to be taken apart."
    confidence: float | None = None
    "Of the intervals, two-sided."
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    weights: str = ""
    "Hash of the SAE's weights, where metrics follow from them alone."
    series: Mapping[str, Series] = field(default_factory=dict)
    acceptance: Acceptance | None = None


@dataclass(frozen=True)
class SAEResult:
    """Results of one SAE, and where it comes from."""

    properties: Mapping[str, PropertyResult]
    tags: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    "Architecture, format and the like: explains, never decides."
    load_checks: tuple[LoadCheck, ...] = ()
