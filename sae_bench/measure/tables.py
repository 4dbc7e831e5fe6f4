"""Cells, tables and bins of `Series`, shared by the presentation modules of several properties."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Series

SMALLEST, LARGEST = 1e-6, 1e2
"Ends of the logarithmic axis of `log_counts`; values outside are counted in the last bins."


def rounded_cell(value: float | None) -> float | None:
    """Round a number to four significant digits; None for NaN, infinity and None, which JSON cannot hold."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def finite_cell(value: float) -> float | None:
    """Return a number as it is; None for NaN and infinity, which JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


def table_of_rows(rows: Sequence[dict[str, object]], title: str) -> Series:
    """Build a table from one dict per row; a key that a row lacks leaves its cell empty (None)."""
    names = dict.fromkeys(key for row in rows for key in row)
    return Series("table", {name: [row.get(name) for row in rows] for name in names}, title=title)


def log_edges() -> Floats:
    """Return the (65,) edges of 64 bins that are equally wide in the logarithm, from `SMALLEST` to `LARGEST`."""
    return np.asarray(np.geomspace(SMALLEST, LARGEST, 65))


def log_counts(values: Floats) -> list[int]:
    """Count values (n,) in the bins of `log_edges`."""
    counts: list[int] = np.histogram(values.clip(SMALLEST, LARGEST), log_edges())[0].tolist()
    return counts


def histogram_columns(edges: Floats, samples: Mapping[str, NDArray[Any]]) -> dict[str, list[float]]:
    """Return the columns of a histogram, one per sample; values outside the edges count in the last bins."""
    low, high = float(edges[0]), float(edges[-1])
    counts = {name: np.histogram(values.clip(low, high), edges)[0].tolist() for name, values in samples.items()}
    return {"edges": edges.tolist(), **counts}
