"""Types of numpy arrays in measuring code, divisions that may be by 0, and weights of a least-squares slope."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]


def slope_weights(x: Floats) -> Floats:
    """Return (K,) weights w such that ``values @ w`` is the least-squares slope of values (..., K) on x (K,)."""
    centred = x - x.mean()
    return np.asarray(centred / np.square(centred).sum())


def divide_or(numerator: Floats, denominator: Floats, otherwise: Floats | float) -> Floats:
    """Return numerator / denominator where the denominator is above 0, else ``otherwise``."""
    out = np.broadcast_to(np.asarray(otherwise, dtype=np.float64), np.shape(numerator)).copy()
    return np.asarray(np.divide(numerator, denominator, out=out, where=denominator > 0))
