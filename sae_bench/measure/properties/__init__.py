"""Registry of the properties: each one is a file or a folder of its name that declares metrics, limits and ``measure``.

Others come from outside: `register_property` in a ``conftest.py``, or an entry point of the group
``sae_bench.properties``. A property module does not import torch at import time, so that listing, collecting and
checking limits are quick.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from sae_bench.errors import UsageError, near
from sae_bench.measure.measurement import Measurement, Metric
from sae_bench.registry.extensions import Extensions

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

Marker = Literal["fidelity", "geometry", "steering", "concepts", "contract"]
NO_MODEL = "the metric needs the model, and the run has activations only"
"Reason of an undefined metric in ``check_sae(activations=...)``."
TRANSCODER = "a transcoder reads another site than it writes, and its input on these prompts is not known"
"Reason of undefined metrics of circuits for an SAE whose `Bench.source` is another site."


@dataclass(frozen=True)
class Property:
    """Property of an SAE: a question, the metrics that answer it, and the limits that hold unless others are set."""

    name: str
    question: str
    "One sentence, shown by ``--sae-list``."
    primary_metric: str
    "The metric that reports show when every verdict is PASS."
    metrics: tuple[Metric, ...]
    limits: tuple[str, ...]
    "Default limits, ``metric:LIMIT``; a metric without one is reported and never judged."
    measure: Callable[[Bench], Measurement]
    marker: Marker
    "pytest marker of the property's items."
    version: int = 1
    needs_model: bool = True
    "False when activations are enough: it is measured by ``check_sae(activations=...)`` as well."

    def __post_init__(self) -> None:
        names = {metric.name for metric in self.metrics}
        unknown = {self.primary_metric, *(limit.split(":", 1)[0] for limit in self.limits)} - names
        if unknown:
            raise ValueError(f"property {self.name!r} names metrics that it does not declare: {sorted(unknown)}")


def condition_metric(name: str, condition: str) -> str:
    """Return a metric's name under a steering condition; those of condition ``feature`` have no suffix."""
    return name if condition == "feature" else f"{name}_{condition}"


def register_property(declared: Property) -> Property:
    """Add a property of your own; call it in ``conftest.py``.

    A package names its `Property` in an entry point of the group ``sae_bench.properties`` instead.

    Raises:
        UsageError: the name is taken.
    """
    EXTENSIONS.register(declared.name, declared)
    return declared


def property_names() -> tuple[str, ...]:
    """Return the names of all properties, sorted, without importing any."""
    return tuple(sorted({*built_in(), *EXTENSIONS.names()}))


def load_property(name: str) -> Property:
    """Return the property called ``name``; an unknown name is a `UsageError` with near names."""
    if name in built_in():
        return _checked(name, importlib.import_module(f"{__name__}.{name}").PROPERTY)
    if name in EXTENSIONS:
        return EXTENSIONS.load(name)
    raise UsageError(f"unknown property {name!r}{near(name, property_names())}")


@cache
def built_in() -> tuple[str, ...]:
    """Return the names of this package's own properties, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def _checked(name: str, candidate: object) -> Property:
    if isinstance(candidate, Property) and candidate.name == name:
        return candidate
    description = (
        f"a Property called {candidate.name!r}" if isinstance(candidate, Property) else f"a {type(candidate).__name__}"
    )
    raise UsageError(f"what is registered as property {name!r} is {description}; it must be a Property with that name")


EXTENSIONS: Extensions[Property] = Extensions("property", built_in, _checked)
"Properties of other packages and of this run's ``conftest.py``."
