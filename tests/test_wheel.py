"""The wheel holds what a user needs: the package, its types, the suite and the demo, in at most 20 MB."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_it_holds_the_package_its_types_and_the_demo(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"sae_bench/py.typed", "sae_bench/plugin.py", "sae_bench/suite/test_properties.py"} <= names
    for part in ("model/model.safetensors", "model/tokenizer.json", "corpus.safetensors", "saes/topk/cfg.json"):
        assert f"sae_bench/demo/{part}" in names, part


def test_the_demo_is_small(wheel: zipfile.ZipFile) -> None:
    sizes = [info.file_size for info in wheel.infolist() if info.filename.startswith("sae_bench/demo/")]
    assert sum(sizes) <= 20 * MEGABYTE


def test_it_registers_the_plugin_under_its_own_name(wheel: zipfile.ZipFile) -> None:
    points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(points).decode()
    assert "[pytest11]\nsae_bench.plugin = sae_bench.plugin" in text
    assert "pytest-sae-bench = sae_bench.cli:main" in text


def test_nothing_else_is_in_it(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sae_bench"}
