"""What tests of several folders need: the real model and its SAEs, where this machine has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_assets() -> Path:
    """The folder with the real model and its golden numbers."""
    folder = os.environ.get("SAE_BENCH_REAL_ASSETS")
    if not folder:
        pytest.skip("SAE_BENCH_REAL_ASSETS does not name a folder with the real model and its golden numbers")
    return Path(folder)


@pytest.fixture
def pytester(pytester: pytest.Pytester) -> pytest.Pytester:
    """A run inside this process forgets the modules that it imported; torch cannot import this part of it twice."""
    import torch._dynamo  # noqa: F401

    return pytester
