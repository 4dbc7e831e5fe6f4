"""How far a long measurement is: one rewritten line where a terminal is, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TextIO

PATIENCE = 2.0
"Seconds a measurement may take before a terminal shows it."
INTERVAL_TERMINAL = 0.2
INTERVAL_LOG = 30.0


@dataclass
class ProgressLine:
    """Called with (what, done, total); writes to ``stream`` past pytest's capture."""

    stream: TextIO
    uncaptured: Callable[[], AbstractContextManager[Any]] = nullcontext
    clock: Callable[[], float] = time.monotonic
    _label: str = ""
    _started: float = 0.0
    _shown: float = field(default=0.0)
    _open: bool = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show ``done`` of ``total``, if it is time to."""
        now = self.clock()
        if what != self._label or done <= 1:
            self._label, self._started, self._shown = what, now, now
        interactive = self.stream.isatty()
        finished = done >= total
        patient = now - self._started < PATIENCE if interactive else False
        due = now - self._shown >= (INTERVAL_TERMINAL if interactive else INTERVAL_LOG)
        if self._open and finished:
            self._write("\r\x1b[K")
            self._open = False
        elif due and not patient and not finished:
            self._shown = now
            elapsed = now - self._started
            left = elapsed / max(done, 1) * (total - done)
            text = f"{what}  {done}/{total} documents  {elapsed:.0f} s, about {left:.0f} s left"
            self._write(f"\r\x1b[K{text}" if interactive else f"\n{text}\n")
            self._open = interactive

    def _write(self, text: str) -> None:
        with self.uncaptured():
            self.stream.write(text)
            self.stream.flush()

    @classmethod
    def for_pytest(cls, config: Any) -> ProgressLine | None:
        """A line that shows under pytest's capture; None under ``-q``."""
        if config.get_verbosity() < 0:
            return None
        capture = config.pluginmanager.getplugin("capturemanager")
        return cls(sys.__stderr__ or sys.stderr, capture.global_and_fixture_disabled if capture else nullcontext)
