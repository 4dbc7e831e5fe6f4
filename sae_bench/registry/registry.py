"""A registry of named values: built lazily, one owner per name, frozen after it has been read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from sae_bench.errors import UsageError, near

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered value before it is built."""

    build: Callable[[], T]
    origin: str
    "Line that registered it, ``file:line``, for the message when two registrations collide."


class Registry(Mapping[str, T]):
    """Mapping of names to values of one kind, which are built on first access."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}
        self._built: dict[str, T] = {}
        self._frozen_by: str | None = None

    def add(self, name: str, build: Callable[[], T], *, origin: str) -> None:
        """Register ``build`` under ``name``; a taken name or a frozen registry is a `UsageError`."""
        if self._frozen_by is not None:
            raise UsageError(
                f"{self.kind} {name!r} ({origin}) is registered after {self._frozen_by}; "
                f"register it when conftest.py is imported, or in a 'sae_bench.saes' entry point"
            )
        if name in self._entries:
            raise UsageError(
                f"{self.kind} {name!r} is registered twice: at {self._entries[name].origin} and at {origin}; "
                f"give one of them another name"
            )
        self._entries[name] = Entry(build, origin)

    def clear(self) -> None:
        """Remove all entries and allow registrations: for a process that serves one run after another."""
        self._entries.clear()
        self._built.clear()
        self._frozen_by = None

    def freeze(self, by: str) -> None:
        """Refuse later registrations; ``by`` names the event for their message ("SAEs were chosen")."""
        self._frozen_by = self._frozen_by or by

    def origin(self, name: str) -> str:
        """Return the line that registered ``name``, ``file:line``."""
        return self._entry(name).origin

    def __getitem__(self, name: str) -> T:
        entry = self._entry(name)
        if name not in self._built:
            self._built[name] = entry.build()
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def _entry(self, name: str) -> Entry[T]:
        if name not in self._entries:
            raise UsageError(f"unknown {self.kind} {name!r}{near(name, self._entries)}")
        return self._entries[name]
