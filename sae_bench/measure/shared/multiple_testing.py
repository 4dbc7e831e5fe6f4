"""Corrections of p-values for the number of tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_bench.measure.arrays import Floats


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's step-down procedure, in the order given.

    The k-th smallest of m p-values is multiplied by m - k + 1; the running maximum, capped at 1, is the corrected one.
    scipy has no such function.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)) if len(values) else values
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


def benjamini_hochberg(p: Floats) -> Floats:
    """Return p-values (m,) adjusted by Benjamini and Hochberg: tests with one below q have a false discovery rate q."""
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p, method="bh"), dtype=np.float64)
