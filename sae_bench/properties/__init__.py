"""The properties: one file each, found by file name. A file declares metrics and limits as data and one `measure`.

A property module imports no torch while it is imported: listing, collecting and checking limits must stay quick.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from sae_bench.errors import UsageError, near
from sae_bench.measurement import Measurement, Metric

if TYPE_CHECKING:
    from sae_bench.bench import Bench

Marker = Literal["fidelity", "geometry", "steering", "concepts"]


@dataclass(frozen=True)
class Property:
    """One question asked of an SAE: what is measured, and the limits that stand unless somebody sets others."""

    name: str
    question: str
    "One sentence, shown by ``--sae-list``."
    headline: str
    "The metric shown when all is well."
    metrics: tuple[Metric, ...]
    limits: tuple[str, ...]
    "Default limits, ``metric:LIMIT``; a metric without one is reported and never judged."
    measure: Callable[[Bench], Measurement]
    marker: Marker
    "pytest marker of the property's items."
    version: int = 1

    def __post_init__(self) -> None:
        names = {metric.name for metric in self.metrics}
        unknown = {self.headline, *(limit.split(":", 1)[0] for limit in self.limits)} - names
        if unknown:
            raise ValueError(f"property {self.name!r} speaks of metrics it does not declare: {sorted(unknown)}")


def property_names() -> tuple[str, ...]:
    """Names of all properties, sorted; found by file name, nothing is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


@cache
def load_property(name: str) -> Property:
    """The property called ``name``; unknown is a `UsageError` with near names."""
    if name not in property_names():
        raise UsageError(f"unknown property {name!r}{near(name, property_names())}")
    found = importlib.import_module(f"{__name__}.{name}").PROPERTY
    assert isinstance(found, Property)
    assert found.name == name
    return found
