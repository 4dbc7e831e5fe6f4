"""The commands that a verdict asks for, as they have to be typed where the run was started."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sae_bench.judge.verdicts import Verdict

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
    """How a run is started again."""

    place: str = ""
    "Where its tests are, as pytest is told: ``benchmarks/``."
    named: Mapping[str, str] = field(default_factory=dict)
    "By id, what chooses an SAE whose id alone does not: ``--sae ./v4 --sae-model gpt2``."
    options: Sequence[str] = ()
    "Those of `SAME` that were typed, each with its value."

    @classmethod
    def of(cls, told: Mapping[str, Any] | None) -> RerunCommand | None:
        """From a report's ``run.options``; None where nobody said, as in a report that pytest did not make."""
        return None if told is None else cls(**told)

    def tree(self) -> dict[str, Any]:
        """For a report's ``run.options``."""
        return asdict(self)

    def lines(self, verdicts: Collection[Verdict], name: str, sae: str) -> list[str]:
        """The commands that follow from the verdicts on one property of an SAE, to be pasted."""
        found = set(verdicts)
        accept = self.accept([sae], [name])
        lines = []
        if found & {Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE}:
            lines.append(f"  reproduce:  {self._run([sae], [name], self.options)}")
        if Verdict.INCONCLUSIVE in found:
            kept = self._without(_DOCUMENTS)
            lines.append(f"  decide:     {self._run([sae], [name], [*kept, '--sae-tier full'])}")
        if found & {Verdict.NEW, Verdict.IMPROVED, Verdict.INCOMPARABLE}:
            lines.append(f"  accept:     {accept}")
        elif Verdict.FAIL in found:
            lines.append(f"  if wanted:  {accept}")
        if Verdict.MISSING in found:
            lines.append("  if removed: pytest-sae-bench prune")
            lines.append(f"  if wanted:  {accept}")
        return lines

    def accept(self, saes: Sequence[str], properties: Sequence[str] = ()) -> str:
        """Accepts what is measured then, in the tier that is the default: what runs of all tiers are compared with."""
        accepting = ["--sae-accept", '--sae-accept-reason "..."']
        return self._run(saes, properties, [*self._without(_DOCUMENTS + _JUDGING), *accepting])

    def _run(self, saes: Sequence[str], properties: Sequence[str], options: Sequence[str]) -> str:
        chosen = [self.named.get(sae, f"--sae {quoted(sae)}") for sae in saes]
        parts = ["pytest", self.place, *chosen, *(f"--sae-property {name}" for name in properties), *options]
        return " ".join(filter(None, parts))

    def _without(self, flags: Collection[str]) -> list[str]:
        return [option for option in self.options if option.partition(" ")[0] not in flags]


def place_of(files: Iterable[Path], here: Path) -> str:
    """Where the test files of a suite are, as pytest is told from the folder ``here``."""
    found = sorted(set(files))
    if not found:
        return ""
    if all(path.is_relative_to(SUITE) for path in found):
        return "--pyargs sae_bench.suite"
    shared = found[0] if len(found) == 1 else Path(os.path.commonpath(found))
    shown = os.path.relpath(shared, here)
    return shlex.quote(shown if len(found) == 1 or shown == "." else f"{shown}/")


def quoted(text: str) -> str:
    """For a shell, in quotation marks also where none are needed: ids stand out by them."""
    plain = shlex.quote(text)
    return plain if plain != text else f"'{text}'"
