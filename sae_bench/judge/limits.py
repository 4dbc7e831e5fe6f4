"""Grammar of limits, and the choice of the limit that applies to a metric of an SAE.

kl_gap.kl_sae:5%                    worse by at most 5% of the accepted value (the metric knows its direction)
kl_gap.kl_sae:0.002                 worse by at most 0.002 of its unit
kl_gap.kl_sae:5%+0.001              the sum, for accepted values near 0
kl_gap.kl_sae:2se                   worse by two standard errors of the paired change
kl_gap.kl_sae:1noise                worse by the measured noise of the measurement
kl_gap.kl_level:max:0.25            a hard limit, whatever was accepted; ``min:`` likewise
'steering.*:0.1@gpt2-small/*'       globs for property, metric and SAE
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias, get_args

from sae_bench.errors import UsageError, near
from sae_bench.measure.measurement import Accepted, Metric

Kind: TypeAlias = Literal["change", "max", "min"]
Source: TypeAlias = Literal["unchanged weights", "property", "registration", "ini", "environment", "command line"]
SOURCES: tuple[Source, ...] = get_args(Source)
"From the weakest to the strongest."

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE]-?\d+)?"
_TERM = re.compile(rf"({_NUMBER})(%|se|noise)?")
_HARD = re.compile(rf"(max|min):(-?{_NUMBER})")
_WILD = re.compile(r"[*?[]")
_FORMS = "a limit is 5%, 0.002, 5%+0.001, 2se, 1noise, max:0.25 or min:0.5"


@dataclass(frozen=True)
class Limit:
    """Allowed range of a metric: of kind ``change`` the sum of four terms, else a bound on the value itself."""

    kind: Kind
    percent: float = 0.0
    "Of the accepted value's magnitude."
    absolute: float = 0.0
    "In the metric's unit."
    se: float = 0.0
    "In standard errors of the paired change."
    noise: float = 0.0
    "In measured noises, stored in the accepted report by ``--sae-selfcheck``."
    bound: float = 0.0
    "For ``max`` and ``min``."

    @property
    def relative(self) -> float:
        """`percent` as a fraction."""
        return self.percent / 100

    @property
    def hard(self) -> bool:
        """True when the limit needs no accepted value."""
        return self.kind != "change"

    def __str__(self) -> str:
        if self.hard:
            return f"{self.kind}:{_spell(self.bound)}"
        terms = [(self.percent, "%"), (self.absolute, ""), (self.se, "se"), (self.noise, "noise")]
        return "+".join(_spell(size) + unit for size, unit in terms if size) or "0"


def _spell(number: float) -> str:
    return repr(int(number)) if number == int(number) and abs(number) < 1e15 else repr(number).replace("e+", "e")


@dataclass(frozen=True)
class SourcedLimit(Limit):
    """A limit of one metric and who set it."""

    source: Source = field(kw_only=True)
    "``unchanged weights``: set by `judge` itself, because the accepted weights are measured again."


def parse_limit(text: str) -> Limit:
    """Parse one limit; anything else is a `UsageError` that lists the forms."""
    if match := _HARD.fullmatch(text):
        bound = float(match[2])
        if math.isfinite(bound):
            return Limit("max" if match[1] == "max" else "min", bound=bound)
    terms = [_TERM.fullmatch(term) for term in text.split("+")]
    sums = {"%": 0.0, None: 0.0, "se": 0.0, "noise": 0.0}
    for term in terms:
        if term is None:
            raise UsageError(f"limit {text!r} cannot be read: {_FORMS}")
        sums[term[2]] += float(term[1])
    if not all(math.isfinite(size) for size in sums.values()):
        raise UsageError(f"limit {text!r} is not a finite number: {_FORMS}")
    return Limit("change", percent=sums["%"], absolute=sums[None], se=sums["se"], noise=sums["noise"])


@dataclass(frozen=True)
class Rule:
    """A limit, the metrics and SAEs that it is for, and who set it."""

    property: str
    "Glob."
    metric: str
    "Glob. One with wildcards leaves out metrics that are only reported: those are judged when named in full."
    limit: Limit
    sae: str = "*"
    "Glob."
    source: Source = "property"

    def __str__(self) -> str:
        return f"{self.property}.{self.metric}:{self.limit}" + (f"@{self.sae}" if self.sae != "*" else "")

    def sourced(self) -> SourcedLimit:
        """Return the limit with its source, for a report."""
        size = self.limit
        return SourcedLimit(size.kind, size.percent, size.absolute, size.se, size.noise, size.bound, source=self.source)

    def names(self, property: str, metric: str) -> bool:
        """Return True when the rule's pattern covers ``property.metric``."""
        return fnmatchcase(property, self.property) and fnmatchcase(metric, self.metric)

    def applies(self, property: str, metric: Metric, sae: str) -> bool:
        """Return True when the rule is about this metric of this SAE."""
        if metric.better == "reported" and _WILD.search(self.metric):
            return False
        return self.names(property, metric.name) and fnmatchcase(sae, self.sae)


