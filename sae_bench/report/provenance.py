"""Collect where a report comes from: commit, versions, hardware, command line."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sae_bench.errors import UsageError
from sae_bench.report.rerun_commands import RerunCommand

_PACKAGES = ("pytest-sae-bench", "torch", "transformer-lens", "transformers", "sae-lens", "numpy", "scipy", "pytest")


@dataclass(frozen=True)
class Provenance:
    """Origin of a run. It explains differences and never decides whether results may be compared."""

    commit: str | None
    "Of the checkout that pytest's rootdir lies in."
    dirty: bool | None
    "True when tracked files differ from the commit."
    started: str
    "UTC, ISO 8601."
    seconds: float | None = None
    "Wall time."
    command: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    platform: str = ""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    "Tier, documents, seed, batch size and whatever else was chosen."
    rerun_command: RerunCommand | None = None
    "Starts the run again; None in a report that pytest did not make."
    interrupted: bool = False
    "The run ended before everything was measured."
    narrowed_by: tuple[str, ...] = ()
    "Options of pytest, such as ``-k``, that left out items."

    @classmethod
    def collect(
        cls,
        root: Path,
        *,
        started: float | None = None,
        command: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        rerun_command: RerunCommand | None = None,
        interrupted: bool = False,
        narrowed_by: Sequence[str] = (),
    ) -> Provenance:
        """Collect what can be known of this process and of the checkout at ``root``, when a run ends.

        Args:
            root: the user's checkout (pytest's rootdir), not where this package is installed.
            started: seconds since the epoch (`time.time`) when the run began; without it, no wall time.
            command: the command line; by default that of this process.
            options: tier, seed and the like, as JSON values.
            rerun_command: starts the run again.
            interrupted: True when the run ended before everything was measured.
            narrowed_by: options of pytest that left out items.
        """
        commit, dirty = checkout(root)
        now = time.time()
        return cls(
            commit=commit,
            dirty=dirty,
            started=utc(now if started is None else started),
            seconds=None if started is None else round(now - started, 3),
            command=shlex.join(sys.argv if command is None else command),
            packages={name: installed for name in _PACKAGES if (installed := _version(name))},
            python=platform.python_version(),
            platform=platform.platform(),
            hardware=hardware(),
            options=dict(options or {}),
            rerun_command=rerun_command,
            interrupted=interrupted,
            narrowed_by=tuple(narrowed_by),
        )


def utc(moment: float) -> str:
    """Spell seconds since the epoch as UTC, ISO 8601 to the second."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def checkout(root: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the checkout at ``root``, and True when tracked files differ from it; None without git."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changed is None else bool(changed)


def author(root: Path) -> str:
    """Return git's user name, else the login name."""
    name = _git(root, "config", "user.name")
    if name:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def run_git(folder: Path, *arguments: str) -> str:
    """Run git in ``folder`` and return its output; a `UsageError` with git's own words where it fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except OSError:
        raise UsageError("git is needed for this, and it cannot be run here") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"git {arguments[0]} did not end within a minute") from None
    except subprocess.CalledProcessError as error:
        words = (error.stderr or "it did not say why").strip().splitlines()
        raise UsageError(f"git {arguments[0]} failed: {words[0]}") from None
    return done.stdout


def _git(root: Path, *arguments: str) -> str | None:
    try:
        return run_git(root, *arguments).strip()
    except UsageError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """Return machine, cores, and the accelerator if torch is loaded already; torch is never imported for it."""
    facts: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts
