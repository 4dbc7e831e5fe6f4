"""Verdicts, their exit codes, and the records that carry them from `judge` to a report."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sae_bench.judge.limits import Rule, SourcedLimit
from sae_bench.judge.paired_change import Change
from sae_bench.measure.measurement import Accepted


class Verdict(StrEnum):
    """Outcome of one metric, or of one property of one SAE: the worst of its metrics."""

    PASS = "PASS"
    "The interval lies inside the limit."
    IMPROVED = "IMPROVED"
    "The whole interval is better by more than the limit allows to be worse."
    KNOWN = "KNOWN"
    "A hard limit's FAIL that ``known_failures`` names."
    UNDEFINED = "UNDEFINED"
    "No value here, by definition."
    NEW = "NEW"
    "Nothing accepted yet; hard limits were judged."
    INCONCLUSIVE = "INCONCLUSIVE"
    "The interval straddles the limit; `exceeds_limit` says on which side the estimate is."
    FAIL = "FAIL"
    "The whole interval exceeds the limit."
    INCOMPARABLE = "INCOMPARABLE"
    "The accepted report speaks of another corpus, model, site, dtype, setting or metric version."
    MISSING = "MISSING"
    "Accepted before, not measured now."
    ERROR = "ERROR"
    "NaN, inf, an exception, no documents."


SEVERITY: Mapping[Verdict, int] = {
    verdict: rank
    for rank, verdict in enumerate(
        [
            Verdict.PASS,
            Verdict.IMPROVED,
            Verdict.KNOWN,
            Verdict.UNDEFINED,
            Verdict.NEW,
            Verdict.INCONCLUSIVE,
            Verdict.INCOMPARABLE,
            Verdict.MISSING,
            Verdict.FAIL,
            Verdict.ERROR,
        ]
    )
}
"From harmless to worst. What was found to be worse (FAIL) outranks what could not be judged."

_GREEN = {Verdict.PASS, Verdict.IMPROVED, Verdict.KNOWN, Verdict.UNDEFINED}
_RED = {Verdict.FAIL, Verdict.ERROR}
NOT_JUDGED_EXIT = 11
NOTHING_MEASURED_EXIT = 5


def exit_code(verdict: Verdict, exceeds_limit: bool, strict: bool) -> int:
    """Return the exit code of a session with this one outcome: 0 acceptable, 1 worse or broken, 11 could not be judged.

    Args:
        verdict: the outcome.
        exceeds_limit: for INCONCLUSIVE, True when the estimate exceeds the limit.
        strict: ``--sae-strict``: NEW and INCONCLUSIVE inside the limit count as not judged.
    """
    if verdict in _GREEN:
        return 0
    if verdict in _RED:
        return 1
    if verdict is Verdict.NEW or (verdict is Verdict.INCONCLUSIVE and not exceeds_limit):
        return NOT_JUDGED_EXIT if strict else 0
    return NOT_JUDGED_EXIT


def worst_exit(codes: Iterable[int]) -> int:
    """Return the exit code of a session from those of its items; 5 without any."""
    distinct = set(codes)
    if not distinct:
        return NOTHING_MEASURED_EXIT
    return 1 if 1 in distinct else max(distinct)


@dataclass(frozen=True)
class Drift:
    """A FAIL by the sum of all accepted steps: the value has moved away from its anchor."""

    anchor: float
    "The accepted value that drift is compared with."
    change: float
    "Since the anchor."
    allowed: float | None = None
    "Twice the limit, in the metric's unit."

    def __str__(self) -> str:
        return (
            f"drifted by {self.change:+.3g} since the anchor {self.anchor:.4g}, which exceeds twice the limit; "
            f"accept with --sae-reanchor if this is wanted"
        )


@dataclass(frozen=True)
class DocumentChange:
    """Change of a metric on one document."""

    document: int
    "Its cluster id."
    change: float


@dataclass(frozen=True)
class ChangedDocuments:
    """Documents that a change comes from."""

    count: int
    "Documents that are worse."
    shared: int
    "Documents that both reports have."
    largest: tuple[DocumentChange, ...]
    "The largest changes, in order."
    either_way: bool = False
    "True for a metric with a target: documents that changed are counted, whichever way."

    def __str__(self) -> str:
        names = ", ".join(f"#{each.document} ({each.change:+.2g})" for each in self.largest)
        verb = "changed" if self.either_way else "are worse"
        return f"{self.count} of {self.shared} documents {verb}, most of all {names}"


@dataclass(frozen=True)
class LimitOutcome:
    """One metric against one limit."""

    rule: Rule
    verdict: Verdict
    exceeds_limit: bool = False
    "The estimate is on the wrong side of the limit, whether or not that is decided."
    width: float | None = None
    "The limit in the metric's unit (its bound, for a hard one)."
    interval: tuple[float, float] | None = None
    "Of the change, or of the value for a hard limit; at the error rate that decides."
    detectable: float | None = None
    "The smallest true change that would FAIL in 95% of runs."
    needed_documents: int | None = None
    "Number of documents that would decide, roughly."
    note: str = ""
    "Cause that the numbers do not show, such as why there is no comparison."
    drift: Drift | None = None
    change: Change | None = None
    "Paired with the accepted value."


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One metric, judged. A report's record of the metric is this and its evidence."""

    value: float | None = None
    "None where it is undefined or not finite; `reason` says which."
    unit: str = ""
    se: float | None = None
    verdict: Verdict | None = None
    "None: reported, not judged."
    exceeds_limit: bool = False
    "The estimate exceeds its limit, decided or not."
    limits: tuple[SourcedLimit, ...] = ()
    "Those that decide. In accepted files: the declared ones, whatever the run was given."
    allowed: float | None = None
    "The change that the limit on change allows, in the metric's unit."
    accepted: float | None = None
    "The accepted value, on the documents that both reports have where they can be paired."
    change: float | None = None
    "Since it was accepted, over the clusters that both have."
    interval: tuple[float, float] | None = None
    "Of the change, at the error rate that decides."
    value_interval: tuple[float, float] | None = None
    "Of the value, at the error rate that decides."
    detectable: float | None = None
    "The smallest true change that would FAIL in 95% of runs."
    needed_documents: int | None = None
    "Number of documents that would decide, roughly."
    documents: ChangedDocuments | None = None
    "Documents that a change which did not pass comes from."
    reason: str = ""
    "Cause of a value that is missing."
    detail: str = ""
    "Numbers of this SAE behind `reason`, so that SAEs with one reason can be listed together."
    not_comparable: str = ""
    "Cause of a comparison with the accepted value that is impossible."
    drift: Drift | None = None
    "Set where the drift decides."
    known_reason: str = ""
    "Reason that ``known_failures`` gives for a hard limit of this metric to fail."
    stale_known_failure: bool = False
    "``known_failures`` names this metric, and its hard limits hold: the entry has to be removed."
    message: str = ""
    "One sentence that stands alone."

    @property
    def full_reason(self) -> str:
        """``reason`` with its detail."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Difference:
    """A field of the context in which two results differ."""

    field: str
    "Dotted path."
    now: Any
    accepted: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.now!r} now, {self.accepted!r} accepted"


@dataclass(frozen=True)
class AcceptedProperty:
    """Accepted values of one property and their context."""

    metrics: Mapping[str, Accepted]
    context: Mapping[str, Any]
    "JSON values, nested or flat; decides whether the results may be compared."
    version: int = 1
    weights: str = ""
    "Hash of the SAE's weights, where metrics follow from them alone."


@dataclass(frozen=True, kw_only=True)
class PropertyVerdict:
    """One property of one SAE, judged: the outcome of one pytest item."""

    property: str
    sae: str
    verdict: Verdict
    message: str
    "One sentence: of the metric that decides, or why nothing was judged."
    primary_metric: str = ""
    exceeds_limit: bool = False
    "The estimate that decided exceeds its limit, which is what makes an INCONCLUSIVE fail."
    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    "By metric, in the order of declaration."
    decided_by: str = ""
    "The metric whose verdict is the property's."
    confidence: float = 0.98
    "Of the intervals, two-sided; 0.98 means an error rate of .01 on either side."
    error: str = ""
    "Cause of a property that could not be measured."
    differences: tuple[Difference, ...] = ()
    strict: bool = False
    different_sparsity: bool = False
    outcomes: Mapping[str, tuple[LimitOutcome, ...]] = field(default_factory=dict, repr=False)
    "By metric, one per limit."

    @builtins.property
    def exit_code(self) -> int:
        """Exit code of a session with nothing but this item."""
        return exit_code(self.verdict, self.exceeds_limit, self.strict)

    @builtins.property
    def verdicts(self) -> frozenset[Verdict]:
        """Its own verdict and those of its metrics."""
        judged = (each.verdict for each in self.judgements.values())
        return frozenset({self.verdict, *(verdict for verdict in judged if verdict is not None)})

    @builtins.property
    def fails(self) -> bool:
        """True when the pytest item fails."""
        return self.exit_code != 0
