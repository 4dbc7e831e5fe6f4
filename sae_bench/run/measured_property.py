"""A measurement with its origin: made by this process, or taken from a record of an earlier run or another process."""

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
    """A measurement with its noise, context and origin."""

    measurement: Measurement
    noise: Mapping[str, float]
    "Measured spread by metric; empty without ``--sae-selfcheck``."
    context: Mapping[str, Any] = field(default_factory=dict)
    "Context: decides whether the result may be compared with an accepted one."
    seconds: float | None = None
    "Time that it took where it was measured; None: in this process."
    key: str | None = None
    "Digest of everything that the numbers follow from; None where nothing is written."
    earlier: run_folder.Record | None = None
    "The record of an unfinished run that this was restored from."


def restored(record: run_folder.Record, selfcheck: bool) -> MeasuredProperty:
    """Return the measurement in a record, equal to the last bit, to be judged again."""
    measurement = measurement_from(record.result)
    assert isinstance(measurement, Measurement)
    context = record.result.context
    # Without a self-check the noise in a record is the accepted report's, which is read again.
    metrics = record.result.metrics.items() if selfcheck else ()
    noise = {name: each.noise for name, each in metrics if each.noise is not None}
    return MeasuredProperty(replace(measurement, settings=context["settings"]), noise, context, record.result.seconds)


def with_noise(accepted: AcceptedProperty | None, noise: Mapping[str, float]) -> AcceptedProperty | None:
    """Return ``accepted`` with the noise that was measured now."""
    if accepted is None or not noise:
        return accepted
    metrics = {name: replace(entry, noise=noise.get(name, entry.noise)) for name, entry in accepted.metrics.items()}
    return replace(accepted, metrics=metrics)


def noisy(result: PropertyResult, noise: Mapping[str, float]) -> PropertyResult:
    """Return ``result`` with the noise that was measured now."""
    if not noise:
        return result
    metrics = {name: replace(each, noise=noise.get(name, each.noise)) for name, each in result.metrics.items()}
    return replace(result, metrics=metrics)
