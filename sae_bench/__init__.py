"""Measure sparse autoencoders on language models, judge them, and report: a pytest suite.

    from sae_bench import register_sae      # in conftest.py
    pytest benchmarks/                      # or: pytest --pyargs sae_bench.suite

Names are resolved when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_bench.controls import register_control
    from sae_bench.formats import register_format
    from sae_bench.properties import register_property
    from sae_bench.registration import register_sae
    from sae_bench.report import Report
    from sae_bench.spec import SAESpec
    from sae_bench.testing import check_sae, property_test

__version__ = "0.1.0"
DISTRIBUTION = "pytest-sae-bench"

_HOMES = {
    "Report": "sae_bench.report",
    "SAESpec": "sae_bench.spec",
    "check_sae": "sae_bench.testing",
    "property_test": "sae_bench.testing",
    "register_control": "sae_bench.controls",
    "register_format": "sae_bench.formats",
    "register_property": "sae_bench.properties",
    "register_sae": "sae_bench.registration",
}
__all__ = [
    "Report",
    "SAESpec",
    "check_sae",
    "property_test",
    "register_control",
    "register_format",
    "register_property",
    "register_sae",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
