"""Exceptions whose message names the problem with its value, the cause, and the remedy.

A user's mistake never shows a traceback: every front end catches `SAEBenchError` and prints its message as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SAEBenchError(Exception):
    """Base of every error this package raises on purpose."""


class UsageError(SAEBenchError):
    """A wrong command, registration or option; nothing is measured (exit code 4)."""


class LoadError(SAEBenchError):
    """An SAE, model or corpus that cannot be loaded or does not fit; the verdict ERROR for all that needs it."""


class MeasurementError(SAEBenchError):
    """A property that cannot be measured on an SAE; the verdict ERROR for that pair."""


class StoreError(SAEBenchError):
    """A report, record or accepted file that is unreadable, of a newer schema, or no report at all."""


def near(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Suggest known names in a clause: ``"; did you mean 'a' or 'b'?"``, or all names when few are known."""
    names = sorted(set(known))
    matches = get_close_matches(name, names, n=limit, cutoff=0.5)
    if matches:
        return "; did you mean " + " or ".join(repr(match) for match in matches) + "?"
    if names and len(names) <= 12:
        return "; known: " + ", ".join(names)
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or "no message"."""
    return (str(error).strip().splitlines() or ["no message"])[0]
