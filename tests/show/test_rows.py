"""What has no value: said once, in a line a reason, and never in the way of what must be seen."""

from __future__ import annotations

from typing import Any

import pytest

from sae_bench.judge.verdicts import Verdict
from sae_bench.show import github, markdown
from sae_bench.show.html.page import report_html
from sae_bench.show.rows import WITHOUT_ANY, WITHOUT_SOME, count_line, undefined, worth_showing
from sae_bench.show.terminal import summary

WHY = "no prompts of a circuit are registered: register_sae(..., circuit='prompts.jsonl')"


def nothing(make: Any, name: str, why: str = WHY, *, detail: str = "", metrics: int = 21, limited: int = 1) -> Any:
    """A property without any value, as an SAE without labelled data has several."""
    found = {"kept": "", **{f"m{row:02}": "max:1" if row < limited else "" for row in range(metrics)}}
    return make.prop(name, {metric: without(make, why, limit, detail) for metric, limit in found.items()})


def without(make: Any, why: str, limit: str = "", detail: str = "") -> Any:
    return make.metric(None, Verdict.UNDEFINED, limit=limit, reason=why, detail=detail)


def lines_below(text: str, heading: str) -> list[str]:
    """The entries of a list of the terminal's summary, each joined to one line."""
    entries: list[str] = []
    for line in text.partition(f"\n{heading}:\n")[2].splitlines():
        if not line.startswith("  "):
            break
        if line.startswith("   "):
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line.strip())
    return entries


@pytest.mark.parametrize("saes", [1, 6])
def test_a_property_without_any_value_is_one_line_however_many_metrics_and_saes(make: Any, saes: int) -> None:
    held = {"circuits": nothing(make, "circuits"), "p": make.prop("p", {"m": make.metric()})}
    report = make.report({f"demo/{row}": held for row in range(saes)})
    text = summary(report)
    of = " of all 6 SAEs" if saes > 1 else ""
    assert lines_below(text, "not measured (undefined)") == [f"circuits{of}: {WHY}"]
    assert text.count("circuits") == 1
    assert text.count("no prompts of a circuit") == 1
    assert f"{WITHOUT_SOME}:" not in text


def test_seven_properties_without_values_leave_the_table_to_the_others(make: Any) -> None:
    held = {f"q{row}": nothing(make, f"q{row}", f"reason {row}: do this {row}") for row in range(7)}
    text = summary(make.report({"a": {**held, "kl_gap": make.prop("kl_gap", {"kl_sae": make.metric()})}}))
    table, _, rest = text.partition("not measured (undefined):")
    assert "kl_gap.kl_sae" in table
    assert "q0" not in table
    assert len(lines_below(text, WITHOUT_ANY)) == 7
    assert len(text.splitlines()) < 20
    assert "7 undefined" in rest, "the counts are of limits, as before"


def test_summary_and_page_say_it_as_briefly(make: Any) -> None:
    report = make.report({"a": {"circuits": nothing(make, "circuits"), "p": make.prop("p", {"m": make.metric()})}})
    text = markdown.summary(report)
    assert "\n\nNot measured (undefined):\n\n- circuits: no prompts of a circuit are registered" in text
    assert text.count("circuit are registered") == 1
    assert text.count("circuits") == 1, "no column of headlines, no row of metrics"
    front = report_html(report).partition("<h2 id=changes>")[2].partition("<div id=saes>")[0]
    assert front.count("<li>circuits: no prompts of a circuit are registered") == 1
    assert front.count("circuits") == 1


def test_headlines_keep_what_one_sae_has_a_value_of(make: Any) -> None:
    measured = make.prop("circuits", {"kept": make.metric()})
    text = markdown.summary(make.report({"a": {"circuits": nothing(make, "circuits")}, "b": {"circuits": measured}}))
    assert "| SAE | `circuits.kept` |" in text
    assert "| `a` | undefined |" in text


def test_saes_are_named_until_there_are_too_many(make: Any) -> None:
    def report(lacking: int, saes: int) -> Any:
        measured = {"width": make.prop("width", {"kept": make.metric()})}
        return make.report({f"s{row}": {"width": nothing(make, "width")} if row < lacking else measured
                            for row in range(saes)})  # fmt: skip

    assert undefined(report(1, 2)) == {WITHOUT_ANY: [f"width of s0: {WHY}"]}
    assert undefined(report(4, 6)) == {WITHOUT_ANY: [f"width of s0, s1, s2, s3: {WHY}"]}
    assert undefined(report(6, 8)) == {WITHOUT_ANY: [f"width of s0, s1, s2, s3, +2 more: {WHY}"]}
    assert [row.sae for row in worth_showing(report(1, 2))] == ["s1"]


def test_reasons_that_differ_in_an_saes_numbers_share_a_line(make: Any) -> None:
    held = {sae: {"q": nothing(make, "q", "too few", detail=f"{sae} of 10")} for sae in ("3", "4")}
    assert undefined(make.report(held)) == {WITHOUT_ANY: ["q of all 2 SAEs: too few"]}


