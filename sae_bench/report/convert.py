"""Convert a measurement and its verdict to a result that can be written, and back to what `judge` takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_bench.judge.limits import Rule
from sae_bench.judge.messages import verdict_lines
from sae_bench.judge.verdicts import AcceptedProperty, Judgement, PropertyVerdict
from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import (
    Accepted,
    Estimate,
    Exact,
    Influence,
    Measurement,
    Metric,
    Ratio,
    Series,
    Summary,
    Undefined,
)
from sae_bench.report.json import plain
from sae_bench.report.records import Command, Kind, MetricResult, PerCluster, PropertyResult

if TYPE_CHECKING:
    from sae_bench.measure.properties import Property

_KINDS: dict[type, Kind] = {
    Ratio: "ratio",
    Influence: "influence",
    Summary: "influence",
    Exact: "exact",
    Undefined: "undefined",
}


def context_digest(context: Mapping[str, Any]) -> str:
    """Return ``sha256:...`` of the context's canonical JSON; equal contexts have equal digests."""
    text = json.dumps(plain(context), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def property_context(base: Mapping[str, Any], measurement: Measurement | str) -> dict[str, Any]:
    """Return what decides comparability of one property: the run's part and the settings of the measurement."""
    settings = measurement.settings if isinstance(measurement, Measurement) else {}
    context: dict[str, Any] = plain({**base, "settings": settings})
    return context


@dataclass(frozen=True)
class PropertyDeclaration:
    """Declaration of a property, as far as a report needs it."""

    name: str
    version: int = 1
    metrics: Sequence[Metric] = ()
    primary_metric: str = ""
    question: str = ""

    @classmethod
    def of(cls, declared: Property) -> PropertyDeclaration:
        """Return the declaration of a property that can be measured."""
        return cls(declared.name, declared.version, declared.metrics, declared.primary_metric, declared.question)


def property_result(
    measurement: Measurement | str,
    verdict: PropertyVerdict,
    declared: PropertyDeclaration,
    *,
    context: Mapping[str, Any],
    seconds: float | None = None,
    notes: Sequence[str] = (),
    accepted: AcceptedProperty | None = None,
    commands: Sequence[Command] = (),
) -> PropertyResult:
    """Return the record of one property of one SAE.

    Args:
        measurement: the measured values, or the text of the error.
        verdict: of `judge`.
        declared: the property.
        context: what was given to `judge`.
        seconds: wall time of the measurement.
        notes: sentences on top of those of the measurement.
        accepted: what was compared with; its anchors and noises are shown with the new values.
        commands: what to do about the verdict.
    """
    measured = measurement if isinstance(measurement, Measurement) else Measurement({})
    metrics = {metric.name: metric for metric in declared.metrics}
    entries = accepted.metrics if accepted is not None else {}
    results = {}
    for name, judged in verdict.judgements.items():
        metric = metrics.get(name) or Metric(name, "", "reported", "")
        results[name] = _metric_result(metric, measured.estimates.get(name), judged, entries.get(name))
    return PropertyResult(
        name=declared.name,
        version=declared.version,
        context=plain(context),
        context_digest=context_digest(context),
        metrics=dict(sorted(results.items())),
        clusters=tuple(int(cluster) for cluster in measured.clusters),
        question=declared.question,
        primary_metric=verdict.primary_metric,
        verdict=verdict.verdict,
        exceeds_limit=verdict.exceeds_limit,
        message=verdict.message,
        decided_by=verdict.decided_by,
        error=verdict.error,
        differences=tuple(
            replace(each, now=plain(each.now), accepted=plain(each.accepted)) for each in verdict.differences
        ),
        different_sparsity=verdict.different_sparsity,
        commands=tuple(commands),
        lines=(*verdict_lines(verdict), *(f"  {command}" for command in commands)),
        confidence=verdict.confidence,
        seconds=seconds,
        notes=(*measured.notes, *notes),
        weights=measured.weights,
        series={name: _plain_series(each) for name, each in measured.series.items()},
    )


def _plain_series(series: Series) -> Series:
    """Return a series whose columns hold JSON values, as they are read from a file."""
    return replace(series, columns=plain(series.columns))


def _metric_result(
    metric: Metric, estimate: Estimate | None, judged: Judgement, accepted: Accepted | None
) -> MetricResult:
    evidence = estimate if judged.value is not None else None
    return MetricResult(
        **{each.name: getattr(judged, each.name) for each in fields(Judgement)},
        better=metric.better,
        version=metric.version,
        kind=_KINDS[type(estimate)] if estimate is not None else "unmeasured",
        n=_rows(evidence) if evidence is not None else None,
        target=metric.target,
        meaning=metric.meaning,
        family=metric.family,
        condition=metric.condition,
        factor=metric.factor,
        noise_free=metric.noise_free,
        of_weights=metric.of_weights,
        per_cluster=_evidence(evidence) if evidence is not None else None,
        anchor=accepted.anchor if accepted else None,
        noise=accepted.noise if accepted else None,
    )


def _rows(estimate: Estimate) -> int | None:
    if isinstance(estimate, Summary):
        return estimate.clusters
    return len(estimate.influence) if isinstance(estimate, Ratio | Influence) else None


def _tuple(values: Floats) -> tuple[float, ...]:
    return tuple(values.tolist())


def _evidence(estimate: Estimate) -> PerCluster | None:
    if isinstance(estimate, Ratio):
        return PerCluster(numerator=_tuple(estimate.numerator), denominator=_tuple(estimate.denominator))
    if isinstance(estimate, Influence):
        second = None if estimate.second is None else _tuple(estimate.second)
        return PerCluster(influence=_tuple(estimate.influence), second=second, overlap=float(estimate.overlap))
    return None


def estimate_from(result: MetricResult) -> Estimate | None:
    """Return the estimate behind a written value; None where the file keeps no evidence of it."""
    if result.kind in ("undefined", "unmeasured"):
        return Undefined(result.reason or "the file keeps no value", result.detail)
    if result.value is None:
        return Exact(float("nan"))
    if result.kind == "exact":
        return Exact(result.value)
    parts = result.per_cluster
    if parts is None:
        return None
    if parts.numerator is not None and parts.denominator is not None:
        return Ratio(np.array(parts.numerator), np.array(parts.denominator))
    second = None if parts.second is None else np.array(parts.second)
    return Influence(result.value, np.array(parts.influence or ()), second, parts.overlap)


def accepted_from(result: PropertyResult) -> AcceptedProperty:
    """Return what `judge` compares with, from a property of an accepted file or of any other report."""
    return AcceptedProperty(
        metrics={
            name: Accepted(
                value=metric.value if metric.value is not None else float("nan"),
                estimate=estimate_from(metric),
                clusters=result.clusters,
                version=metric.version,
                anchor=metric.anchor,
                noise=metric.noise,
            )
            for name, metric in result.metrics.items()
        },
        context=result.context,
        version=result.version,
        weights=result.weights,
    )


def measurement_from(result: PropertyResult) -> Measurement | str:
    """Return the measurement behind a result, to be judged again without the SAE; the text of an error instead."""
    if not result.metrics:
        return result.error or "nothing was measured"
    estimates: dict[str, Estimate] = {}
    for name, metric in result.metrics.items():
        if metric.kind != "unmeasured":
            estimates[name] = estimate_from(metric) or Summary(metric.value or 0.0, metric.se, metric.n or 0)
    return Measurement(estimates, result.clusters, result.series, notes=result.notes, weights=result.weights)


def declaration_from(result: PropertyResult) -> PropertyDeclaration:
    """Return the declaration of a result's property, as the report itself holds it."""
    metrics = [
        Metric(
            name,
            each.unit,
            each.better,
            each.meaning,
            each.version,
            each.target,
            each.noise_free,
            each.of_weights,
            each.family,
            each.condition,
            each.factor,
        )
        for name, each in result.metrics.items()
    ]
    return PropertyDeclaration(result.name, result.version, metrics, result.primary_metric, result.question)


def rules_from(result: PropertyResult) -> list[Rule]:
    """Return the limits that judged a result, as rules."""
    return [
        Rule(result.name, metric, limit, source=limit.source)
        for metric, each in result.metrics.items()
        for limit in each.limits
    ]
