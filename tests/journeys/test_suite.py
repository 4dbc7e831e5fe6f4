"""The shipped suite and ``benchmarks/`` are one generator, and a suite without SAEs does not notice the plugin."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sae_bench.frontends.testing import PROPERTY_ATTRIBUTE
from sae_bench.measure.properties import built_in, load_property, property_names, register_property

ROOT = Path(__file__).parents[2]
IMPORTS = """
import sys
import pytest
before = set(sys.modules)
import sae_bench.frontends.pytest.plugin
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def suite_names() -> dict[str, object]:
    """What ``sae_bench.suite`` offers to pytest now."""
    source = (ROOT / "sae_bench" / "suite" / "test_properties.py").read_text()
    found: dict[str, object] = {}
    exec(compile(source, "suite", "exec"), found)
    return {name: each for name, each in found.items() if name.startswith("test_")}


def test_the_suite_has_every_property_once() -> None:
    measured = [getattr(each, PROPERTY_ATTRIBUTE) for each in suite_names().values()]
    assert sorted(measured) == list(property_names())


def test_a_property_that_others_register_is_in_the_suite() -> None:
    from dataclasses import replace

    register_property(replace(load_property("reconstruction"), name="lab_reconstruction"))
    assert "test_lab_reconstruction" in suite_names()


@pytest.mark.parametrize("name", built_in())
def test_benchmarks_hold_one_call_of_the_generator_for_each_property(name: str) -> None:
    tree = ast.parse((ROOT / "benchmarks" / f"test_{name}.py").read_text())
    docstring, imported, assigned = tree.body
    assert isinstance(docstring, ast.Expr)
    assert ast.unparse(imported) == "from sae_bench.frontends.testing import property_test"
    assert ast.unparse(assigned) == f"test_{name} = property_test('{name}')"


def test_the_plugin_imports_nothing_heavy() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    heavy = {"torch", "scipy", "numpy", "pandas", "transformers", "transformer_lens", "hypothesis", "rich"}
    assert "sae_bench" in run.stdout.split()
    assert not set(run.stdout.split()) & heavy


def test_an_unrelated_suite_is_collected_and_ends_as_without_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef sae(): return 1")
    pytester.makepyfile(
        "import pytest\n"
        "def test_passes(sae): pass\n"
        "@pytest.mark.xfail\ndef test_known(): assert False\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
        "def test_fails(): assert False\n"
    )
    outcomes = []
    for more in ((), ("-p", "no:sae_bench.frontends.pytest.plugin")):
        ran = pytester.runpytest_subprocess("-p", "no:cacheprovider", *more)
        outcomes.append((ran.ret, ran.parseoutcomes(), "sae" in ran.stdout.str().split("collected")[1].lower()))
    assert outcomes[0][:2] == outcomes[1][:2] == (1, {"passed": 1, "xfailed": 1, "skipped": 1, "failed": 1})
    assert not (pytester.path / "reports").exists()
