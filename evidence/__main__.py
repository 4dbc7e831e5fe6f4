"""``python -m evidence [NAME ...]``: the heavy proofs, kept as JSON beside this file and as tables in the README.

Two are measured at a time, each by a process of its own. One that breaks leaves its old result, which the tests of this
project then call stale, and does not stop the others.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from evidence.sources import ROOT, SPEAKS_OF, sources_hash, write
from evidence.tables import README, written

JOBS = 2


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(SPEAKS_OF))
    if unknown:
        sys.stderr.write(f"no evidence is called {unknown[0]!r}; there are {', '.join(SPEAKS_OF)}\n")
        return 4
    started = time.perf_counter()
    with ThreadPoolExecutor(JOBS) as pool:
        codes = dict(zip(names or SPEAKS_OF, pool.map(_apart, names or SPEAKS_OF), strict=True))
    README.write_text(written(README.read_text()))
    broken = [name for name, code in codes.items() if code != 0]
    _say(f"all: {time.perf_counter() - started:.0f} s" + (f"; broken: {', '.join(broken)}" if broken else ""))
    return 1 if broken else 0


def _apart(name: str) -> int:
    code = f"from evidence.__main__ import measure; measure({name!r})"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode


def measure(name: str) -> None:
    """One piece of evidence, kept when it is whole."""
    # Of the sources as they were when measuring began.
    speaks_of, started = sources_hash(name), time.perf_counter()
    result = importlib.import_module(f"evidence.{name}").measure()
    seconds = time.perf_counter() - started
    write(name, speaks_of, result, seconds)
    _say(f"{name}: {seconds:.0f} s")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
