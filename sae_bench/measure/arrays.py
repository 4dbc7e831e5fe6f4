"""Types of numpy arrays in measuring code, and the weights of a least-squares slope."""

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
