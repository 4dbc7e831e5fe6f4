"""From a measurement and its verdict to a result that can be written, and back to what `judge` takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sae_bench.judge.against_limit import is_finite
from sae_bench.judge.limits import SOURCES, Rule, Source, parse_rule
from sae_bench.judge.verdicts import AcceptedProperty, Judgement, PropertyVerdict
from sae_bench.measure.measurement import (
    Accepted,
    Estimate,
    Exact,
    Floats,
    Influence,
    Measurement,
    Metric,
    Ratio,
    Summary,
    Undefined,
)
from sae_bench.report.json import plain
from sae_bench.report.records import Kind, MetricResult, PerCluster, PropertyResult

_KINDS: dict[type, Kind] = {
    Ratio: "ratio",
    Influence: "influence",
    Summary: "influence",
    Exact: "exact",
    Undefined: "undefined",
}


def context_digest(context: Mapping[str, Any]) -> str:
    """``sha256:...`` of the context's canonical JSON; equal contexts have equal digests."""
    text = json.dumps(plain(context), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def property_context(base: Mapping[str, Any], measurement: Measurement | str) -> dict[str, Any]:
    """What decides comparability of one property: the run's part and the settings that the measurement names."""
    settings = measurement.settings if isinstance(measurement, Measurement) else {}
    context: dict[str, Any] = plain({**base, "settings": settings})
    return context


class PropertyDeclaration(Protocol):
    """What a property says about itself, as far as a report needs it."""

    @property
    def name(self) -> str:
        """Of the property."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """All that it declares."""

    @property
    def version(self) -> int:
        """Of the property's definition."""


def property_result(
    measurement: Measurement | str,
    verdict: PropertyVerdict,
    declared: PropertyDeclaration,
    *,
    context: Mapping[str, Any],
    seconds: float | None = None,
    notes: Sequence[str] = (),
    accepted: AcceptedProperty | None = None,
) -> PropertyResult:
    """What a report holds of one property of one SAE.

    Args:
        measurement: what was found, or the text of the error.
        verdict: what `judge` made of it.
        declared: the property.
        context: what was given to `judge`.
        seconds: wall time of the measurement.
        notes: sentences beside those of the measurement.
        accepted: what was compared with; its anchors and noises are shown beside the new values.
    """
    found = measurement if isinstance(measurement, Measurement) else Measurement({})
    metrics = {metric.name: metric for metric in declared.metrics}
    held = accepted.metrics if accepted is not None else {}
    results = {}
    for name in sorted({*found.estimates, *verdict.by_metric}):
        metric = metrics.get(name) or Metric(name, "", "reported", "")
        results[name] = _metric_result(metric, found.estimates.get(name), verdict.by_metric.get(name), held.get(name))
    return PropertyResult(
        name=declared.name,
        version=declared.version,
        context=plain(context),
        context_digest=context_digest(context),
        metrics=results,
        clusters=tuple(int(cluster) for cluster in found.clusters),
        primary_metric=verdict.primary_metric,
        verdict=verdict.verdict,
        exceeds_limit=verdict.exceeds_limit,
        lines=verdict.lines,
        confidence=verdict.confidence,
        seconds=seconds,
        notes=(*found.notes, *notes),
        weights=found.weights,
        series=dict(found.series),
    )


def _metric_result(
    metric: Metric, estimate: Estimate | None, judged: Judgement | None, held: Accepted | None
) -> MetricResult:
    evidence, reason, rows = None, "was not measured", None
    if isinstance(estimate, Undefined):
        reason = estimate.reason
    elif estimate is not None and not is_finite(estimate):
        reason = f"is {estimate.value}, or rests on values that are not finite"
    elif estimate is not None:
        evidence, reason = _evidence(estimate), ""
        rows = _rows(estimate)
    return MetricResult(
        value=float(estimate.value) if estimate is not None and not reason else None,
        unit=metric.unit,
        better=metric.better,
        version=metric.version,
        kind=_KINDS[type(estimate)] if estimate is not None else "undefined",
        se=judged.se if judged else None,
        n=rows,
        verdict=judged.verdict if judged else None,
        exceeds_limit=judged.exceeds_limit if judged else False,
        limit=judged.limit if judged else "",
        limit_from=judged.limit_from if judged else "",
        accepted=judged.accepted if judged else None,
        change=judged.change if judged else None,
        interval=judged.change_interval if judged else None,
        value_interval=judged.interval if judged else None,
        detectable=judged.detectable if judged else None,
        needed_documents=judged.needed_documents if judged else None,
        message=judged.message if judged else "",
        reason=reason,
        target=metric.target,
        meaning=metric.meaning,
        noise_free=metric.noise_free,
        per_cluster=evidence,
        anchor=held.anchor if held else None,
        noise=held.noise if held else None,
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
    """The estimate behind a written value; None where its evidence was not kept."""
    if result.kind == "undefined":
        return Undefined(result.reason or "no value was kept")
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
    """What `judge` compares with, from a property of an accepted file or of any other report."""
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
    """The measurement behind a run's result, so that it can be judged again without the SAE; its error as a text."""
    if not result.metrics:
        return result.lines[0] if result.lines else "nothing was measured"
    estimates: dict[str, Estimate] = {}
    for name, metric in result.metrics.items():
        if metric.reason != "was not measured":
            estimates[name] = estimate_from(metric) or Summary(metric.value or 0.0, metric.se, metric.n or 0)
    return Measurement(estimates, result.clusters, result.series, notes=result.notes, weights=result.weights)


def metrics_from(result: PropertyResult) -> list[Metric]:
    """The declarations of a result's metrics, as the report itself tells them."""
    return [
        Metric(name, each.unit, each.better, each.meaning, each.version, each.target, each.noise_free)
        for name, each in result.metrics.items()
    ]


def rules_from(result: PropertyResult) -> list[Rule]:
    """The limits that judged a result."""
    rules = []
    for metric, each in result.metrics.items():
        written = [part for part in each.limit.split("; ") if part]
        sources = each.limit_from.split("; ")
        for row, limit in enumerate(written):
            source = sources[min(row, len(sources) - 1)]
            known: Source = next((one for one in SOURCES if one == source), "property")
            rules.append(parse_rule(f"{result.name}.{metric}:{limit}", known))
    return rules
