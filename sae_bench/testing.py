"""For test files: `property_test` makes one test of one property; `check_sae` measures one SAE and returns a report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from sae_bench.spec import SAESpec

if TYPE_CHECKING:
    from sae_bench.report import Report
    from sae_bench.run import Run

PROPERTY_ATTRIBUTE = "sae_bench_property"
"Set on test functions, so that collection knows which property an item measures."


def property_test(name: str) -> Callable[..., None]:
    """A test function that measures one property of each chosen SAE; pytest runs it once an SAE.

    Use it as ``test_kl_gap = property_test("kl_gap")``.
    """

    def test(sae_spec: SAESpec, sae_run: Run, request: pytest.FixtureRequest) -> None:
        checked = sae_run.check(sae_spec, name)
        request.node.user_properties.extend(checked.user_properties)
        if checked.failure is not None:
            pytest.fail(checked.failure, pytrace=False)

    test.__name__ = test.__qualname__ = f"test_{name}"
    test.__doc__ = f"Measure {name} and judge it."
    setattr(test, PROPERTY_ATTRIBUTE, name)
    return test


def check_sae(sae: Any, *, properties: tuple[str, ...] | None = None, **options: Any) -> Report:
    """Measure one SAE outside pytest: a path, a target or an object with ``encode`` and ``decode``.

    ``options`` are those of `SAESpec` (``model``, ``site``, ``corpus`` ...) and `RunOptions` (``tier``, ``seed`` ...).
    Hard limits are judged; nothing is compared and nothing is written.
    """
    from sae_bench.run import check_one

    return check_one(sae, properties, options)
