"""Collecting where a report comes from: commit, versions, hardware, command line."""

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

_PACKAGES = ("pytest-sae-bench", "torch", "transformer-lens", "transformers", "sae-lens", "numpy", "scipy", "pytest")


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from. It explains differences and never decides whether results may be compared."""

    commit: str | None
    "Of the checkout that pytest's rootdir lies in."
    dirty: bool | None
    "Whether tracked files differ from the commit."
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

    @classmethod
    def collect(
        cls,
        root: Path,
        *,
        started: float | None = None,
        command: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Provenance:
        """What can be known of this process and of the checkout at ``root``, when a run ends.

        Args:
            root: the user's checkout (pytest's rootdir), not where this package is installed.
            started: seconds since the epoch (`time.time`) when the run began; without it, no wall time.
            command: the command line, that of this process if not said.
            options: tier, seed and the like, as JSON values.
        """
        commit, dirty = checkout(root)
        now = time.time()
        return cls(
            commit=commit,
            dirty=dirty,
            started=utc(now if started is None else started),
            seconds=None if started is None else round(now - started, 3),
            command=shlex.join(sys.argv if command is None else command),
            packages={name: found for name in _PACKAGES if (found := _version(name))},
            python=platform.python_version(),
            platform=platform.platform(),
            hardware=hardware(),
            options=dict(options or {}),
        )


def utc(moment: float) -> str:
    """Seconds since the epoch as UTC, ISO 8601 to the second."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def checkout(root: Path) -> tuple[str | None, bool | None]:
    """The commit of the git checkout at ``root``, and whether tracked files differ from it; None without git."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changed is None else bool(changed)


def author(root: Path) -> str:
    """Who is at the keyboard: git's user name, else the login name."""
    name = _git(root, "config", "user.name")
    if name:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """Machine, cores, and the accelerator if torch is loaded already; torch is never imported for it."""
    found: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found
