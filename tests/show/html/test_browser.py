"""The page in headless Chromium: no error, no request, every plot drawn, links, keys, sorting and filtering work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sae_bench.show.html import page as html
from tests.support.browser import CHROMIUM, WRONG, Browser

PROBE = (Path(__file__).parents[2] / "support" / "probe.js").read_text()
BAD = "demo/<script>alert(1)</script>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def page(make: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three SAEs, one of which fails and one is called after a script."""
    passing, failing = (each.properties for each in make.full(2).saes.values())
    few = {name: passing[name] for name in ("reconstruction", "sparsity", "kl_gap")}
    script = {name: make.full_sae(BAD, 4)[name] for name in ("something_else", "sparsity", "kl_gap")}
    report = make.report({"demo/l1": few, "demo/topk": failing, BAD: script})
    before = make.report({sae: make.full_sae(sae, row + 1) for row, sae in enumerate(report.saes)})
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html.report_html(report, accepted=before), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def found(browser: Browser, page: Path) -> dict[str, Any]:
    """What the probe did and saw."""
    browser.open(page, 1280)
    seen: dict[str, Any] = browser.run(PROBE)
    return seen


def test_nothing_goes_wrong_and_nothing_is_fetched(browser: Browser, found: dict[str, Any], page: Path) -> None:
    assert browser.of(*WRONG) == []
    consoles = [each for each in browser.of("Runtime.consoleAPICalled") if each["type"] in ("error", "warning")]
    assert consoles == []
    asked = [each["request"]["url"] for each in browser.of("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


def test_every_plot_is_drawn_within_its_frame_and_none_is_empty(found: dict[str, Any]) -> None:
    assert len(found["plots"]) > 25
    assert [plot for plot in found["plots"] if plot["marks"] == 0] == []
    assert [plot for plot in found["plots"] if abs(plot["width"] - plot["room"]) > 2] == []


def test_plots_out_of_sight_wait(found: dict[str, Any]) -> None:
    assert 0 < found["drawnAtFirst"] < len(found["plots"]) / 2


def test_what_fails_is_open_at_first(found: dict[str, Any]) -> None:
    assert found["opened"] == ["demo/topk--kl_gap"]


def test_a_cell_of_the_grid_leads_to_its_section(found: dict[str, Any]) -> None:
    cell = found["cell"]
    assert cell["open"]
    assert cell["focused"]
    assert 0 <= cell["top"] < cell["height"] / 2


def test_keys_lead_to_what_needs_attention_and_to_the_filter(found: dict[str, Any]) -> None:
    assert found["next"] == "demo/topk--kl_gap"
    assert found["filtering"] == "filter"


def test_the_table_filters(found: dict[str, Any]) -> None:
    assert (found["everything"], found["judged"]) == (9 + 12 + 8, 6 + 8 + 4)
    assert [row[:2] for row in found["failing"]] == [["demo/topk", "kl_gap.kl_sae"]]
    assert len(found["words"]) == 6
    assert {row[0] for row in found["words"]} == {"demo/topk"}


def test_the_table_sorts_by_number_and_back(found: dict[str, Any]) -> None:
    assert len(found["up"]) == 3
    assert found["up"] == sorted(found["up"])
    assert found["down"] == sorted(found["down"], reverse=True)
    assert found["up"] != found["down"]
    assert found["sorted"] == "ascending"


def test_nothing_is_cut_off_at_400_pixels(browser: Browser, found: dict[str, Any]) -> None:
    browser.size(400, 900)
    narrow = browser.run("window.probeNarrow()")
    assert narrow["width"] <= 400
    assert narrow["overflowing"] == []
    assert narrow["wide"] == []


def test_a_name_with_a_script_in_it_is_text(found: dict[str, Any]) -> None:
    assert BAD in found["texts"]


def test_print_holds_every_plot_and_leaves_the_page_as_it_was(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    opened = "Promise.resolve(document.querySelectorAll('details[open]').length)"
    before = browser.run(opened)
    browser.call("Page.printToPDF", printBackground=True)
    assert browser.run("Promise.resolve(document.querySelectorAll('.plot:not(:has(.main-svg))').length)") == 0
    assert browser.run(opened) == before
    assert browser.run("Promise.resolve(document.documentElement.className)") == ""


def test_a_long_page_is_unpacked_by_its_script(
    browser: Browser, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "LONG", 100)
    path = tmp_path / "report.html"
    path.write_text(html.report_html(make.full(1)), encoding="utf-8")
    assert path.read_text().count(html.PACKED) == 2
    browser.open(path, 1280)
    drawn = "() => document.querySelector('.plot .main-svg') && document.querySelector('#metrics td')"
    assert browser.run(
        f"(async () => {{ while (!({drawn})()) await new Promise((go) => setTimeout(go, 20)); return true; }})()"
    )
    assert browser.of(*WRONG) == []
