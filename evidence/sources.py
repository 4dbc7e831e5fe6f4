"""Which sources a piece of evidence speaks of, and their hash: evidence about other sources is stale."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.support.formula_modules import code_hash, property_modules, source_of

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
JUDGING = tuple(
    f"sae_bench/{name}.py"
    for name in ("measure/uncertainty", "judge/paired_change", "judge/limits", "judge/against_limit", "judge/judge")
)
DEMO = tuple(f"sae_bench/demo/{name}.safetensors" for name in ("corpus", "model/*", "saes/*/*"))
JUDGED = "properties that judge"
"Stands for every module that the formulas of properties with limits depend on."
SPEAKS_OF: dict[str, tuple[str, ...]] = {
    "sensitivity": (
        *JUDGING,
        "sae_bench/sae/controls/*.py",
        JUDGED,
        *DEMO,
        "evidence/sensitivity.py",
        "evidence/corpora.py",
    ),
    "error_rates": (
        *JUDGING,
        "sae_bench/run/noise.py",
        "sae_bench/measure/properties/kl_gap/__init__.py",
        "sae_bench/engine/*.py",
        *DEMO,
        "evidence/error_rates.py",
        "evidence/planted_changes.py",
        "evidence/false_alarms.py",
        "evidence/corpora.py",
    ),
    "kills": (
        *(
            f"sae_bench/{name}.py"
            for name in ("report/run_folder", "run/measured_property", "run/run", "report/convert")
        ),
        "tests/support/toy_engine.py",
        "evidence/kills.py",
    ),
    "fuzz": (
        "sae_bench/sae/formats/**/*.py",
        "sae_bench/sae/files/*.py",
        "sae_bench/sae/*.py",
        "sae_bench/registry/site.py",
        "evidence/fuzz.py",
    ),
    "architectures": (
        *(
            f"sae_bench/{name}.py"
            for name in (
                "model/language_model",
                "model/forward",
                "model/chunked_gelu",
                "model/unembed",
                "model/load",
                "model/files",
                "registry/site",
            )
        ),
        "evidence/architectures.py",
    ),
    "oldest_pytest": (
        *(
            f"sae_bench/{name}.py"
            for name in ("frontends/pytest/plugin", "frontends/pytest/items", "frontends/pytest/scheduling")
        ),
        "evidence/oldest_pytest.py",
    ),
    "name_clash": (
        "pytest_sae_bench.py",
        "sae_bench/registry/package_clash.py",
        "sae_bench/__init__.py",
        "evidence/name_clash.py",
    ),
}
"Globs below the root and `JUDGED`, by the name of the evidence."


def sources_hash(evidence: str) -> str:
    """Hash of what a piece of evidence speaks of; comments, docstrings and layout of code do not count."""
    digest = hashlib.sha256()
    for pattern in SPEAKS_OF[evidence]:
        found = _judged() if pattern == JUDGED else sorted(ROOT.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{evidence} speaks of {pattern}, which names no file")
        for path in found:
            digest.update(path.name.encode() + b"\0")
            digest.update(code_hash(path.read_text()).encode() if path.suffix == ".py" else path.read_bytes())
    return digest.hexdigest()[:16]


def _judged() -> list[Path]:
    """Return the modules that the formulas of judged properties depend on; ``series.py`` only presents numbers."""
    from sae_bench.measure.properties import built_in, load_property

    names = [name for name in built_in() if load_property(name).limits]
    files = {source_of(module) for name in names for module in property_modules(name)}
    return sorted(file for file in files if file is not None and file.name != "series.py")


def read(evidence: str) -> dict[str, Any]:
    """What was found, with the hash of the sources that it speaks of."""
    found: dict[str, Any] = json.loads((RESULTS / f"{evidence}.json").read_text())
    return found


def write(evidence: str, speaks_of: str, result: Any, seconds: float) -> None:
    """Keep what was found."""
    tree = {"sources": speaks_of, "seconds": round(seconds), "result": result}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{evidence}.json").write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n")
