"""Which sources a piece of evidence speaks of, and their hash: evidence about other sources is stale."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any, TypeGuard

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
JUDGING = tuple(
    f"sae_bench/{name}.py"
    for name in ("measure/uncertainty", "judge/paired_change", "judge/limits", "judge/against_limit", "judge/judge")
)
DEMO = tuple(f"sae_bench/demo/{name}.safetensors" for name in ("corpus", "model/*", "saes/*/*"))
JUDGED = "properties that judge"
"Stands for those with limits and what their numbers are made of in the same folder; series are for looking at."
SPEAKS_OF: dict[str, tuple[str, ...]] = {
    "sensitivity": (
        *JUDGING,
        "sae_bench/sae/controls/*.py",
        JUDGED,
        *DEMO,
        "sae_bench/measure/shared/*.py",
        "evidence/sensitivity.py",
        "evidence/corpora.py",
    ),
    "error_rates": (
        *JUDGING,
        "sae_bench/run/noise.py",
        "sae_bench/measure/properties/kl_gap/__init__.py",
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
        "sae_bench/sae/formats/*.py",
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
            digest.update(_code(path).encode() if path.suffix == ".py" else path.read_bytes())
    return digest.hexdigest()[:16]


def _judged() -> list[Path]:
    from sae_bench.measure.properties import load_property, property_names

    folder = ROOT / "sae_bench" / "properties"
    found: set[Path] = set()
    waiting = [folder / f"{name}.py" for name in property_names() if load_property(name).limits]
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file() and not path.stem.endswith("_series"):
            found.add(path)
            modules = [each.module or "" for each in ast.walk(ast.parse(path.read_text())) if _imports(each)]
            waiting += [folder / f"{module.rpartition('.')[2]}.py" for module in modules]
    return sorted(found)


def _imports(node: ast.AST) -> TypeGuard[ast.ImportFrom]:
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sae_bench.properties.")


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [each for each in body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.dump(tree)


def read(evidence: str) -> dict[str, Any]:
    """What was found, with the hash of the sources that it speaks of."""
    found: dict[str, Any] = json.loads((RESULTS / f"{evidence}.json").read_text())
    return found


def write(evidence: str, speaks_of: str, result: Any, seconds: float) -> None:
    """Keep what was found."""
    tree = {"sources": speaks_of, "seconds": round(seconds), "result": result}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{evidence}.json").write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n")
