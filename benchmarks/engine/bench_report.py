"""How long the page of six SAEs with everything takes; 3 seconds are allowed."""

from __future__ import annotations

from typing import Any

from sae_bench.show.html.page import report_html
from tests.show.conftest import full_report, full_sae, report_of

ALLOWED = 3.0


def test_report_html(benchmark: Any) -> None:
    report = full_report(6)
    accepted = report_of({sae: full_sae(sae, row + 1) for row, sae in enumerate(report.saes)})
    page = benchmark.pedantic(report_html, (report,), {"accepted": accepted}, rounds=5, warmup_rounds=1)
    benchmark.extra_info["megabytes"] = len(page.encode()) / 1e6
    assert benchmark.stats.stats.median < ALLOWED
