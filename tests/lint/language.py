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

METAPHORS = {
    "anew", "elsewhere", "beside", "handed", "home", "homes", "claim", "claims", "standing", "companion", "companions",
    "told", "said", "headline", "headlines", "latent", "latents", "arm", "arms",
}  # fmt: skip
"Pictures, and second words for one concept (feature, condition, primary metric): in no part of a name, no docstring."
PARTICIPLES = {
    "found", "kept", "given", "held", "seen", "again", "beyond", "moved", "left", "coded", "wanted", "needed", "whom",
    "each", "other", "both", "either",
}  # fmt: skip
"Words that do not say what a name holds when they are all of it; as a part of a longer name they may."
BANNED = METAPHORS | PARTICIPLES
LOCAL_WORDS = {"each", "other", "left", "wanted", "needed"}
"May name a variable or a parameter: the lines around it say what it is."
OPENINGS = re.compile(r"(What|How|Whether|Why|Which|That|Who|Whose|Where|When|The same)\b")
MEANINGS = re.compile(r"the same\b", re.IGNORECASE)
PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
CODE = re.compile(r"``?[^`]*``?")


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
    yield from _name(path, path.stem, 1, "module")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield from _name(path, node.name, node.lineno)
        if isinstance(node, ast.arg) and node.arg not in LOCAL_WORDS:
            yield from _name(path, node.arg, node.lineno)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from _name(path, node.attr, node.lineno)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in LOCAL_WORDS:
            yield from _name(path, node.id, node.lineno)
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and _target(field) in LOCAL_WORDS:
                    yield from _name(path, _target(field), field.lineno)
        if isinstance(node, ast.Call):
            yield from _meaning(path, node)
        yield from _docstrings(path, node)


def _name(path: Path, name: str, line: int, kind: str = "name") -> Iterator[Hit]:
    parts = {part.lower() for part in PARTS.findall(name)}
    if name.strip("_").lower() in BANNED or parts & METAPHORS:
        yield Hit(path, line, name, f"{kind} {name!r} does not say what it holds")


def _docstrings(path: Path, node: ast.AST) -> Iterator[Hit]:
    """Yield the hits of the docstrings of a module, class or function and of the fields and constants in it."""
    body = getattr(node, "body", None)
    if not isinstance(body, list):
        return
    owner = getattr(node, "name", path.stem)
    for before, statement in zip([None, *body], body, strict=False):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            name = owner if before is None else _target(before)
            if isinstance(statement.value.value, str):
                is_door = before is None and isinstance(node, ast.Module) and _is_door(path)
                yield from _docstring(path, statement.value.value, name, statement.lineno, is_door)


def _target(statement: ast.stmt) -> str:
    """Return the name that an assignment gives; a string after it is its docstring."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", statement)]
    return ast.unparse(targets[0])


def _is_door(path: Path) -> bool:
    """Return True for a room's ``__init__``, which opens with the question that the room answers."""
    return path.name == "__init__.py" and path.parent.parent == PACKAGE


def _docstring(path: Path, text: str, name: str, line: int, is_door: bool) -> Iterator[Hit]:
    if not is_door and (match := OPENINGS.match(text.strip())):
        yield Hit(path, line, name, f"docstring of {name!r} opens with {match[0]!r}: begin with a verb or a noun")
    words = re.findall(r"[a-z]+", CODE.sub("", text).lower())
    for word in sorted(METAPHORS & set(words)):
        yield Hit(path, line, name, f"docstring of {name!r} says {word!r}: use the term of docs/glossary.md")


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
    excused, all_hits = exceptions(), hits()
    lines = [str(hit) for hit in all_hits if hit.key not in excused]
    used = {hit.key for hit in all_hits}
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
