"""Formulas change only together with a decision whether the version of a metric must be raised.

`formula_sources.json` has a hash of every module in ``sae_bench/measure`` and ``sae_bench/engine`` that a property
depends on, found by following imports from the property's own module: at the top, inside functions, and under
``TYPE_CHECKING``, because a formula also depends on the classes of its arguments. Comments and docstrings do not count.

When a hash differs, look at the change. If a number moves, raise the `version` of its `Metric` (or of the `Property`,
for all of its metrics). If no number moves, as after renaming or in code that only presents numbers, leave the versions
alone. Then record the new hashes with ``python -m tests.measure.test_formula_sources``.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sae_bench.measure.properties import built_in, load_property

TABLE = Path(__file__).with_name("formula_sources.json")
COMMAND = "python -m tests.measure.test_formula_sources"
GUARDED = ("sae_bench.measure", "sae_bench.engine")
ROOT = Path(__file__).parents[2]


def source_of(module: str) -> Path | None:
    """Return the file of a guarded module; None for any other name."""
    if not f"{module}.".startswith(tuple(f"{package}." for package in GUARDED)):
        return None
    path = ROOT / module.replace(".", "/")
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in candidates if file.is_file()), None)


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield every name that a module imports, with a dot between a module and its member; some are no modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the package imports by absolute names"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def direct_imports(module: str) -> frozenset[str]:
    """Return the guarded modules that a module imports, and the packages around it, which run when it is imported."""
    file = source_of(module)
    assert file is not None
    names = {*imported_names(ast.parse(file.read_text())), module.rpartition(".")[0]}
    return frozenset(name for name in names if source_of(name) is not None)


def formula_modules(module: str) -> set[str]:
    """Return a module and all guarded ones that it depends on, directly or through others."""
    closed: set[str] = set()
    pending = {module}
    while pending:
        closed |= pending
        pending = {name for each in pending for name in direct_imports(each)} - closed
    return closed


def property_modules(name: str) -> set[str]:
    """Return all modules of a property's formula: those of its folder, and those that they import."""
    module = f"sae_bench.measure.properties.{name}"
    file = source_of(module)
    assert file is not None
    own = {module}
    if file.name == "__init__.py":
        own |= {f"{module}.{part.stem}" for part in file.parent.glob("*.py") if part != file}
    return {found for each in own for found in formula_modules(each)}


def plain(node: Any) -> Any:
    """Return a syntax tree as nested lists without positions, empty fields and strings that stand alone."""
    if isinstance(node, ast.AST):
        fields = [[key, plain(value)] for key, value in ast.iter_fields(node)]
        return [type(node).__name__, *(field for field in fields if field[1] not in (None, []))]
    if isinstance(node, list):
        return [plain(each) for each in node if not is_docstring(each)]
    return repr(node) if node is not None else None


def is_docstring(node: Any) -> bool:
    """Return True for a statement that is a string alone: a docstring, of a module, a function or a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def code_hash(source: str) -> str:
    """Return a hash of a module's code that comments, layout and docstrings do not change."""
    return hashlib.sha256(json.dumps(plain(ast.parse(source))).encode()).hexdigest()[:16]


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
