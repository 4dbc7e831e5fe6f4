"""Exceptions whose message is the whole story: the thing, its value, and the remedy.

A user's mistake never shows a traceback: every front end catches `SAEBenchError` and prints its message as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SAEBenchError(Exception):
    """Base of every error this package raises on purpose."""


class UsageError(SAEBenchError):
    """The command, a registration or an option cannot be followed; nothing is measured (exit code 4)."""


class LoadError(SAEBenchError):
    """One SAE, model or corpus cannot be loaded or does not fit; the verdict ERROR for what needs it."""


class MeasurementError(SAEBenchError):
    """A property could not be measured on this SAE; the verdict ERROR for that pair."""


class StoreError(SAEBenchError):
    """A report, record or accepted file is unreadable, of a newer schema, or of something else."""


def near(name: str, known: Iterable[str], limit: int = 3) -> str:
    """A clause that suggests known names: ``"; did you mean 'a' or 'b'?"``, or all names when few are known."""
    names = sorted(set(known))
    matches = get_close_matches(name, names, n=limit, cutoff=0.5)
    if matches:
        return "; did you mean " + " or ".join(repr(match) for match in matches) + "?"
    if names and len(names) <= 12:
        return "; known: " + ", ".join(names)
    return ""
