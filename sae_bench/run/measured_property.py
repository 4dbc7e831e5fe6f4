"""A measurement and how it came about: made here and now, or taken from the record of a run or a process elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sae_bench.judge.verdicts import AcceptedProperty
from sae_bench.measure.measurement import Measurement
from sae_bench.report import run_folder
from sae_bench.report.convert import measurement_from
from sae_bench.report.records import PropertyResult


@dataclass(frozen=True)
class MeasuredProperty:
    """A measurement and how it came about."""

    measurement: Measurement
    noise: Mapping[str, float]
    "Measured spread by metric; empty without ``--sae-selfcheck``."
    context: Mapping[str, Any] = field(default_factory=dict)
    "What decides whether the result may be compared with an accepted one."
    seconds: float | None = None
    "How long it took where it was measured; None: now and here."
    key: str | None = None
    "What the numbers follow from; None where nothing is written."
    earlier: run_folder.Record | None = None
    "The record of an unfinished run that this was restored from."


def restored(record: run_folder.Record, selfcheck: bool) -> MeasuredProperty:
    """What a record says was measured, to the last bit; it is judged anew."""
    measurement = measurement_from(record.result)
    assert isinstance(measurement, Measurement)
    context = record.result.context
    # Without a self-check the noise in a record is the accepted report's, which is read again.
    metrics = record.result.metrics.items() if selfcheck else ()
    noise = {name: each.noise for name, each in metrics if each.noise is not None}
    return MeasuredProperty(replace(measurement, settings=context["settings"]), noise, context, record.result.seconds)


def with_noise(accepted: AcceptedProperty | None, noise: Mapping[str, float]) -> AcceptedProperty | None:
    """``accepted`` judged with the noise that was measured now."""
    if accepted is None or not noise:
        return accepted
    metrics = {name: replace(held, noise=noise.get(name, held.noise)) for name, held in accepted.metrics.items()}
    return replace(accepted, metrics=metrics)


def noisy(result: PropertyResult, noise: Mapping[str, float]) -> PropertyResult:
    """``result`` with the noise that was measured now."""
    if not noise:
        return result
    metrics = {name: replace(each, noise=noise.get(name, each.noise)) for name, each in result.metrics.items()}
    return replace(result, metrics=metrics)
