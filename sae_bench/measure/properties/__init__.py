"""The properties: one file each, found by file name. A file declares metrics and limits as data and one `measure`.

Others come from outside: `register_property` in a ``conftest.py``, or an entry point of the group
``sae_bench.properties``. A property module imports no torch while it is imported: listing, collecting and checking
limits must stay quick.
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
NO_MODEL = "needs the model, and only activations were given"
"Why a metric is undefined in ``check_sae(activations=...)``."
TRANSCODER = "a transcoder reads elsewhere than it writes, and what it would read there is not known"
"Why a metric of circuits is undefined for an SAE whose `Bench.source` is another site."


@dataclass(frozen=True)
class Property:
    """One question asked of an SAE: what is measured, and the limits that stand unless somebody sets others."""

    name: str
    question: str
    "One sentence, shown by ``--sae-list``."
    primary_metric: str
    "The metric shown when all is well."
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
            raise ValueError(f"property {self.name!r} speaks of metrics it does not declare: {sorted(unknown)}")


def register_property(declared: Property) -> Property:
    """Add a property of your own; call it in ``conftest.py``.

    A package names its `Property` in an entry point of the group ``sae_bench.properties`` instead.

    Raises:
        UsageError: the name is taken.
    """
    EXTENSIONS.register(declared.name, declared)
    return declared


def property_names() -> tuple[str, ...]:
    """Names of all properties, sorted; found by file name, entry point or registration, nothing is imported."""
    return tuple(sorted({*built_in(), *EXTENSIONS.names()}))


def load_property(name: str) -> Property:
    """The property called ``name``; unknown is a `UsageError` with near names."""
    if name in built_in():
        return _checked(name, importlib.import_module(f"{__name__}.{name}").PROPERTY)
    if name in EXTENSIONS:
        return EXTENSIONS.load(name)
    raise UsageError(f"unknown property {name!r}{near(name, property_names())}")


@cache
def built_in() -> tuple[str, ...]:
    """Names of this package's own properties, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def _checked(name: str, found: object) -> Property:
    if isinstance(found, Property) and found.name == name:
        return found
    said = f"a Property called {found.name!r}" if isinstance(found, Property) else f"a {type(found).__name__}"
    raise UsageError(f"what is registered as property {name!r} is {said}; it must be a Property with that name")


EXTENSIONS: Extensions[Property] = Extensions("property", built_in, _checked)
"Properties of other packages and of this run's ``conftest.py``."
