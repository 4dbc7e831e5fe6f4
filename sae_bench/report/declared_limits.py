"""Declared limits: set by a property or a registration, whatever one command line asked for.

A result holds the limits that judged it. Those need not be the declared ones: ``--sae-limit`` takes the place of a
property's default. An accepted file keeps the declared ones alone, so that its values are judged by them later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from sae_bench.judge.limits import Kind, Rule, Source, SourcedLimit, effective
from sae_bench.measure.measurement import Metric
from sae_bench.report.convert import declaration_from, rules_from
from sae_bench.report.records import PropertyResult

DECLARED: tuple[Source, ...] = ("property", "registration")
"Sources whose limits belong to an SAE, whatever a run is given."


@dataclass(frozen=True)
class DeclaredLimits:
    """Limits of one metric: those that decide, and the declared ones that stronger sources overrule."""

    deciding: tuple[SourcedLimit, ...] = ()
    overruled: tuple[SourcedLimit, ...] = ()


def limits_by_source(rules: Sequence[Rule], property: str, metric: Metric, sae: str) -> DeclaredLimits:
    """Return the limits among ``rules`` that decide about a metric, and the declared ones that they overrule."""
    deciding = effective(rules, property, metric, sae)
    overruled = [
        rule
        for source in DECLARED
        for kind, rule in effective([rule for rule in rules if rule.source == source], property, metric, sae).items()
        if deciding[kind].source != source
    ]
    return DeclaredLimits(
        tuple(rule.sourced() for rule in deciding.values()), tuple(rule.sourced() for rule in overruled)
    )


def with_overruled(result: PropertyResult, rules: Sequence[Rule], sae: str) -> PropertyResult:
    """Return ``result`` with the declared limits where its run was given others.

    Args:
        result: of a run.
        rules: all that it was judged by.
        sae: whose result it is.
    """
    metrics = dict(result.metrics)
    for metric in declaration_from(result).metrics:
        overruled = limits_by_source(rules, result.name, metric, sae).overruled
        metrics[metric.name] = replace(metrics[metric.name], overruled=overruled)
    return replace(result, metrics=metrics)


def rules_of(result: PropertyResult) -> list[Rule]:
    """Return every limit that a result carries: those that decide, and the declared ones that were overruled."""
    overruled = [
        Rule(result.name, metric, limit, source=limit.source)
        for metric, each in result.metrics.items()
        for limit in each.overruled
    ]
    return [*(rule for rule in rules_from(result) if rule.source != "unchanged weights"), *overruled]


def declared_limits(result: PropertyResult) -> Mapping[str, DeclaredLimits]:
    """Return the limits that a property and a registration declare for each metric of a result."""
    rules = [rule for rule in rules_of(result) if rule.source in DECLARED]
    # In an order that does not depend on what was overruled: files are made to be compared line by line.
    rules.sort(key=lambda rule: get_args(Kind).index(rule.limit.kind))
    metrics = declaration_from(result).metrics
    return {metric.name: limits_by_source(rules, result.name, metric, "") for metric in metrics}
