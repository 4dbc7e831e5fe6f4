"""Two distributions, one import package: every order of installing and uninstalling them, in throw-away environments.

PyPI's ``sae-bench`` is stood in for by a distribution of that name with a package ``sae_bench`` of its own: the proof
then needs none of its dependencies, and pip treats the two alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLASH = "sae_bench is not that of pytest-sae-bench"
THEIR_METADATA = "Metadata-Version: 2.1\nName: sae-bench\nVersion: 0.6.0\n"
THEIR_WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
THEIR_FILES = {"sae_bench/__init__.py": '"""SAEBench."""\n', "sae_bench/evals/__init__.py": ""}

STATES: dict[str, tuple[Sequence[str], str]] = {
    "ours alone": (("ours",), "works"),
    "ours twice": (("ours", "ours"), "works"),
    "ours, theirs": (("ours", "theirs"), "clash"),
    "theirs, ours": (("theirs", "ours"), "works"),
    "ours, theirs, theirs removed": (("ours", "theirs", "-theirs"), "broken"),
    "theirs, ours, theirs removed": (("theirs", "ours", "-theirs"), "broken"),
    "ours, theirs, ours removed": (("ours", "theirs", "-ours"), "absent"),
    "theirs alone": (("theirs",), "absent"),
    "ours editable": (("editable",), "works"),
    "ours editable, theirs": (("editable", "theirs"), "clash"),
    "theirs, ours editable": (("theirs", "editable"), "clash"),
    "both, both removed, ours again": (("ours", "theirs", "-theirs", "-ours", "ours"), "works"),
}
"""What is done, and what a user's run must do then.

works: the run measures. clash: one line, exit code 4. broken: ``__init__`` is gone, which must be one line or a clean
import error, never a run that measures. absent: our plugin is not installed, so that its options are unknown.
"""


def measure() -> dict[str, Any]:
    """Every state under both import modes of pytest."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        wheels = {"ours": _ours(folder), "theirs": _theirs(folder), "editable": ROOT}
        rows = [_state(folder, wheels, name, *what) for name, what in STATES.items()]
    return {"states": rows, "right": sum(row["right"] for row in rows)}


def _ours(folder: Path) -> Path:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("pytest_sae_bench*.whl"))


def _theirs(folder: Path) -> Path:
    path = folder / "sae_bench-0.6.0-py3-none-any.whl"
    information = {"METADATA": THEIR_METADATA, "WHEEL": THEIR_WHEEL}
    files = {**THEIR_FILES, **{f"sae_bench-0.6.0.dist-info/{name}": text for name, text in information.items()}}
    record = "sae_bench-0.6.0.dist-info/RECORD"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(record, "".join(f"{name},,\n" for name in (*files, record)))
    return path


def _state(folder: Path, wheels: dict[str, Path], name: str, steps: Sequence[str], wanted: str) -> dict[str, Any]:
    env = folder / name.replace(" ", "-").replace(",", "")
    behind = _dependencies(folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    python = env / "bin" / "python"
    (site,) = (env / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{behind}\n")
    for step in steps:
        _install(python, step, wheels)
    seen = {mode: _run(python, env, mode) for mode in ("prepend", "importlib")}
    right = all(_fits(run, wanted) for run in seen.values())
    codes = {mode: run.returncode for mode, run in seen.items()}
    said = next((line for line in _text(seen["prepend"]).splitlines() if CLASH in line), "")
    return {"state": name, "wanted": wanted, "exit_codes": codes, "right": right, "said": said.split(":")[0]}


def _dependencies(folder: Path) -> Path:
    """What is installed here but for our own distribution, whose metadata would name a plugin in every environment."""
    behind = folder / "behind"
    if not behind.exists():
        behind.mkdir()
        for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
            if "sae_bench" not in path.name and path.suffix != ".pth":
                (behind / path.name).symlink_to(path)
    return behind


def _install(python: Path, step: str, wheels: dict[str, Path]) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    names = {"ours": "pytest-sae-bench", "theirs": "sae-bench"}
    if step.startswith("-"):
        subprocess.run([*pip, "uninstall", "-y", names[step[1:]]], check=True, capture_output=True)
        return
    # An editable installation builds in an environment of its own, for which pip asks the package index.
    how = ["-e"] if step == "editable" else ["--no-index", "--force-reinstall"]
    subprocess.run([*pip, "install", "--no-deps", *how, str(wheels[step])], check=True, capture_output=True)


def _run(python: Path, env: Path, mode: str) -> subprocess.CompletedProcess[str]:
    """A user's repository: a conftest that registers, and a list of what would be measured."""
    repository = env / "repository"
    repository.mkdir(exist_ok=True)
    (repository / "conftest.py").write_text("from sae_bench import register_sae\nregister_sae('lab/a', path='a')\n")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-P", "-m", "pytest", f"--import-mode={mode}", "--sae-list", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=repository, env=kept, capture_output=True, text=True)


def _fits(run: subprocess.CompletedProcess[str], wanted: str) -> bool:
    text = _text(run)
    if wanted == "works":
        return run.returncode == 0 and "lab/a" in text and CLASH not in text
    if wanted == "clash":
        return run.returncode == 4 and text.count(CLASH) == 1 and "pip uninstall -y" in text and "Traceback" not in text
    return run.returncode != 0 and "lab/a" not in run.stdout


def _text(run: subprocess.CompletedProcess[str]) -> str:
    return run.stdout + run.stderr
