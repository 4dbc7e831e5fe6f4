"""The verdicts, what each does to a pytest item and to the exit code, and the records that carry them."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from sae_bench.judge.limits import Rule
from sae_bench.judge.paired_change import Change
from sae_bench.measure.measurement import Accepted


class Verdict(StrEnum):
    """What became of one metric, or of one property of one SAE. `PropertyVerdict` holds the worst of its metrics."""

    PASS = "PASS"
    "The interval lies inside the limit."
    IMPROVED = "IMPROVED"
    "The interval lies beyond the limit's width on the good side."
    KNOWN = "KNOWN"
    "A hard limit's FAIL that ``known_failures`` names."
    UNDEFINED = "UNDEFINED"
    "No value here, by definition."
    NEW = "NEW"
    "Nothing accepted yet; hard limits were judged."
    INCONCLUSIVE = "INCONCLUSIVE"
    "The interval straddles the limit; whether the estimate lies beyond it is said beside the verdict."
    FAIL = "FAIL"
    "The interval lies beyond the limit."
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


class HasVerdict(Protocol):
    """Whatever ends a pytest item: a `PropertyVerdict`, or a result read from a report."""

    @property
    def verdict(self) -> Verdict:
        """The verdict."""

    @property
    def exceeds_limit(self) -> bool:
        """For INCONCLUSIVE: whether the estimate lies beyond the limit."""


def exit_code(verdict: Verdict, exceeds_limit: bool, strict: bool) -> int:
    """The exit code of a session with this one outcome: 0 acceptable, 1 worse or broken, 11 could not be judged.

    Args:
        verdict: the outcome.
        beyond: for INCONCLUSIVE, whether the estimate lies beyond the limit.
        strict: ``--sae-strict``: NEW and INCONCLUSIVE inside the limit count as not judged.
    """
    if verdict in _GREEN:
        return 0
    if verdict in _RED:
        return 1
    if verdict is Verdict.NEW or (verdict is Verdict.INCONCLUSIVE and not exceeds_limit):
        return NOT_JUDGED_EXIT if strict else 0
    return NOT_JUDGED_EXIT


def session_exit(verdicts: Iterable[HasVerdict | Verdict], strict: bool = False) -> int:
    """The exit code of a session: 5 nothing was measured, 1 any FAIL or ERROR, 11 any that could not be judged, 0.

    A bare INCONCLUSIVE, which does not say where its estimate lies, counts as beyond its limit.
    """
    return worst_exit(
        exit_code(each, True, strict)
        if isinstance(each, Verdict)
        else exit_code(each.verdict, each.exceeds_limit, strict)
        for each in verdicts
    )


def worst_exit(codes: Iterable[int]) -> int:
    """The exit code of a session from those of its items; 5 without any."""
    found = set(codes)
    if not found:
        return NOTHING_MEASURED_EXIT
    return 1 if 1 in found else max(found)


@dataclass(frozen=True)
class LimitOutcome:
    """One metric against one limit."""

    rule: Rule
    verdict: Verdict
    exceeds_limit: bool = False
    "The estimate lies on the wrong side of the limit, whether or not that is decided."
    width: float | None = None
    "What the limit comes to in the metric's unit (its bound, for a hard one)."
    interval: tuple[float, float] | None = None
    "Of the change, or of the value for a hard limit; at the error rate that decides."
    detectable: float | None = None
    "The smallest true change that would FAIL in 95% of runs."
    needed: int | None = None
    "About how many documents would decide."
    note: str = ""
    "What the numbers do not say: why there is no comparison, or that drift decided."


@dataclass(frozen=True)
class Judgement:
    """Everything said about one metric."""

    metric: str
    verdict: Verdict | None
    "None: reported, not judged."
    value: float | None
    "None where it is undefined or not finite."
    unit: str
    se: float | None
    interval: tuple[float, float] | None
    "Of the value, at the error rate that decides."
    limit: str
    "As written; several are joined by '; '; '' without any."
    limit_from: str
    "Who set them: property, registration, ini or command line."
    accepted: float | None
    "On the documents that both reports have, where they can be paired."
    change: float | None
    change_interval: tuple[float, float] | None
    detectable: float | None
    needed_documents: int | None
    exceeds_limit: bool
    message: str
    "One sentence."
    outcomes: tuple[LimitOutcome, ...] = ()
    paired: Change | None = None


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
    """What an accepted report says about one property."""

    metrics: Mapping[str, Accepted]
    context: Mapping[str, Any]
    "JSON values, nested or flat; decides whether the results may be compared."
    version: int = 1
    weights: str = ""
    "Hash of the SAE's weights, where metrics follow from them alone."


@dataclass(frozen=True)
class PropertyVerdict:
    """One property of one SAE, judged: the outcome of one pytest item."""

    property: str
    sae: str
    verdict: Verdict
    exceeds_limit: bool
    "The estimate that decided lies beyond its limit, which is what makes an INCONCLUSIVE fail."
    primary_metric: str
    judgements: tuple[Judgement, ...]
    lines: tuple[str, ...]
    "The first is the whole story; where pytest runs, the last ones are commands to paste."
    confidence: float
    "Of the intervals, two-sided; 0.98 means an error rate of .01 on either side."
    differences: tuple[Difference, ...] = ()
    strict: bool = False
    different_sparsity: bool = False
    by_metric: Mapping[str, Judgement] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_metric", {each.metric: each for each in self.judgements})

    @builtins.property
    def exit_code(self) -> int:
        """Exit code of a session with nothing but this item."""
        return exit_code(self.verdict, self.exceeds_limit, self.strict)

    @builtins.property
    def given(self) -> frozenset[Verdict]:
        """Its own verdict and those of its metrics."""
        return frozenset({self.verdict, *(each.verdict for each in self.judgements if each.verdict is not None)})

    @builtins.property
    def fails(self) -> bool:
        """Whether the pytest item fails."""
        return self.exit_code != 0
