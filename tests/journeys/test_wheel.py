"""The wheel holds what a user needs (the package, its types, the suite and the demo), and is enough by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]
MEGABYTE = 1_000_000
OFFLINE = """
import socket
def refuse(*given): raise OSError("this test has no network")
socket.socket.connect = socket.getaddrinfo = refuse
"""
"sitecustomize of an environment without a network."


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_it_holds_the_package_its_types_and_the_demo(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"sae_bench/py.typed", "sae_bench/frontends/pytest/plugin.py", "sae_bench/suite/test_properties.py"} <= names
    for part in ("model/model.safetensors", "model/tokenizer.json", "corpus.safetensors", "saes/topk/cfg.json"):
        assert f"sae_bench/demo/{part}" in names, part


def test_the_demo_is_small(wheel: zipfile.ZipFile) -> None:
    sizes = [info.file_size for info in wheel.infolist() if info.filename.startswith("sae_bench/demo/")]
    assert sum(sizes) <= 20 * MEGABYTE


def test_it_registers_the_plugin_under_its_own_name(wheel: zipfile.ZipFile) -> None:
    points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(points).decode()
    assert "[pytest11]\nsae_bench.plugin = pytest_sae_bench" in text
    assert "pytest-sae-bench = sae_bench.frontends.cli:main" in text


def test_nothing_else_is_in_it(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sae_bench", "pytest_sae_bench.py"}


def test_it_is_at_most_35_megabytes(wheel: zipfile.ZipFile) -> None:
    assert Path(str(wheel.filename)).stat().st_size <= 35 * MEGABYTE


def test_the_suite_runs_from_it_in_an_empty_environment_without_a_network(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    """Its dependencies are those of this environment, which lies behind the empty one on the path."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "env" / "lib" / version / "site-packages"
    wheel.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (site / "sitecustomize.py").write_text(OFFLINE)
    suite = ["-m", "pytest", "--pyargs", "sae_bench.suite", "--sae", "demo/topk", "--sae-tier", "smoke"]
    few = ["--sae-docs", "8", "--sae-property", "contract", "--sae-property", "reconstruction"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folder = tmp_path / "anywhere"
    folder.mkdir()
    done = subprocess.run(
        [str(tmp_path / "env" / "bin" / "python"), *suite, *few, "-v"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_contract[demo/topk] PASSED" in done.stdout
    assert "test_reconstruction[demo/topk] PASSED" in done.stdout
    assert (folder / "reports" / "latest.json").is_file()
