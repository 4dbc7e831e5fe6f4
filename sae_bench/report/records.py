"""The records that a report is made of. What they mean is in the field docstrings; how they are written, in `codec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.measurement import Better, Series

if TYPE_CHECKING:
    pass

Kind: TypeAlias = Literal["ratio", "influence", "exact", "undefined"]
SCHEMA = 1
"Of reports and accepted files. Raised when an older reader would misunderstand a newer file."


@dataclass(frozen=True)
class PerCluster:
    """What a value's uncertainty is made of, in the order of the property's clusters: a ratio's parts or influences."""

    numerator: tuple[float, ...] | None = None
    denominator: tuple[float, ...] | None = None
    influence: tuple[float, ...] | None = None
    second: tuple[float, ...] | None = None
    "Influences by a second clustering."
    overlap: float = 0.0


@dataclass(frozen=True)
class MetricResult:
    """One number and what became of it."""

    value: float | None
    "None where it is undefined or not finite; `reason` says which."
    unit: str
    better: Better
    version: int
    kind: Kind
    "The evidence behind the value."
    se: float | None = None
    n: int | None = None
    "Clusters that it rests on; None for exact values."
    verdict: Verdict | None = None
    "None: reported, not judged."
    exceeds_limit: bool = False
    "The estimate lies beyond its limit, decided or not."
    limit: str = ""
    "As written; several are joined by '; '. In accepted files: what is declared, whatever the run was given."
    limit_from: str = ""
    overruled: Mapping[str, str] = field(default_factory=dict)
    "By source, as `limit` is written: declared limits that others took the place of."
    accepted: float | None = None
    change: float | None = None
    "Since it was accepted, over the clusters that both have."
    interval: tuple[float, float] | None = None
    "Of the change."
    value_interval: tuple[float, float] | None = None
    detectable: float | None = None
    "The smallest true change that would FAIL in 95% of runs."
    needed_documents: int | None = None
    "About how many would decide."
    message: str = ""
    reason: str = ""
    "Why there is no value."
    target: float | None = None
    meaning: str = ""
    noise_free: bool = False
    per_cluster: PerCluster | None = None
    anchor: float | None = None
    "In accepted files: the value that drift is compared with."
    noise: float | None = None
    "What the measurement itself moves by when nothing changes."


@dataclass(frozen=True)
class Acceptance:
    """Who took a property's values as the ones to compare with."""

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
    "What decides whether two results may be compared."
    context_digest: str
    metrics: Mapping[str, MetricResult]
    clusters: tuple[int, ...] = ()
    primary_metric: str = ""
    verdict: Verdict | None = None
    exceeds_limit: bool = False
    lines: tuple[str, ...] = ()
    "The verdict in words; the first line is the whole story."
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
    """Everything found about one SAE."""

    properties: Mapping[str, PropertyResult]
    tags: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    "Of this SAE: where its weights came from, their hash; explains, never decides."