def parse_rule(text: str, source: Source = "command line") -> Rule:
    """Parse ``property.metric:LIMIT[@sae-glob]``; anything else is a `UsageError`."""
    pattern, colon, rest = text.strip().partition(":")
    if not colon:
        raise UsageError(f"limit {text!r} ({source}) needs a metric and a limit, as in 'kl_gap.kl_sae:5%'")
    property, dot, metric = pattern.strip().partition(".")
    if not (property and dot and metric):
        raise UsageError(
            f"limit {text!r} ({source}) must name property and metric, as in 'kl_gap.kl_sae:5%'; "
            f"'{pattern.strip('.') or '*'}.*' means all judged metrics of a property"
        )
    written, at, sae = rest.rpartition("@") if "@" in rest else (rest, "", "*")
    if at and not sae.strip():
        raise UsageError(f"limit {text!r} ({source}) ends in '@' without an SAE id or glob")
    try:
        limit = parse_limit(written.strip())
    except UsageError as error:
        raise UsageError(f"{error} (in {text!r}, {source})") from None
    return Rule(property, metric, limit, sae.strip(), source)


def check_rules(rules: Iterable[Rule], known: Iterable[str], saes: Iterable[str] | None = None) -> None:
    """Raise a `UsageError` for a rule that names no declared metric, or no SAE.

    Args:
        rules: the rules to check.
        known: every declared metric, as ``property.metric``.
        saes: the registered ids; None leaves them unchecked.
    """
    names = [name.partition(".") for name in known]
    ids = None if saes is None else list(saes)
    for rule in rules:
        if not any(rule.names(property, metric) for property, _, metric in names):
            wanted = f"{rule.property}.{rule.metric}"
            hint = near(wanted, ["".join(name) for name in names])
            raise UsageError(f"limit '{rule}' ({rule.source}) names no metric: {wanted!r} is not declared{hint}")
        if ids is not None and not any(fnmatchcase(sae, rule.sae) for sae in ids):
            hint = near(rule.sae, ids)
            raise UsageError(f"limit '{rule}' ({rule.source}) is for no registered SAE{hint}")


def effective(rules: Sequence[Rule], property: str, metric: Metric, sae: str) -> dict[Kind, Rule]:
    """Return the deciding rule of each kind: of the strongest source, and among equals the last one."""
    chosen: dict[Kind, Rule] = {}
    for rule in rules:
        if rule.applies(property, metric, sae):
            other = chosen.get(rule.limit.kind)
            if other is None or SOURCES.index(rule.source) >= SOURCES.index(other.source):
                chosen[rule.limit.kind] = rule
    return chosen


def judged_by_declaration(rules: Iterable[Rule], property: str, metrics: Iterable[Metric]) -> int:
    """Count the metrics that a property declares to be judged: those with a default limit; at least 1.

    Error rates are divided by this number, so that neither a selection nor a user's limits change a verdict.
    """
    own = [rule for rule in rules if rule.source == "property"]
    return max(sum(any(rule.names(property, metric.name) for rule in own) for metric in metrics), 1)


def check_known_failures(entries: Mapping[str, str], known: Iterable[str], origin: str) -> None:
    """Raise a `UsageError` for a ``known_failures`` entry that names no declared ``property.metric``."""
    names = set(known)
    for entry in entries:
        if entry not in names:
            raise UsageError(f"known_failures[{entry!r}] ({origin}) names no declared metric{near(entry, names)}")


def width(limit: Limit, accepted: float, se: float | None, noise: float | None, name: str) -> float:
    """Return the change that ``limit`` allows, in the metric's unit.

    Args:
        limit: of kind ``change``.
        accepted: the accepted value.
        se: standard error of the paired change; None for exact values.
        noise: measured noise of the metric; None when it was never measured.
        name: ``property.metric``, for the message.

    A percentage of an accepted 0 and a noise that was never measured are `UsageError`.
    """
    if limit.percent and accepted == 0 and not (limit.absolute or limit.se or limit.noise):
        raise UsageError(
            f"limit {name}:{limit} is a percentage of the accepted value, which is 0; add an absolute part, "
            f"as in '{name}:{limit}+0.001'"
        )
    if limit.noise and noise is None:
        raise UsageError(
            f"limit {name}:{limit} needs the measured noise of {name}, which the accepted report lacks; "
            f"measure it with --sae-selfcheck and accept the result"
        )
    return limit.relative * abs(accepted) + limit.absolute + limit.se * (se or 0.0) + limit.noise * (noise or 0.0)


def check_accepted(
    rules: Sequence[Rule], property: str, metrics: Iterable[Metric], sae: str, accepted: Mapping[str, Accepted]
) -> None:
    """Raise a `UsageError`, before anything is measured, for a limit to which these accepted values give no width."""
    for metric in metrics:
        rule = effective(rules, property, metric, sae).get("change")
        if rule is not None and metric.name in accepted and math.isfinite(accepted[metric.name].value):
            entry = accepted[metric.name]
            width(rule.limit, entry.value, None, entry.noise, f"{property}.{metric.name}")
