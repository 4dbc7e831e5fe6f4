"""Comparing and accepting run where there is no GPU, and start at once: what they import is counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sae_bench
from sae_bench.measure.properties import property_names

HEAVY = ("torch", "transformer_lens", "transformers", "pandas", "scipy.stats", "pytest", "jinja2", "plotly")


@pytest.mark.parametrize("module", ["judge.judge", "report.accept", "report.report", "report.baselines"])
def test_nothing_heavy_is_imported(module: str) -> None:
    code = f"import sys, sae_bench.{module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_judging_and_writing_import_nothing_heavy(tmp_path) -> None:
    code = f"""
import sys
import numpy as np
from sae_bench.judge.limits import parse_rule
from sae_bench.measure.measurement import Accepted, Measurement, Metric, Ratio
from sae_bench.judge.verdicts import AcceptedProperty
from sae_bench.judge.judge import judge
kl = Ratio(np.arange(1.0, 9.0), np.ones(8))
held = AcceptedProperty({{"kl": Accepted(kl.value, kl, tuple(range(8)), 1)}}, {{}})
now = Measurement({{"kl": kl}}, tuple(range(8)))
metrics, rules = [Metric("kl", "nats", "lower", "")], [parse_rule("gap.kl:5%")]
found = judge("gap", metrics, "kl", now, held, sae="x", rules=rules, context={{}})
print(found.verdict, [m for m in {HEAVY!r} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "PASS []"


LIGHT = ("registry", "judge", "report", "show", "measure/properties", "frontends/cli", "frontends/pytest", "suite")
"Rooms that are imported to list, collect, compare, accept and show."
LATE = ("torch", "transformer_lens", "transformers", "sae_lens", "jinja2", "plotly")


def test_light_rooms_import_neither_torch_nor_templates() -> None:
    package = Path(sae_bench.__file__).parent
    declared = [f"sae_bench.measure.properties.{name}" for name in property_names()]
    others = [
        ".".join(("sae_bench", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")
        for room in LIGHT
        for path in sorted((package / room).rglob("*.py"))
        if room != "measure/properties"
    ]
    code = f"""
import importlib, sys
for name in {[*declared, *others]!r}:
    importlib.import_module(name)
    assert not [each for each in {LATE!r} if each in sys.modules], name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