def test_two_reasons_are_two_lines(make: Any) -> None:
    rare, few = "fewer than two types: add documents", "only 0 types"
    metrics = {"share": without(make, rare), "sd": without(make, rare), "correlation": without(make, few)}
    report = make.report({"a": {"tokens": make.prop("tokens", metrics)}})
    assert undefined(report) == {WITHOUT_ANY: [f"tokens.{{share, sd}}: {rare}", f"tokens.correlation: {few}"]}
    assert "tokens.share" not in summary(report)


def test_properties_of_one_reason_share_a_line(make: Any) -> None:
    """Without the model, most of them have no value."""
    held = {name: nothing(make, name, "needs the model") for name in ("circuits", "contrast", "kl_gap")}
    assert undefined(make.report({"a": held})) == {WITHOUT_ANY: ["circuits, contrast, kl_gap: needs the model"]}
    apart = make.report({"a": held, "b": {"kl_gap": held["kl_gap"], "p": make.prop("p", {"m": make.metric()})}})
    assert undefined(apart) == {
        WITHOUT_ANY: ["circuits, contrast of a: needs the model", "kl_gap of all 2 SAEs: needs the model"]
    }


def test_of_a_measured_property_at_most_four_metrics_are_named_those_of_the_table_first(make: Any) -> None:
    many = {f"a{row:02}": without(make, WHY) for row in range(20)}
    limits = {"z_limited": without(make, WHY, "max:1"), "head": without(make, WHY), "fine": make.metric()}
    report = make.report({"a": {"steering": make.prop("steering", {**many, **limits}, primary_metric="head")}})
    assert undefined(report) == {WITHOUT_SOME: [f"steering.{{head, z_limited, a00, a01, +18 more}}: {WHY}"]}
    four = {**dict(list(many.items())[:4]), "fine": make.metric()}
    assert undefined(make.report({"a": {"p": make.prop("p", four, primary_metric="fine")}})) == {
        WITHOUT_SOME: [f"p.{{a00, a01, a02, a03}}: {WHY}"]
    }
    text = summary(report)
    for name in ("steering.head", "steering.z_limited"):
        assert next(line for line in text.splitlines() if name in line).endswith("undefined")
    assert text.count("no prompts of a circuit") == 1


def test_a_value_that_was_lost_stays_loud(make: Any) -> None:
    lost = make.metric(None, Verdict.MISSING, message="circuits.m00 of a was accepted at 1 but has no value now")
    held = dict(nothing(make, "circuits").metrics)
    report = make.report({"a": {"circuits": make.prop("circuits", {**held, "m00": lost}, primary_metric="kept")}})
    text = summary(report)
    assert "MISSING" in next(line for line in text.splitlines() if "circuits.m00" in line)
    assert "was accepted at 1 but has no value now" in text
    assert WITHOUT_ANY not in undefined(report)
    assert "**MISSING**" in markdown.summary(report).partition("<details>")[0]
    assert len(github.error_lines(report)) == 1


def test_a_reported_value_that_was_lost_keeps_its_row(make: Any) -> None:
    """No limit is about it, so it isn't MISSING; what was accepted stands beside it all the same."""
    gone = make.metric(None, Verdict.UNDEFINED, limit="", better="reported", accepted=0.91, reason="no cycle")
    report = make.report({"a": {"circles": make.prop("circles", {"kept": gone})}})
    shown = next(line for line in summary(report).splitlines() if "circles.kept" in line)
    assert "0.910" in shown
    assert shown.endswith("undefined")
    assert undefined(report) == {WITHOUT_SOME: ["circles.kept: no cycle"]}


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.ERROR, Verdict.NEW, Verdict.INCONCLUSIVE, Verdict.PASS])
def test_rows_beside_it_are_as_they_were(make: Any, verdict: Verdict) -> None:
    other = {"p": make.prop("p", {"m": make.metric(0.04, verdict)})}
    alone, beside = make.report({"a": other}), make.report({"a": {**other, "circuits": nothing(make, "circuits")}})
    assert worth_showing(beside) == worth_showing(alone)
    assert github.error_lines(beside) == github.error_lines(alone)
    words = sorted([f"1 {verdict.value.lower()}", "1 undefined"])
    assert sorted(count_line(beside).split(" · ")) == words


def test_nothing_but_undefined_needs_no_table(make: Any) -> None:
    text = summary(make.report({"a": {"circuits": nothing(make, "circuits")}}))
    assert "verdict" not in text
    assert lines_below(text, WITHOUT_ANY) == [f"circuits: {WHY}"]
    assert "1 undefined" in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_lines_fit(make: Any, width: int) -> None:
    some = {"share": make.metric(), **{f"persistence_correlation_{row}": without(make, WHY) for row in range(9)}}
    held = {"circuits": nothing(make, "circuits"), "layers": make.prop("layers", some)}
    text = summary(make.report({f"demo/a-name-of-some-length-{row}": held for row in range(2)}), width=width)
    told = text.partition(f"{WITHOUT_ANY}:")[2].partition("\n2 undefined")[0].splitlines()
    assert len(told) > 6
    assert max(map(len, told)) <= width
