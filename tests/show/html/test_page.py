"""``report.html`` and the history page as text: self-contained, escaped, small, and honest about what is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.measurement import Series
from sae_bench.report.records import Acceptance, LoadCheck, SAEResult
from sae_bench.report.report import load_report
from sae_bench.show import terminal
from sae_bench.show.html import page as html
from sae_bench.show.markdown import summary
from tests.support.packed_page import unpacked

FIXTURES = Path(__file__).parents[1] / "fixtures"
VOID = {"meta", "link", "input", "br", "wbr"}


class Page(HTMLParser):
    """Checks that elements are nested, and collects ids, links, script elements and text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [str(found["id"])] if "id" in found else []
        if tag == "a":
            self.links.append(str(found["href"]))
        self.loaded += [str(found[key]) for key in ("src", "href") if key in found and tag != "a"]
        assert not [name for name in found if name.startswith("on")]
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack[-1] == tag, (self.stack, tag)
        self.stack.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """SVG shapes close themselves."""

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "script":
            self.scripts[-1] += data
        elif self.stack and self.stack[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def text(make: Any) -> str:
    report = make.full()
    before = make.report({sae: make.full_sae(sae, row + 1) for row, sae in enumerate(report.saes)})
    return html.report_html(report, accepted=before)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_nothing_is_loaded_and_plotly_is_there_once(page: Page, text: str) -> None:
    assert page.loaded == ["data:,"]
    assert "default-src 'none'" in text
    assert len([each for each in page.scripts if len(each) > 1_000_000]) == 1
    assert len(page.scripts) == 4


def test_every_link_of_the_page_leads_somewhere(page: Page, make: Any) -> None:
    from urllib.parse import unquote

    assert len(set(page.ids)) == len(page.ids)
    inside = {unquote(link[1:]) for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids)
    for sae, result in make.full().saes.items():
        assert {f"{sae}--{name}" for name in result.properties} <= inside
    assert [link for link in page.links if not link.startswith("#")] == [
        f"https://www.neuronpedia.org/gpt2-small/8-res-jb/{feature}" for _ in range(6) for feature in (17, 3)
    ]


def test_every_figure_of_the_page_has_its_data(text: str) -> None:
    figures = unpacked(text, "figures")
    assert re.findall(r'data-figure="(\w+)"', text) == list(figures)
    titles = re.findall(r"<h4>(.*?)</h4>", text)
    for title in ("KL of a token, by condition", "Quantiles of a token&#39;s KL", "Mean KL by position", "t*",
                  "Funnel of token types", "Frequency against gap", "kl_sae of each document, accepted and now",
                  "Cosine to the 100. nearest direction", "Suppression by density", "unheard_of",
                  "Share of tokens on which a feature fires", "L0", "kl_gap.kl_sae against L0"):  # fmt: skip
        assert title in titles


def test_names_are_text_wherever_they_stand(make: Any) -> None:
    bad = "</script><script>alert(1)</script>\"'&<img src=x onerror=alert(1)>\u2028"
    series = {bad: Series("table", {bad: [bad, "a"], "v": [1.0, 2.0]}, bad, bad)}
    result = make.prop(bad, {bad: make.metric(1.0, Verdict.FAIL, message=bad, unit=bad, meaning=bad)},
                       series=series, lines=(bad, bad), notes=(bad, f"{bad}\n{bad}"), context={bad: bad})  # fmt: skip
    run = replace(make.report({}).run, command=bad, options={bad: bad})
    sae = SAEResult({bad: result}, (bad,), {"architecture": bad, "neuronpedia_id": bad}, (LoadCheck(bad, False, bad),))
    report = replace(make.report({}, run), saes={bad: sae})
    page = Page(html.report_html(report, title=bad))
    assert len(page.scripts) == 4
    assert sum("<img src=x onerror=alert(1)>" in word for word in page.words) > 10
    assert [link for link in page.links if not link.startswith("#")] == []


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_a_word_and_a_shape(make: Any, verdict: Verdict) -> None:
    shown = html.report_html(make.report({"a": {"p": make.prop("p", {"m": make.metric(1.0, verdict)})}}))
    assert f"v-{verdict.value.lower()}" in shown
    glyphs = re.findall(rf'class="v v-{verdict.value.lower()}[^"]*">(\S+) (\w+)', shown)
    assert {word.upper() for _, word in glyphs} == {verdict.value}
    assert f".v-{verdict.value.lower()}" in shown


def test_a_wide_grid_says_in_words_what_is_not_calm(make: Any) -> None:
    fine = {f"p{row:02}": make.prop(f"p{row:02}", {"m": make.metric()}) for row in range(html.sections.ROOMY)}
    report = {"a": {**fine, "q": make.prop("q", {"m": make.metric(1.0, Verdict.FAIL)})}}
    grids = [html.report_html(make.report(saes)).partition("class=grid>")[2].partition("</table>")[0]
             for saes in ({"a": fine}, report)]  # fmt: skip
    assert [grid.count(" pass</span>") for grid in grids] == [len(fine), 0]
    assert grids[1].count('aria-label="p00 of a: pass"') == 1
    assert grids[1].count(" FAIL</span>") == 1


def test_what_needs_attention_is_unfolded_and_the_rest_is_not(text: str) -> None:
    opened = re.findall(r'<details class="property( alarm)?" id="([^"]*)"( open)?>', text)
    assert [(name, bool(state)) for alarm, name, state in opened if alarm] == [("demo/topk-1--kl_gap", True)]
    assert not [name for alarm, name, state in opened if not alarm and state]


def test_six_saes_are_small(text: str) -> None:
    assert len(text.encode()) < 8e6


def test_a_hundred_saes_stay_below_thirty_megabytes(make: Any) -> None:
    one = make.full(1).saes["demo/l1-0"].properties
    few, more = (
        len(html.report_html(make.report({f"sae-{row:03}": one for row in range(count)})).encode()) for count in (2, 12)
    )
    assert few + 98 * (more - few) / 10 < 30e6


def test_reports_that_lack_things_say_so(make: Any) -> None:
    assert "nothing was measured" in html.report_html(make.report({}))
    failed = html.report_html(make.report({"a": {"kl_gap": make.failed("kl_gap", "a", "it broke")}, "b": {}}))
    assert "it broke" in failed
    assert "There is no accepted side" in failed
    assert "No property of it was measured" in failed
    assert "which no SAE of this report has both of" in failed
    empty = make.prop("p", {"m": make.metric()}, series={"h": Series("histogram", {"edges": [0, 1], "a": [0]})})
    assert "h: nothing to draw" in html.report_html(make.report({"a": {"p": empty}}))
    partly = make.report({"a": {"p": empty}, "b": {"q": empty}})
    assert html.report_html(partly).count("not run") == 2


def test_documents_are_shown_as_text_those_that_moved_most_first(text: str, make: Any) -> None:
    assert "Documents that changed most" in text
    assert "Documents that lose most" in html.report_html(make.full(1))
    assert 'title="' in re.findall(r'<p class="tokens">.*?</p>', text, re.DOTALL)[0]


def test_a_document_that_moved_has_its_text_also_where_it_loses_least(make: Any) -> None:
    sae = make.full_sae("a", 0)
    result = sae["kl_gap"]
    parts = result.metrics["kl_sae"].per_cluster
    values = [above / below for above, below in zip(parts.numerator, parts.denominator, strict=True)]
    least = values.index(min(values))
    before = replace(parts, numerator=tuple(n * (0.5 if row == least else 1) for row, n in enumerate(parts.numerator)))
    metrics = {**result.metrics, "kl_sae": replace(result.metrics["kl_sae"], per_cluster=before)}
    accepted = make.report({"a": {"kl_gap": replace(result, metrics=metrics)}})
    page = Page(html.report_html(make.report({"a": {"kl_gap": result}}), accepted=accepted))
    assert "1 of 64 documents are worse, 0 better." in page.words
    told = [word for word in page.words if word.startswith("#")]
    assert told == [f"#{least} changed by +{values[least] / 2:.3g}"]
    assert page.words[page.words.index(told[0]) + 2] == f"{least}", "the text begins with the document's number"


def test_where_no_document_moved_none_is_called_moved(make: Any) -> None:
    result = make.full_sae("a", 0)["kl_gap"]
    parts = result.metrics["kl_sae"].per_cluster
    rounded = replace(parts, numerator=tuple(float(f"{n:.6g}") for n in parts.numerator))
    metrics = {**result.metrics, "kl_sae": replace(result.metrics["kl_sae"], per_cluster=rounded)}
    accepted = make.report({"a": {"kl_gap": replace(result, metrics=metrics)}})
    shown = html.report_html(make.report({"a": {"kl_gap": result}}), accepted=accepted)
    assert "None of 64 documents changed." in shown
    assert "moved by" not in shown


def test_every_feature_that_is_named_leads_to_its_dashboard(make: Any) -> None:
    columns = {"feature": [3, 4], "explained_by": ["5, 6", "x, 7"], "cosine": [0.5, 0.25]}
    result = make.prop("orthogonality", {"m": make.metric()}, series={"composed": Series("table", columns)})
    sae = SAEResult({"orthogonality": result}, (), {"neuronpedia_id": "a/b c"})
    for held, wanted in ((sae, [3, 5, 6, 4]), (replace(sae, provenance={}), [])):
        page = Page(html.report_html(replace(make.report({}), saes={"s": held})))
        outside = [link for link in page.links if not link.startswith("#")]
        assert outside == [f"https://www.neuronpedia.org/a/b%20c/{feature}" for feature in wanted]


@pytest.mark.parametrize(("text", "said", "shown"), [("16", "1 load checks are ok", "<details><summary>"),
    ("<9>", "1 of 1 load checks need a look", "<details open><summary>")])  # fmt: skip
def test_load_checks_are_folded_unless_one_is_not_ok(make: Any, text: str, said: str, shown: str) -> None:
    report = make.full(1)
    checks = (LoadCheck("l0", "open" not in shown, text),)
    saes = {sae: replace(each, load_checks=checks) for sae, each in report.saes.items()}
    page = html.report_html(replace(report, saes=saes))
    assert f"{shown}{said}</summary>" in page
    assert text.replace("<", "&lt;").replace(">", "&gt;") in page


def test_text_that_cannot_be_read_says_so(make: Any) -> None:
    broken = Series("table", {"documents": [1], "packed": ["?"]})
    shown = html.report_html(make.report({"a": {"p": make.prop("p", {"m": make.metric()}, series={"t": broken})}}))
    assert "The text of the documents cannot be read." in shown


def test_history_has_a_picture_a_metric_and_says_who_and_why(make: Any) -> None:
    entries = []
    for day in (2, 1, 3):
        held = make.prop("kl_gap", {"kl_sae": make.metric(0.1 * day), "kl_iso": make.reported(1.0)})
        taken = Acceptance("ann", f"2026-11-0{day}T00:00:00Z", f"why <{day}>")
        report = make.report({"a": {"kl_gap": replace(held, acceptance=taken)}})
        entries.append(html.AcceptedAt(f"{day}" * 40, f"2026-11-0{day}T00:00:00Z", report))
    text = html.history_page(entries)
    page = Page(text)
    (figure,) = unpacked(text, "figures").values()
    assert figure["data"][0]["y"] == [0.1, 0.2, 0.3]
    assert "why <3>" in page.words
    assert "no accepted report" in html.history_page([])


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.name)
def test_old_reports_are_still_shown(path: Path) -> None:
    report = load_report(path)
    text = html.report_html(report)
    page = Page(text)
    assert len(unpacked(text, "figures")) > 10
    for sae in report.saes:
        assert sae in terminal.summary(report)
        assert sae in summary(report)
        assert any(sae in word for word in page.words)
    assert terminal.verdict_line(report).startswith("FAIL: 1 fail")


def test_there_is_a_fixture_of_every_schema() -> None:
    from sae_bench.report.records import SCHEMA

    assert [path.stem for path in sorted(FIXTURES.glob("*.json"))] == [f"schema-{n + 1}" for n in range(SCHEMA)]
