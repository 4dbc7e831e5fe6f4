"""The reference of metrics is what the code declares."""

from __future__ import annotations

from pathlib import Path

from sae_bench.frontends.cli.metrics import reference

DOCS = Path(__file__).parents[3] / "docs"


def test_the_reference_is_current() -> None:
    assert (DOCS / "metrics.md").read_text() == reference(), "run: pytest-sae-bench metrics > docs/metrics.md"
