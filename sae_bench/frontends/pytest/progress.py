"""Progress of a long measurement: one rewritten line on a terminal, a line every half minute in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TextIO

PATIENCE = 2.0
"Seconds a measurement may take before a terminal shows it."
INTERVAL_TERMINAL = 0.2
INTERVAL_LOG = 30.0


@dataclass
class ProgressLine:
    """Progress line, called with (what, done, total); writes to ``stream`` past pytest's capture."""

    stream: TextIO
    interactive: bool
    "True for a terminal. While pytest captures, the stream itself answers as a file does."
    uncaptured: Callable[[], AbstractContextManager[Any]] = nullcontext
    clock: Callable[[], float] = time.monotonic
    _label: str = ""
    _started: float = 0.0
    _begun: int = 0
    "Documents that were done at the first call for this measurement."
    _shown: float | None = None
    _open: bool = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show ``done`` of ``total``, if it is time to."""
        now = self.clock()
        if what != self._label or done <= self._begun:
            self._label, self._started, self._begun = what, now, done
        if self._shown is None:
            self._shown = now
        patient = self.interactive and now - self._started < PATIENCE
        due = now - self._shown >= (INTERVAL_TERMINAL if self.interactive else INTERVAL_LOG)
        if self._open and done >= total:
            self._write("\r\x1b[K")
            self._open = False
        elif due and not patient and done < total:
            self._shown = now
            text = self._text(done, total, now)
            self._write(f"\r\x1b[K{text}" if self.interactive else f"\n{text}\n")
            self._open = self.interactive

    def _text(self, done: int, total: int, now: float) -> str:
        elapsed = now - self._started
        # The first step was done before the clock was started.
        text = f"{self._label}  {done}/{total}  {elapsed:.0f} s"
        measured = done - self._begun
        return f"{text}, about {elapsed / measured * (total - done):.0f} s left" if measured > 0 else text

    def _write(self, text: str) -> None:
        with self.uncaptured():
            self.stream.write(text)
            self.stream.flush()

    @classmethod
    def for_pytest(cls, config: Any) -> ProgressLine | None:
        """Return a line that shows under pytest's capture; None under ``-q``."""
        if config.get_verbosity() < 0:
            return None
        capture = config.pluginmanager.getplugin("capturemanager")
        uncaptured = capture.global_and_fixture_disabled if capture else nullcontext
        stream = sys.__stderr__ or sys.stderr
        with uncaptured():
            interactive = stream.isatty()
        return cls(stream, interactive, uncaptured)
