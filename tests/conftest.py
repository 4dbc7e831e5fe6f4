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


@pytest.fixture(scope="session")
def _torch_whole() -> None:
    """Parts of torch that are imported when they are needed, and cannot be imported twice."""
    import torch._dynamo  # noqa: F401


@pytest.fixture
def pytester(_torch_whole: None, pytester: pytest.Pytester) -> pytest.Pytester:
    """It forgets the modules that were imported since it was made, so torch has to be there before."""
    return pytester
