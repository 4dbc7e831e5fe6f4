"""Is the imported ``sae_bench`` ours? Another distribution on PyPI installs a package of the same name.

pip lets the two overwrite each other's files without a word, so this file is one the other does not have, it imports
the standard library only, and it is asked before anything is registered or measured.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

OURS = "pytest-sae-bench"
THEIRS = "sae-bench"
REPAIR = f"pip uninstall -y {THEIRS} {OURS} && pip install {OURS}"


class PackageClash(ImportError):
    """Files of another package stand where ours should be."""


def clash_message() -> str | None:
    """One line that says whose ``sae_bench`` is imported and how to repair it; None when it is ours."""
    imported = sys.modules.get("sae_bench")
    found = Path(getattr(imported, "__file__", None) or "nowhere")
    here = Path(__file__).resolve().parents[1]
    if found.resolve() == here / "__init__.py" and getattr(imported, "DISTRIBUTION", None) == OURS:
        return None
    try:
        owner = f"{THEIRS} {distribution(THEIRS).version}"
    except PackageNotFoundError:
        owner = "another package"
    return f"sae_bench is not that of {OURS}: {found} belongs to {owner}; repair with: {REPAIR}"


def verify_identity() -> None:
    """Raise `PackageClash` with the one line of `clash_message` unless the package is ours."""
    if message := clash_message():
        raise PackageClash(message)
