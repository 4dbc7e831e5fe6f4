"""Write timings as a few lines under pytest-benchmark's own table, with the figures that it does not show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_bench.report.timing import Timing


def speed_lines(timings: Sequence[Timing]) -> list[str]:
    """Return one line per SAE: tokens a second, the share of the bare product's rate, peak memory, by operation."""
    if not timings:
        return []
    operations = list(dict.fromkeys(each.operation for each in timings))
    cells = {(each.sae, each.operation): _cell(each) for each in timings}
    saes = list(dict.fromkeys(each.sae for each in timings))
    rows = [["", *operations], *([sae, *(cells.get((sae, name), "") for name in operations)] for sae in saes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    where = timings[0].device if timings[0].device != "cpu" else _threads(timings[0].threads)
    head = f"speed ({where}): tokens a second, share of the bare matrix product's, peak memory"
    return [
        head,
        *("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows),
    ]


def _cell(timing: Timing) -> str:
    rate = f"{_short(timing.tokens_per_second)}/s {timing.share_of_product:4.0%}"
    return rate if timing.peak_mebibytes is None else f"{rate} {timing.peak_mebibytes:.4g} MiB"


def _short(rate: float) -> str:
    """Spell a rate with three digits: 1.23M, 45.6k, 789."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:.3g}{unit}"
    return f"{rate:.3g}"


def _threads(count: int) -> str:
    return f"{count} thread" + "s" * (count != 1)
