"""Properties, formats and controls from outside this package: one line in a ``conftest.py``, or an entry point.

register_property(...)                                 # in conftest.py
[project.entry-points."sae_bench.properties"]          # in the pyproject.toml of a package
name = "module:ATTRIBUTE"
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from sae_bench.errors import UsageError
from sae_bench.registry.registry import Registry

T = TypeVar("T")


class Extensions(Generic[T]):
    """What others add to things of one kind. Entry points are read once, and loaded when they are first asked for."""

    def __init__(self, kind: str, built_in: Callable[[], Collection[str]], check: Callable[[str, object], T]) -> None:
        """``check(name, found)`` returns what was found, or raises a `UsageError` that says what it should be."""
        self.kind = kind
        self.group = f"sae_bench.{kind[:-1]}ies" if kind.endswith("y") else f"sae_bench.{kind}s"
        self._built_in = built_in
        self._check = check
        self._loaded: dict[str, T] = {}
        self.registered: Registry[T] = Registry(kind)
        "What this process registered itself."

    def register(self, name: str, thing: T, depth: int = 2) -> None:
        """Add ``thing``; a `UsageError` when its name is taken. ``depth`` is how far up the stack the caller is."""
        caller = sys._getframe(depth)
        origin = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        if name in self._built_in() or name in self._points:
            raise UsageError(
                f"{self.kind} {name!r} ({origin}) has the name of one that is installed; give it another name"
            )
        checked = self._check(name, thing)
        self.registered.add(name, lambda: checked, origin=origin)

    def names(self) -> tuple[str, ...]:
        """Names of all of them, sorted; nothing is imported."""
        return tuple(sorted({*self._points, *self.registered}))

    def __contains__(self, name: str) -> bool:
        return name in self.registered or name in self._points

    def load(self, name: str) -> T:
        """The one called ``name``, which must be in `names`; one that cannot be imported is a `UsageError`."""
        if name in self.registered:
            return self.registered[name]
        if name not in self._loaded:
            point = self._points[name]
            try:
                found = point.load()
            except Exception as error:
                raise UsageError(
                    f"{self.kind} {name} = {point.value} (entry point of {self.group}) cannot be imported: "
                    f"{type(error).__name__}: {error}"
                ) from error
            self._loaded[name] = self._check(name, found)
        return self._loaded[name]

    @cached_property
    def _points(self) -> Mapping[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            taken = self._built_in()
            if point.name in taken or (point.name in found and found[point.name].value != point.value):
                owner = "this package" if point.name in taken else found[point.name].value
                raise UsageError(
                    f"entry point {point.name} = {point.value} of {self.group} has the name of a {self.kind} of "
                    f"{owner}; uninstall one of them, or give it another name"
                )
            found[point.name] = point
        return found
