"""Limits that outlive a run: what a property and a registration set, apart from what one command line asked for.

A result says by which limits it was judged. Those need not be the declared ones: ``--sae-limit`` takes the place of
what a property comes with. An accepted file keeps the declared ones alone, so that its values are judged by them later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from sae_bench.judge.judge import SAME_WEIGHTS
from sae_bench.judge.limits import Kind, Rule, Source, effective, parse_limit, parse_rule
from sae_bench.measure.measurement import Metric
from sae_bench.report.convert import metrics_from, rules_from
from sae_bench.report.records import PropertyResult

DECLARED: tuple[Source, ...] = ("property", "registration")
"Sources whose limits belong to an SAE, whatever a run is given."


@dataclass(frozen=True)
class DeclaredLimit:
    """The limits of one metric, in the words of `MetricResult`."""

    limit: str = ""
    limit_from: str = ""
    "One source where all limits have the same, else one for each."
    overruled: Mapping[str, str] = field(default_factory=dict)


def standing(rules: Sequence[Rule], property: str, metric: Metric, sae: str) -> DeclaredLimit:
    """Which of ``rules`` decide about a metric, and which declared ones they took the place of."""
    deciding = effective(rules, property, metric, sae)
    overruled: dict[str, str] = {}
    for source in DECLARED:
        own = effective([rule for rule in rules if rule.source == source], property, metric, sae)
        if lost := [rule for kind, rule in own.items() if deciding[kind].source != source]:
            overruled[source] = _spelled(lost)
    sources = [rule.source for rule in deciding.values()]
    if len(set(sources)) == 1:
        sources = sources[:1]
    return DeclaredLimit(_spelled(deciding.values()), "; ".join(sources), overruled)


def _spelled(rules: Iterable[Rule]) -> str:
    return "; ".join(str(rule.limit) for rule in rules)


def with_overruled(result: PropertyResult, rules: Sequence[Rule], sae: str) -> PropertyResult:
    """``result`` with what is declared where its run was given another limit.

    Args:
        result: of a run.
        rules: all that it was judged by.
        sae: whose result it is.
    """
    metrics = dict(result.metrics)
    for metric in metrics_from(result):
        held, said = metrics[metric.name], standing(rules, result.name, metric, sae)
        # A limit that follows from the weights being the accepted ones is no rule of anybody.
        limit_from = said.limit_from if said.limit == held.limit else held.limit_from
        metrics[metric.name] = replace(held, limit_from=limit_from, overruled=said.overruled)
    return replace(result, metrics=metrics)


def rules_of(result: PropertyResult) -> list[Rule]:
    """Every limit that a result carries: those that decide, and the declared ones that were overruled."""
    lost = [
        parse_rule(f"{result.name}.{metric}:{limit}", source)
        for metric, each in result.metrics.items()
        for source in DECLARED
        for limit in each.overruled.get(source, "").split("; ")
        if limit
    ]
    return [*rules_from(result), *lost]


def declared_limits(result: PropertyResult) -> dict[str, DeclaredLimit]:
    """What a property and a registration say about each metric of a result."""
    rules = [rule for rule in rules_of(result) if rule.source in DECLARED and not for_same_weights(rule)]
    # In an order that does not depend on what was overruled: files are made to be compared line by line.
    rules.sort(key=lambda rule: get_args(Kind).index(rule.limit.kind))
    return {metric.name: standing(rules, result.name, metric, "") for metric in metrics_from(result)}


def for_same_weights(rule: Rule) -> bool:
    """Whether nobody set a limit, but `judge`: on what follows from weights that are the accepted ones."""
    return rule.source == "property" and rule.limit == parse_limit(SAME_WEIGHTS)
