"""A user's repository whose engine is a toy, run in this process or in one of its own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_bench.registry.register import SAES, load_entry_points

ENGINE = Path(__file__).parents[2] / "support" / "toy_engine.py"
REGISTER = """
from sae_bench import register_sae
register_sae("lab/a", path="a")
register_sae("lab/b", path="b")
register_sae("lab/c", path="c")
"""
SUITE = """
from sae_bench.frontends.testing import property_test
test_kl_gap = property_test("kl_gap")
test_reconstruction = property_test("reconstruction")
test_sparsity = property_test("sparsity")
"""
ACCEPT = ("--sae-accept", "--sae-accept-reason", "measured")


def _forget() -> None:
    SAES.__init__("SAE")  # type: ignore[misc]


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    """Everything once, before pytester takes its snapshot of modules: numpy cannot be imported twice."""
    for needed in ("filelock", "hypothesis", "pandas", "rich.console", "rich.table", "scipy.special"):
        importlib.import_module(needed)
    for part in (
        "frontends.pytest",
        "run",
        "frontends.cli",
        "demo",
        "measure.properties",
        "show",
        "show.html",
        "show.charts",
    ):
        package = importlib.import_module(f"sae_bench.{part}")
        for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
            if part != "demo":
                importlib.import_module(f"{package.__name__}.{module.name}")
    load_entry_points()


class Toy:
    """A repository with three SAEs and three properties, nine items."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester, self.path = pytester, pytester.path
        (self.path / "toy_engine.py").write_text(ENGINE.read_text())
        self.register(REGISTER)
        (self.path / "test_sae.py").write_text(SUITE)
        (self.path / "pytest.ini").write_text("[pytest]\n")

    def register(self, text: str) -> None:
        (self.path / "conftest.py").write_text(text)

    def say(self, **what: Any) -> None:
        """``say(lab_a__kl_gap=1.2)``: what happens to a property of an SAE."""
        names = {name.replace("__", " ").replace("lab_", "lab/"): value for name, value in what.items()}
        (self.path / "toy.json").write_text(json.dumps(names))

    def __call__(self, *arguments: str) -> pytest.RunResult:
        return self.plain("-p", "no:cacheprovider", *arguments)

    def plain(self, *arguments: str) -> pytest.RunResult:
        """With pytest's cache, which ``--lf`` needs."""
        _forget()
        return self.pytester.runpytest_inprocess(*arguments)

    def accept(self, *arguments: str) -> pytest.RunResult:
        return self(*ACCEPT, *arguments)

    def alone(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own, with no plugin but ours and those named with -p."""
        self.register("import toy_engine\ntoy_engine.install()\n" + REGISTER)
        return self.bare(*arguments, **environment)

    def bare(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The same with the conftest that is there."""
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "sae_bench.plugin", *arguments],
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=300,
            env={
                **os.environ,
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, [str(self.path), os.environ.get("PYTHONPATH")])),
                "OMP_NUM_THREADS": "1",
                **environment,
            },
        )

    def measured(self) -> list[str]:
        """What was measured since the last call."""
        log = self.path / "measured.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "reports" / "latest.json").read_text())
        return found

    def values(self) -> dict[str, Any]:
        """A report without what may differ from run to run."""
        saes = self.report()["saes"]
        for sae in saes.values():
            for result in sae["properties"].values():
                result.pop("seconds", None)
        return saes

    def verdicts(self) -> set[str]:
        return {each["verdict"] for sae in self.values().values() for each in sae["properties"].values()}

    def folders(self) -> list[Path]:
        return sorted(path for path in (self.path / "reports").glob("*") if path.is_dir())


@pytest.fixture
def toy(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    monkeypatch.delenv("CI", raising=False)
    spec = importlib.util.spec_from_file_location("toy_engine_here", ENGINE)
    assert spec is not None
    assert spec.loader is not None
    engine = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy_engine_here", engine)
    spec.loader.exec_module(engine)
    engine.install(monkeypatch.setattr)
    _forget()
    yield Toy(pytester)
    _forget()
