"""Where pytest finds the plugin: outside the package ``sae_bench``, which another distribution may overwrite or hide.

An editable installation comes after site-packages on the path, so that SAEBench's package of the same name hides ours
altogether. Suites without SAEs must then run as ever, and one with SAEs must end with one line instead of a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any

import pytest

try:
    from sae_bench.frontends.pytest.plugin import *  # noqa: F403
except ImportError as _error:
    if str(_error.name).partition(".")[0] != "sae_bench":
        raise

    def _message() -> str:
        """As `sae_bench.registry.package_clash.clash_message`, which is hidden as well."""
        spec = find_spec("sae_bench")
        found = "nowhere" if spec is None else spec.origin or str(list(spec.submodule_search_locations or ())[:1])
        try:
            owner = f"sae-bench {distribution('sae-bench').version}"
        except PackageNotFoundError:
            owner = "another package"
        repair = "pip uninstall -y sae-bench pytest-sae-bench && pip install pytest-sae-bench"
        return f"sae_bench is not that of pytest-sae-bench: {found} belongs to {owner}; repair with: {repair}"

    @pytest.hookimpl(wrapper=True)
    def pytest_load_initial_conftests(args: list[str]) -> Generator[None, Any, Any]:
        """Options of ours, or a conftest that imports from ``sae_bench``, end with the one line."""
        if any(str(argument).startswith("--sae") for argument in (*args, *sys.argv[1:])):
            raise pytest.UsageError(_message())
        try:
            return (yield)
        except Exception as error:
            cause = getattr(error, "cause", None) or getattr(error, "excinfo", (None, error))[1]
            if isinstance(cause, ImportError) and str(cause.name or "").partition(".")[0] == "sae_bench":
                raise pytest.UsageError(_message()) from None
            raise
