"""Commands that follow from a verdict, as they have to be typed where the run was started."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sae_bench.report.records import Command, Verdict

SAME = (
    "limit", "compare", "no-compare", "baselines", "tier", "docs", "seed", "device", "dtype", "batch-size", "selfcheck",
    "strict",
)  # fmt: skip
"Options, by the word after ``--sae-``, that gave a run its numbers and verdicts."
_DOCUMENTS = ("--sae-tier", "--sae-docs")
_JUDGING = ("--sae-limit", "--sae-compare", "--sae-no-compare", "--sae-strict")
SUITE = Path(__file__).parents[1] / "suite"
"The suite that is installed with this package."


@dataclass(frozen=True)
class RerunCommand:
    """Command line that starts a run again."""

    place: str = ""
    "Path of its tests, an argument of pytest: ``benchmarks/``."
    named: Mapping[str, str] = field(default_factory=dict)
    "By id, the options that choose an SAE whose id alone does not: ``--sae ./v4 --sae-model gpt2``."
    options: tuple[str, ...] = ()
    "Those of `SAME` that were typed, each with its value."

    def commands(self, verdicts: Collection[Verdict], name: str, sae: str) -> list[Command]:
        """Return the commands that follow from the verdicts on one property of an SAE."""
        occurring = set(verdicts)
        accept = self.accept([sae], [name])
        commands = []
        if occurring & {Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE}:
            commands.append(Command("reproduce", self._run([sae], [name], self.options)))
        if Verdict.INCONCLUSIVE in occurring:
            options = [*self._without(_DOCUMENTS), "--sae-tier full"]
            commands.append(Command("decide", self._run([sae], [name], options)))
        if occurring & {Verdict.NEW, Verdict.IMPROVED, Verdict.INCOMPARABLE}:
            commands.append(Command("accept", accept))
        elif Verdict.FAIL in occurring:
            commands.append(Command("if wanted", accept))
        if Verdict.MISSING in occurring:
            commands += [Command("if removed", "pytest-sae-bench prune"), Command("if wanted", accept)]
        return commands

    def accept(self, saes: Sequence[str], properties: Sequence[str] = ()) -> str:
        """Return the command that measures in the default tier and accepts: runs of all tiers are compared with it."""
        accepting = ["--sae-accept", '--sae-accept-reason "..."']
        return self._run(saes, properties, [*self._without(_DOCUMENTS + _JUDGING), *accepting])

    def _run(self, saes: Sequence[str], properties: Sequence[str], options: Sequence[str]) -> str:
        chosen = [self.named.get(sae, f"--sae {quoted(sae)}") for sae in saes]
        parts = ["pytest", self.place, *chosen, *(f"--sae-property {name}" for name in properties), *options]
        return " ".join(filter(None, parts))

    def _without(self, flags: Collection[str]) -> list[str]:
        return [option for option in self.options if option.partition(" ")[0] not in flags]


def place_of(files: Iterable[Path], here: Path) -> str:
    """Return the place of a suite's test files, as an argument of pytest in the folder ``here``."""
    paths = sorted(set(files))
    if not paths:
        return ""
    if all(path.is_relative_to(SUITE) for path in paths):
        return "--pyargs sae_bench.suite"
    shared = paths[0] if len(paths) == 1 else Path(os.path.commonpath(paths))
    shown = os.path.relpath(shared, here)
    return shlex.quote(shown if len(paths) == 1 or shown == "." else f"{shown}/")


def quoted(text: str) -> str:
    """Quote for a shell, also where it is not needed: ids are easier to see in quotation marks."""
    plain = shlex.quote(text)
    return plain if plain != text else f"'{text}'"
