"""``python -m tests.evidence [NAME ...]``: the heavy proofs, kept as JSON beside this file."""

from __future__ import annotations

import importlib
import sys
import time

from tests.evidence.sources import SPEAKS_OF, sources_hash, write


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(SPEAKS_OF))
    if unknown:
        sys.stderr.write(f"no evidence is called {unknown[0]!r}; there are {', '.join(SPEAKS_OF)}\n")
        return 4
    for name in names or list(SPEAKS_OF):
        # Of the sources as they were when measuring began.
        speaks_of, started = sources_hash(name), time.perf_counter()
        result = importlib.import_module(f"tests.evidence.{name}").measure()
        seconds = time.perf_counter() - started
        write(name, speaks_of, result, seconds)
        sys.stdout.write(f"{name}: {seconds:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
