"""Check that the imported ``sae_bench`` is this package: another distribution on PyPI installs one of the same name.

pip lets the two overwrite each other's files without a warning. Therefore this module has a name that the other lacks,
imports the standard library only, and runs before anything is registered or measured.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

OURS = "pytest-sae-bench"
THEIRS = "sae-bench"
REPAIR = f"pip uninstall -y {THEIRS} {OURS} && pip install {OURS}"


class PackageClash(ImportError):
    """Error when the imported ``sae_bench`` belongs to another distribution."""


def clash_message() -> str | None:
    """Return one line that names the owner of the imported ``sae_bench`` and the repair; None when it is ours."""
    imported = sys.modules.get("sae_bench")
    file = Path(getattr(imported, "__file__", None) or "nowhere")
    package = Path(__file__).resolve().parents[1]
    if file.resolve() == package / "__init__.py" and getattr(imported, "DISTRIBUTION", None) == OURS:
        return None
    try:
        owner = f"{THEIRS} {distribution(THEIRS).version}"
    except PackageNotFoundError:
        owner = "another package"
    return f"sae_bench is not that of {OURS}: {file} belongs to {owner}; repair with: {REPAIR}"


def verify_identity() -> None:
    """Raise `PackageClash` with the one line of `clash_message` unless the package is ours."""
    if message := clash_message():
        raise PackageClash(message)
