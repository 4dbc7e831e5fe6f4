"""Check names and docstrings for words that a stranger could not guess: ``python -m tests.lint.language [--count]``.

Prints ``path:line: message`` for every hit and ends with 1 if there is one. ``language_exceptions.txt`` has exceptions.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sae_bench"
EXCEPTIONS = Path(__file__).with_name("language_exceptions.txt")
MOST_EXCEPTIONS = 10
BANNED = frozenset(
    [
        "found",
        "kept",
        "given",
        "held",
        "told",
        "said",
        "seen",
        "anew",
        "again",
        "elsewhere",
        "beside",
        "beyond",
        "handed",
        "home",
        "claim",
        "standing",
        "companion",
        "companions",
        "headline",
        "headlines",
        "latent",
        "latents",
        "arm",
        "arms",
        "moved",
        "left",
        "coded",
        "wanted",
        "needed",
        "whom",
    ]
)
"Participles, pronouns and metaphors that do not say what a name holds; and second words for one concept."
OPENINGS = re.compile(r"(What|How|Whether|Why|Which|That|Who|Whose|Where|When|The same)\b")
MEANINGS = re.compile(r"the same\b", re.IGNORECASE)


@dataclass(frozen=True)
class Hit:
    """One place with a name or a docstring to rewrite."""

    path: Path
    line: int
    name: str
    message: str

    @property
    def key(self) -> str:
        """Return ``path:name``, as an exception names it."""
        return f"{self.path.relative_to(ROOT)}:{self.name}"

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.message}"


def hits() -> list[Hit]:
    """Return every hit in the package, exceptions included."""
    return [hit for path in sorted(PACKAGE.rglob("*.py")) for hit in hits_in(path, path.read_text())]


def hits_in(path: Path, text: str) -> Iterator[Hit]:
    """Yield the hits of one module."""
    tree = ast.parse(text)
    if path.stem in BANNED:
        yield Hit(path, 1, path.stem, f"module {path.stem!r} does not say what it holds")
    if not _is_door(path):
        yield from _opening(path, tree, path.stem, 1)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield from _name(path, node.name, node.lineno)
            yield from _opening(path, node, node.name, node.lineno)
        if isinstance(node, ast.arg):
            yield from _name(path, node.arg, node.lineno)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from _name(path, node.attr, node.lineno)
        if isinstance(node, ast.Call):
            yield from _meaning(path, node)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield from _name(path, field.target.id, field.lineno)


def _is_door(path: Path) -> bool:
    """Return True for a room's ``__init__``, which opens with the question that the room answers."""
    return path.name == "__init__.py" and path.parent.parent == PACKAGE


def _name(path: Path, name: str, line: int) -> Iterator[Hit]:
    if name.strip("_").lower() in BANNED:
        yield Hit(path, line, name, f"{name!r} does not say what it holds")


def _opening(path: Path, node: ast.AST, name: str, line: int) -> Iterator[Hit]:
    document = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    if match := OPENINGS.match(document):
        yield Hit(path, line, name, f"the docstring of {name!r} opens with {match[0]!r}: begin with a verb or a noun")


def _meaning(path: Path, call: ast.Call) -> Iterator[Hit]:
    if isinstance(call.func, ast.Name) and call.func.id == "Metric":
        for value in (*call.args, *(keyword.value for keyword in call.keywords)):
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and MEANINGS.match(value.value):
                yield Hit(path, call.lineno, value.value[:40], f"meaning {value.value[:40]!r} does not stand alone")


def exceptions() -> dict[str, str]:
    """Return ``path:name`` to the reason, from the reviewed list."""
    lines = [line for line in EXCEPTIONS.read_text().splitlines() if line.strip() and not line.startswith("#")]
    pairs = [line.split("  ", 1) for line in lines]
    return {key: reason.strip() for key, reason in pairs}


def problems() -> list[str]:
    """Return the hits without an exception, and exceptions that no longer apply."""
    excused, found = exceptions(), hits()
    lines = [str(hit) for hit in found if hit.key not in excused]
    used = {hit.key for hit in found}
    lines += [f"{EXCEPTIONS.name}: {key} applies to nothing; remove it" for key in sorted(set(excused) - used)]
    if len(excused) > MOST_EXCEPTIONS:
        lines.append(f"{EXCEPTIONS.name}: {len(excused)} exceptions; at most {MOST_EXCEPTIONS} are allowed")
    return lines


def main(arguments: list[str]) -> int:
    """Print the problems, or with ``--count`` how many there are per room."""
    lines = problems()
    if "--count" in arguments:
        rooms = Counter("/".join(line.split(":")[0].split("/")[:3]) for line in lines)
        lines = [f"{count:5} {room}" for room, count in rooms.most_common()]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
