"""Formulas change only together with a decision whether the version of a metric must be raised.

`formula_sources.json` has a hash of every module in ``sae_bench/measure`` and ``sae_bench/engine`` that a property
depends on, found by following imports from the property's own module: at the top, inside functions, and under
``TYPE_CHECKING``, because a formula also depends on the classes of its arguments. Comments and docstrings do not count.

When a hash differs, look at the change. If a number moves, raise the `version` of its `Metric` (or of the `Property`,
for all of its metrics). If no number moves, as after renaming or in code that only presents numbers, leave the versions
alone. Then record the new hashes with ``python -m tests.measure.test_formula_sources``.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sae_bench.measure.properties import built_in, load_property
from tests.support.formula_modules import (
    code_hash,
    property_modules,
    source_of,
)

TABLE = Path(__file__).with_name("formula_sources.json")
COMMAND = "python -m tests.measure.test_formula_sources"


def versions(name: str) -> dict[str, int]:
    """Return the versions that a property and its metrics declare."""
    declared = load_property(name)
    return {"property": declared.version} | {metric.name: metric.version for metric in declared.metrics}


def current() -> dict[str, dict[str, Any]]:
    """Return the hash of every guarded module, and the modules and versions of every property."""
    modules = {name: sorted(property_modules(name)) for name in built_in()}
    names = sorted({module for listed in modules.values() for module in listed})
    hashes = {name: code_hash(file.read_text()) for name in names if (file := source_of(name)) is not None}
    return {"modules": hashes, "properties": modules, "versions": {name: versions(name) for name in built_in()}}


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(TABLE.read_text())
    return table


@pytest.fixture(scope="module")
def now() -> dict[str, dict[str, Any]]:
    return current()


@pytest.mark.parametrize("name", built_in())
def test_a_changed_formula_was_looked_at(
    name: str, recorded: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]
) -> None:
    before, after = (
        {module: table["modules"].get(module) for module in table["properties"].get(name, ())}
        for table in (recorded, now)
    )
    changed = sorted(module for module in before.keys() | after.keys() if before.get(module) != after.get(module))
    assert not changed, (
        f"the formula of {name} depends on changed modules: {', '.join(changed)}. If a number of {name} moves, raise "
        f"the version of its metric; if none moves, leave the versions alone. Then run {COMMAND}"
    )


def test_versions_never_go_down(recorded: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> None:
    lower = [
        f"{name}.{metric}"
        for name, declared in recorded["versions"].items()
        for metric, version in declared.items()
        if now["versions"].get(name, {}).get(metric, version) < version
    ]
    assert not lower, f"the version of a metric only rises, because accepted reports name it: {', '.join(lower)}"


def test_the_guard_reaches_engine_and_shared_code_and_only_code_changes_a_hash() -> None:
    for name in built_in():
        assert {"sae_bench.measure.measurement", "sae_bench.engine.bench"} <= property_modules(name), name
    # Imported inside functions, by the property's own file and by another module.
    assert "sae_bench.measure.geometry.crosstalk" in property_modules("superposition")
    assert "sae_bench.engine.divergence" in property_modules("confidence")
    assert all(find_spec(module) is not None for module in property_modules("width"))
    code = 'LIMIT = 2\n"Of something."\n\ndef double(x):\n    """Return 2 x."""\n    return LIMIT * x\n'
    assert code_hash(code) == code_hash("LIMIT = 2\ndef double( x ):\n    return LIMIT * x  # twice\n")
    assert code_hash(code) != code_hash(code.replace("LIMIT * x", "LIMIT + x"))


if __name__ == "__main__":
    TABLE.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{TABLE} written\n")
