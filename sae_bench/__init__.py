"""Measure sparse autoencoders on language models, judge them, and report: a pytest suite.

    from sae_bench import register_sae      # in conftest.py
    pytest benchmarks/                      # or: pytest --pyargs sae_bench.suite

Names are resolved when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_bench.engine.noise_floors import register_noise_floor
    from sae_bench.frontends.testing import check_sae, property_test
    from sae_bench.measure.measurement import Exact, Influence, Measurement, Metric, Ratio, Series, Undefined
    from sae_bench.measure.properties import Property, register_property
    from sae_bench.registry.register import register_sae
    from sae_bench.registry.spec import SAESpec
    from sae_bench.report.report import Report
    from sae_bench.sae.controls import register_control
    from sae_bench.sae.formats import register_format

__version__ = "0.1.0"
DISTRIBUTION = "pytest-sae-bench"

_MODULE_OF = {
    "Exact": "sae_bench.measure.measurement",
    "Influence": "sae_bench.measure.measurement",
    "Measurement": "sae_bench.measure.measurement",
    "Metric": "sae_bench.measure.measurement",
    "Property": "sae_bench.measure.properties",
    "Ratio": "sae_bench.measure.measurement",
    "Report": "sae_bench.report.report",
    "SAESpec": "sae_bench.registry.spec",
    "Series": "sae_bench.measure.measurement",
    "Undefined": "sae_bench.measure.measurement",
    "check_sae": "sae_bench.frontends.testing",
    "property_test": "sae_bench.frontends.testing",
    "register_control": "sae_bench.sae.controls",
    "register_format": "sae_bench.sae.formats",
    "register_noise_floor": "sae_bench.engine.noise_floors",
    "register_property": "sae_bench.measure.properties",
    "register_sae": "sae_bench.registry.register",
}
__all__ = [
    "Exact",
    "Influence",
    "Measurement",
    "Metric",
    "Property",
    "Ratio",
    "Report",
    "SAESpec",
    "Series",
    "Undefined",
    "check_sae",
    "property_test",
    "register_control",
    "register_format",
    "register_noise_floor",
    "register_property",
    "register_sae",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
