"""Imports go one way: a module imports only from layers below its own. The table is architecture, this is its guard."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sae_bench"

LAYERS: dict[int, tuple[str, ...]] = {
    0: ("__init__", "_identity", "errors", "registry", "extensions", "spec", "site", "registration"),
    1: (
        "tiers",
        "measurement",
        "texts",
        "stats",
        "change",
        "limits",
        "outcome",
        "again",
        "comparison",
        "wording",
        "verdict",
    ),
    2: (
        "sae",
        "formats",
        "corpus",
        "corpus_build",
        "language_model",
        "unembedding",
        "elementwise",
        "passes",
        "divergence",
        "model",
        "model_files",
        "floors",
        "controls",
        "geometry",
        "sparse_codes",
        "devices",
        "labelled",
        "cells",
        "contrast",
        "concepts",
        "concept_tokens",
        "circuit",
    ),
    3: (
        "capture",
        "handed",
        "batch",
        "kept",
        "reading",
        "interventions",
        "bench",
        "scales",
        "prompts",
        "circuit_runs",
        "steering",
        "contract",
    ),
    4: ("properties",),
    5: ("codec", "provenance", "results", "conversion", "declared", "report", "baselines", "accepting", "store"),
    6: (
        "load_checks",
        "companions",
        "loading",
        "content",
        "selfcheck",
        "preflight",
        "found",
        "run",
        "speed",
        "checking",
        "rescaling",
        "bridges",
        "render",
        "progress",
    ),
    7: ("testing", "suite", "options"),
    8: ("plugin", "collected", "session", "choices", "scheduling", "distributed", "cli", "__main__", "demo"),
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}
HEAVY = ("torch", "transformer_lens", "transformers", "sae_lens")
TORCH_FREE = (0, 1, 4, 5, 7)
"Layers whose modules import no torch when they are imported."


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def top_level(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imported_modules(tree: ast.Module) -> set[str]:
    """First components below ``sae_bench`` of everything imported, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sae_bench.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sae_bench":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names if a.name in LAYER_OF}
    return found


def type_checking_only(tree: ast.Module) -> ast.Module:
    """The tree without ``if TYPE_CHECKING`` blocks: annotations may name what is below or above."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return None
            return self.generic_visit(node)

    return Strip().visit(tree)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = top_level(path)
    assert own in LAYER_OF, f"{own} has no layer: put it into the table"
    if own == "__init__":
        return
    tree = type_checking_only(ast.parse(path.read_text()))
    for name in imported_modules(tree) - {own}:
        assert LAYER_OF[name] <= LAYER_OF[own], f"{path.name} (layer {LAYER_OF[own]}) imports {name} ({LAYER_OF[name]})"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_light_layers_import_no_torch(path: Path) -> None:
    if LAYER_OF[top_level(path)] not in TORCH_FREE:
        return
    tree = type_checking_only(ast.parse(path.read_text()))
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        heavy = [name for name in names if name.split(".")[0] in HEAVY]
        assert not heavy, f"{path.name} imports {heavy} when it is imported"


def test_only_model_imports_transformer_lens() -> None:
    guilty = [path.name for path in modules() if "transformer_lens" in imports_of(path)]
    assert guilty == ["model.py"]


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found
