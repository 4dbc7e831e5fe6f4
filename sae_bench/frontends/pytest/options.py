"""Every ``--sae-*`` option, declared once: command line, then ``SAE_BENCH_*``, then ini file, then default.

pytest and the console script build their options from the same table.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sae_bench.engine.settings import TIERS, Settings
from sae_bench.errors import UsageError

if TYPE_CHECKING:
    from sae_bench.judge.limits import Source


@dataclass(frozen=True)
class Option:
    """One option. ``name`` is the word after ``--sae-``; the option ``--sae`` itself is called ``""``."""

    name: str
    help: str
    kind: Literal["text", "flag", "list", "count", "choice", "size"] = "text"
    default: Any = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    action: bool = False
    "True for what a person does now (accepting, listing): on the command line only."

    @property
    def flag(self) -> str:
        """Return the option as it is typed: ``--sae-docs``."""
        return f"--sae-{self.name}" if self.name else "--sae"

    @property
    def dest(self) -> str:
        """Return the attribute and ini key: ``sae_docs``."""
        return self.flag[2:].replace("-", "_")

    @property
    def environment(self) -> str:
        """Return the environment variable: ``SAE_BENCH_DOCS``."""
        return "SAE_BENCH_" + (self.name or "sae").upper().replace("-", "_")

    @property
    def ini_key(self) -> str:
        """Return the ini key; the list of limits is called ``sae_limits`` there."""
        return "sae_limits" if self.name == "limit" else self.dest


OPTIONS = (
    Option(
        "",
        "SAEs to measure: ids (globs, '!GLOB' excludes), ID=TARGET, or a TARGET: ./path, hf:repo, "
        "sae_lens:release/id, module:attribute",
        "list",
        (),
        metavar="SAE",
    ),
    Option("model", "model of an SAE given as a target: Hugging Face folder or name", metavar="MODEL"),
    Option("site", "site of an SAE given as a target, such as blocks.8.hook_resid_pre", metavar="SITE"),
    Option(
        "output-site", "output site of a transcoder given as a target, such as blocks.8.hook_mlp_out", metavar="SITE"
    ),
    Option(
        "corpus",
        "pinned corpus of an SAE given as a target (pytest-sae-bench corpus build makes one)",
        metavar="FILE",
    ),
    Option("controls", "for each SAE measure identity, PCA, a random and a permuted dictionary, too", "flag", False),
    Option("property", "measure only these properties (globs)", "list", (), metavar="GLOB"),
    Option("list", "list SAEs, properties and accepted reports, and stop", "flag", False, action=True),
    Option(
        "limit",
        "limit of a metric, property.metric:LIMIT[@sae-glob], such as kl_gap.kl_sae:5%% or 'kl_gap.*:max:0.1'",
        "list",
        (),
        metavar="RULE",
    ),
    Option("compare", "compare with this report instead of the accepted ones", metavar="PATH"),
    Option("no-compare", "compare with nothing: judge hard limits only", "flag", False),
    Option("baselines", "folder of accepted reports, relative to the root folder", default="baselines", metavar="DIR"),
    Option("report-dir", "folder of run reports, relative to the root folder", default="reports", metavar="DIR"),
    Option("tier", "size of the measurement (default standard)", "choice", "standard", tuple(TIERS)),
    Option("docs", "documents to measure, instead of the tier's", "count", metavar="N"),
    Option("seed", "seed of every random draw (default 0)", "count", 0, metavar="N"),
    Option("device", "torch device of model and SAEs (default cpu)", default="cpu", metavar="DEVICE"),
    Option(
        "dtype", "precision of the model (default float32)", "choice", "float32", ("float32", "bfloat16", "float16")
    ),
    Option(
        "batch-size",
        "documents in a model batch; changes speed and memory, not results",
        "count",
        Settings.batch_size,
        metavar="N",
    ),
    Option("ray", "measure with tasks of a Ray cluster: its address, or 'auto' for this machine's", metavar="ADDRESS"),
    Option(
        "ray-wait",
        "seconds that Ray tasks may wait for a place while none runs (default 300)",
        "count",
        300,
        metavar="N",
    ),
    Option(
        "memory",
        "memory for activations and what is computed from them, such as 8GB (default 2GiB); activations that do "
        "not fit are mapped from files in TMPDIR",
        "size",
        Settings.memory_bytes,
        metavar="SIZE",
    ),
    Option(
        "selfcheck",
        "measure again with another batch size, order and seed, and record the spread as noise",
        "flag",
        False,
    ),
    Option(
        "fresh",
        "measure everything: use no results of runs that were interrupted, and delete them",
        "flag",
        False,
        action=True,
    ),
    Option("json", "write the report to this file as well", metavar="PATH"),
    Option("accept", "accept the values of this run, for later runs to compare with", "flag", False, action=True),
    Option("accept-new", "accept only SAEs and properties that have no accepted report", "flag", False, action=True),
    Option("accept-reason", "why the new values are right; accepting requires it", metavar="TEXT", action=True),
    Option("accept-in-ci", "allow accepting where CI=true", "flag", False, action=True),
    Option("reanchor", "with --sae-accept: drift is measured from the new values on", "flag", False, action=True),
    Option("strict", "NEW and INCONCLUSIVE end with exit code 11", "flag", False),
)


def add_options(add: Callable[..., Any]) -> None:
    """Declare every option with ``add`` (argparse's or pytest's ``addoption``); defaults are left to `resolve`."""
    for option in OPTIONS:
        extra: dict[str, Any] = {"dest": option.dest, "default": None, "help": option.help}
        if option.kind == "flag":
            extra["action"] = "store_true"
        elif option.kind == "list":
            extra |= {"action": "append", "metavar": option.metavar}
        elif option.kind == "choice":
            extra["choices"] = option.choices
        else:
            extra["metavar"] = option.metavar
            if option.kind in _TYPES:
                extra["type"] = _TYPES[option.kind]
        add(option.flag, **extra)


def count(text: str) -> int:
    """Parse a whole number, 0 or more, for argparse."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def size(text: str) -> int:
    """Parse a size such as ``8GB`` or ``512MiB`` for argparse; return bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    count_of_bytes = round(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if count_of_bytes < _LEAST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size of at least 1MB; give one such as 8GB or 512MiB")
    return count_of_bytes


_UNITS = {"": 1, **{f"{unit}i": 1 << 10 * power for power, unit in enumerate("kmgt", 1)}}
_UNITS |= {unit: 1000**power for power, unit in enumerate("kmgt", 1)}
_LEAST = 1_000_000
_TYPES: Mapping[str, Callable[[str], int]] = {"count": count, "size": size}


@dataclass(frozen=True)
class Resolved:
    """Values of all options and where each came from."""

    values: Mapping[str, Any]
    "By `Option.dest`."
    sources: Mapping[str, str]
    "By `Option.dest`: ``command line``, ``environment``, ``ini`` or ``default``."

    def __getitem__(self, dest: str) -> Any:
        return self.values[dest]

    def from_user(self) -> dict[str, str]:
        """Return options that differ from their default, as headers show them: ``--sae-tier smoke (environment)``."""
        return {dest: source for dest, source in self.sources.items() if source != "default"}

    def typed(self, names: Collection[str]) -> tuple[str, ...]:
        """Return those options of ``names`` that are from the command line, as typed there: ``--sae-docs 8``."""
        parts: list[str] = []
        for option in OPTIONS:
            if option.name in names and self.sources[option.dest] == "command line":
                value = self.values[option.dest]
                if option.kind == "flag":
                    parts.append(option.flag)
                else:
                    values = value if option.kind == "list" else [value]
                    parts += [f"{option.flag} {shlex.quote(str(each))}" for each in values]
        return tuple(parts)


def resolve(command_line: Callable[[str], Any], ini: Callable[[str], Any]) -> Resolved:
    """Return all options by precedence; the two functions return None for an option that is not set."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option in OPTIONS:
        values[option.dest], sources[option.dest] = _resolve_one(option, command_line(option.dest), ini)
    return Resolved(values, sources)


