"""A report that the suite made of the demo, in headless Chromium: every picture a property is known by is drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_bench.report.report import load_report
from sae_bench.show.html.page import report_html
from tests.support.browser import CHROMIUM, WRONG, Browser

ROOT = Path(__file__).parents[3]
PROBE = (Path(__file__).parents[2] / "support" / "probe.js").read_text()
COMMAND = (
    "-m", "pytest", "benchmarks/", "-q", "-p", "no:cacheprovider", "--sae", "demo/topk", "--sae", "demo/standard",
    "-k", "topk or reconstruction or sparsity", "--sae-tier", "smoke", "--sae-docs", "24",
)  # fmt: skip
PICTURES = {
    "kl_gap": (
        "KL by condition", "KL of a token, by condition", "kl_sae of each document, accepted and now",
        "Quantiles of a token's KL", "Mean KL by position", "Funnel of token types", "Frequency against gap",
    ),
    "orthogonality": (
        "Cosine with the nearest direction", "Cosine with the 10th nearest direction",
        "Cosine with the 100th nearest direction", "Features that are the nearest neighbour of most others",
    ),
    "shrinkage": ("Best scale t* of the fitted features", "t* of the fitted features, by density"),
    "steering": (
        "Slopes over features and prompts", "Mean effect by strength", "Share of slopes that do not rise, by condition",
    ),
    "contrast": (
        "Slopes over questions", "Variance explained, by factor", "Propensity of single questions, condition feature",
    ),
    "sparsity": ("Share of tokens on which a feature fires", "L0 of a token"),
    "reconstruction": ("Share of its variance that a token loses", "Norm of the error, by norm of the activation"),
    "superposition": ("Crosstalk of a token over random directions'",),
    "stability": ("Largest cosine with the other SAE",),
}  # fmt: skip

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of the suite wrote."""
    reports = tmp_path_factory.mktemp("reports")
    command = [sys.executable, *COMMAND, "--sae-report-dir", str(reports)]
    # The summary of a job that runs these tests is not this run's.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=ours)
    found = [path.parent for path in reports.glob("*/report.html")]
    assert len(found) == 1, done.stdout + done.stderr
    return found[0]


@pytest.fixture(scope="module")
def seen(browser: Browser, folder: Path) -> dict[str, Any]:
    browser.open(folder / "report.html", 1280)
    found: dict[str, Any] = browser.run(PROBE)
    return found


def test_no_error_no_request_and_every_plot_is_drawn(browser: Browser, seen: dict[str, Any], folder: Path) -> None:
    assert browser.of(*WRONG) == []
    assert [each for each in browser.of("Runtime.consoleAPICalled") if each["type"] in ("error", "warning")] == []
    asked = [each["request"]["url"] for each in browser.of("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [(folder / "report.html").as_uri()]
    assert len(seen["plots"]) > 40
    assert [plot for plot in seen["plots"] if plot["marks"] == 0 or abs(plot["width"] - plot["room"]) > 2] == []


def test_each_property_has_the_pictures_it_is_known_by(seen: dict[str, Any]) -> None:
    drawn = {name: {plot["title"] for plot in seen["plots"] if plot["section"] == f"demo/topk--{name}"}
             for name in PICTURES}  # fmt: skip
    assert {name: set(wanted) - drawn[name] for name, wanted in PICTURES.items() if set(wanted) - drawn[name]} == {}


def test_the_grid_leads_to_sections_and_the_table_sorts_and_filters(seen: dict[str, Any]) -> None:
    assert seen["cell"]["open"]
    assert seen["cell"]["focused"]
    assert 0 <= seen["cell"]["top"] < seen["cell"]["height"] / 2
    assert {row[0] for row in seen["words"]} == {"demo/topk"}
    assert {row[1].partition(".")[0] for row in seen["words"]} == {"kl_gap"}
    assert 0 < seen["judged"] < seen["everything"]
    assert seen["up"] == sorted(seen["up"])
    assert seen["down"] == sorted(seen["down"], reverse=True)
    assert len(seen["up"]) >= 2


def test_nothing_is_cut_off_at_400_pixels(browser: Browser, seen: dict[str, Any]) -> None:
    browser.size(400, 900)
    narrow = browser.run("window.probeNarrow()")
    assert narrow["width"] <= 400
    assert narrow["overflowing"] == []
    assert narrow["wide"] == []


def test_a_hundred_such_saes_stay_below_thirty_megabytes(folder: Path) -> None:
    report = load_report(folder / "report.json")
    topk = report.saes["demo/topk"]
    # From a size on from which the pictures are packed, as they are in a page of a hundred.
    few, more = (
        len(report_html(replace(report, saes={f"sae-{row}": topk for row in range(count)})).encode())
        for count in (16, 20)
    )
    assert few + 84 * (more - few) / 4 < 30e6


def test_the_report_says_what_kind_each_sae_is_as_its_config_does(folder: Path) -> None:
    saes = json.loads((folder / "report.json").read_text())["saes"]
    kinds = {sae: (each["provenance"]["architecture"], each["provenance"]["format"]) for sae, each in saes.items()}
    assert kinds == {"demo/topk": ("topk", "sae_lens"), "demo/standard": ("standard", "sae_lens")}
