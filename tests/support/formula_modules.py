"""Modules that the formula of a property depends on, found by following imports, and hashes of their code."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

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