def limits_with_sources(command_line: Callable[[str], Any], ini: Callable[[str], Any]) -> list[tuple[str, Source]]:
    """Return the limits of ini file, environment and command line with their source, weakest first."""
    option = next(option for option in OPTIONS if option.name == "limit")
    texts: list[tuple[str, Source]] = [(text, "ini") for text in ini(option.ini_key) or ()]
    texts += [(text, "ini") for text in os.environ.get(option.environment, "").split()]
    return texts + [(text, "command line") for text in command_line(option.dest) or ()]


def _resolve_one(option: Option, command_line: Any, ini: Callable[[str], Any]) -> tuple[Any, str]:
    if command_line not in (None, [], False):
        return command_line, "command line"
    if not option.action:
        if (text := os.environ.get(option.environment)) not in (None, ""):
            return _parse(option, str(text), option.environment), "environment"
        if (value := ini(option.ini_key)) not in (None, "", []):
            return (list(value) if option.kind == "list" else _parse(option, str(value), option.ini_key)), "ini"
    return option.default, "default"


def _parse(option: Option, text: str, where: str) -> Any:
    """Parse a value that came as text from the environment or the ini file."""
    if option.kind == "list":
        return text.split()
    if option.kind == "flag":
        if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            raise UsageError(f"{where}={text!r} must be true or false")
        return text.lower() in ("1", "true", "yes", "on")
    if option.kind in _TYPES:
        try:
            return _TYPES[option.kind](text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{where}: {error}") from None
    if option.kind == "choice" and text not in option.choices:
        raise UsageError(f"{where}={text!r} must be one of {', '.join(option.choices)}")
    return text
