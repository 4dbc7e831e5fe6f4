"""Properties, formats, controls and noise floors from outside this package: a ``conftest.py``, or an entry point.

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
    """Additions to the built-in things of one kind. Entry points are read once and loaded on first access."""

    def __init__(self, kind: str, built_in: Callable[[], Collection[str]], check: Callable[[str, object], T]) -> None:
        """Accept what ``check(name, thing)`` returns; it raises a `UsageError` that says what the thing must be."""
        self.kind = kind
        plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
        self.group = f"sae_bench.{plural.replace(' ', '_')}"
        self._built_in = built_in
        self._check = check
        self._loaded: dict[str, T] = {}
        self.registered: Registry[T] = Registry(kind)
        "Registrations of this process."

    def register(self, name: str, thing: T, depth: int = 2) -> None:
        """Add ``thing``; a `UsageError` when its name is taken. ``depth`` counts the stack frames up to the caller."""
        caller = sys._getframe(depth)
        origin = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        if name in self._built_in() or name in self._points:
            raise UsageError(
                f"{self.kind} {name!r} ({origin}) has the name of one that is installed; give it another name"
            )
        checked = self._check(name, thing)
        self.registered.add(name, lambda: checked, origin=origin)

    def names(self) -> tuple[str, ...]:
        """Return the names of all additions, sorted; nothing is imported."""
        return tuple(sorted({*self._points, *self.registered}))

    def __contains__(self, name: str) -> bool:
        return name in self.registered or name in self._points

    def load(self, name: str) -> T:
        """Return the addition called ``name``, one of `names`; a `UsageError` when it cannot be imported."""
        if name in self.registered:
            return self.registered[name]
        if name not in self._loaded:
            point = self._points[name]
            try:
                thing = point.load()
            except Exception as error:
                raise UsageError(
                    f"{self.kind} {name} = {point.value} (entry point of {self.group}) cannot be imported: "
                    f"{type(error).__name__}: {error}"
                ) from error
            self._loaded[name] = self._check(name, thing)
        return self._loaded[name]

    def names_module(self, name: str, module: str) -> bool:
        """Return True when the entry point ``name`` lies in ``module``: importing it registers nothing twice."""
        return name in self._points and self._points[name].module == module

    @cached_property
    def _points(self) -> Mapping[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        built_in = self._built_in()
        for point in entry_points(group=self.group):
            if point.name in built_in or (point.name in points and points[point.name].value != point.value):
                owner = "this package" if point.name in built_in else points[point.name].value
                raise UsageError(
                    f"entry point {point.name} = {point.value} of {self.group} has the name of a {self.kind} of "
                    f"{owner}; uninstall one of them, or give it another name"
                )
            points[point.name] = point
        return points
