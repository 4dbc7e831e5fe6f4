"""The README's pictures: there, small, and made by a command of this project."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from sae_bench.report.report import write_report
from tests.support import pictures
from tests.support.browser import CHROMIUM


def test_the_readme_shows_two_pictures_of_at_most_300_kb() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (pictures.ROOT / "README.md").read_text())
    assert len(shown) == 2
    for name in shown:
        path = pictures.ROOT / name
        assert path.parent == pictures.IMAGES
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size <= 300_000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)")
def test_the_command_draws_them(make: Any, tmp_path: Path) -> None:
    write_report(make.full(3), tmp_path / "report.json")
    written = pictures.draw(tmp_path / "report.json", tmp_path / "images", "demo/topk-1")
    assert [path.name for path in written] == ["report-front.png", "report-kl_gap.png"]
    for path in written:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert 900 < width <= 1224
        assert height > 500
