"""Nobody changes a formula without deciding whether the metric's version must be raised.

Each property's source is hashed without comments and docstrings. When a hash differs, look at what changed: if a number
moves, raise the version of its `Metric`; then update the table with ``python tests/test_sources.py``.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

import pytest

PROPERTIES = Path(__file__).parents[1] / "sae_bench" / "properties"
TABLE = Path(__file__).with_name("property_sources.json")


def code_hash(path: Path) -> str:
    """Hash of a module's syntax tree without docstrings: comments and layout do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def versions(name: str) -> dict[str, int]:
    from sae_bench.measure.properties import load_property

    found = load_property(name)
    return {"property": found.version} | {metric.name: metric.version for metric in found.metrics}


def current() -> dict[str, object]:
    """Hash of every source in the folder, and the versions that each property declares."""
    from sae_bench.measure.properties import property_names

    return {
        "sources": {path.name: code_hash(path) for path in sorted(PROPERTIES.glob("*.py"))},
        "versions": {name: versions(name) for name in property_names()},
    }


@pytest.mark.parametrize("path", sorted(PROPERTIES.glob("*.py")), ids=lambda path: path.name)
def test_a_changed_source_was_looked_at(path: Path) -> None:
    recorded = json.loads(TABLE.read_text())["sources"]
    assert recorded.get(path.name) == code_hash(path), (
        f"{path.name} changed: raise the version of every metric whose number moves, then run python {__file__}"
    )


def test_versions_never_go_down() -> None:
    from sae_bench.measure.properties import property_names

    recorded = json.loads(TABLE.read_text())["versions"]
    for name in property_names():
        now = versions(name)
        for metric, version in recorded.get(name, {}).items():
            assert now.get(metric, version) >= version, f"{name}.{metric}"


if __name__ == "__main__":
    TABLE.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{TABLE} written\n")
