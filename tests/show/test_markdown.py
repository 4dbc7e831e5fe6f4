"""``summary.md``, the job summary and GitHub's annotations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sae_bench.judge.verdicts import Verdict
from sae_bench.report.report import write_report
from sae_bench.show import github, markdown
from sae_bench.show.html.page import report_html


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_is_shown(make: Any, verdict: Verdict) -> None:
    report = make.report({"a": {"kl_gap": make.prop("kl_gap", {"kl_sae": make.metric(0.04, verdict)})}})
    text = markdown.summary(report)
    assert verdict.value.lower() in text.lower()
    assert ("| `a` | `kl_gap.kl_sae` |" in text) == (verdict not in (Verdict.PASS, Verdict.UNDEFINED))


@pytest.mark.parametrize("limit", ["5%", ""])
def test_what_had_no_value_and_has_none_is_no_change(make: Any, limit: str) -> None:
    """One that had a value is MISSING; this one is told in a sentence, whether a limit is about it or not."""
    metrics = {"kl_per_doubling": make.metric(None, Verdict.UNDEFINED, limit=limit, reason="no other sizes")}
    report = make.report({"a": {"width": make.prop("width", metrics), "p": make.prop("p", {"m": make.metric()})}})
    text = markdown.summary(report)
    assert "Everything that was judged passes." in text
    assert "Not measured (undefined):\n\n- width: no other sizes\n" in text
    assert text.count("no other sizes") == 1
    page = report_html(report)
    changes = page.partition("<h2 id=changes>")[2].partition("<div id=saes>")[0]
    assert "Everything that was judged passes" in changes
    assert "Not measured (undefined):</p><ul class=quiet><li>width: no other sizes</li></ul>" in changes
    gone = make.metric(None, Verdict.MISSING, message="width.kl_per_doubling of a was accepted at 1 but has none")
    lost = make.report({"a": {"width": make.prop("width", {"kl_per_doubling": gone})}})
    assert "**MISSING**" in markdown.summary(lost).partition("<details>")[0]


def test_the_worst_comes_first_and_the_rest_is_folded(make: Any) -> None:
    text = markdown.summary(make.full(), report_path="reports/x/report.html")
    assert text.startswith("## SAE quality: FAIL: 1 fail")
    words = re.findall(r"\| (\**\w+\**) \|$", text.partition("<details>")[0], re.MULTILINE)
    assert words[:3] == ["verdict", "**FAIL**", "inconclusive"]
    assert text.count("<details>") == text.count("</details>") == 4
    assert re.search(r"^\| `demo/topk-1` \| [\d.]+ ±[\d.]+ \*\*FAIL\*\* \|", text, re.MULTILINE)
    assert "`kl_gap.kl_isotropic`" not in text.partition("<details>")[0]
    assert "`kl_gap.kl_isotropic`" in text
    assert "reports/x/report.html" in text


def test_primary_metrics_of_all_saes_are_one_table(make: Any) -> None:
    folded = markdown.summary(make.full()).split("<details>")[1]
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in folded.splitlines() if row.startswith("| ")}
    head = [cell.strip() for cell in rows.pop("SAE")]
    assert head == ["`kl_gap.kl_sae`", "`orthogonality.nn1`", "`reconstruction.fvu`", "`shrinkage.gamma_centred`",
                    "`something_else.amount`", "`sparsity.l0`"]  # fmt: skip
    assert list(rows) == [f"`{sae}`" for sae in sorted(make.full().saes)]
    cells = [cell.strip() for cell in rows["`demo/l1-0`"]]
    assert cells == ["0.0449 ±.0013", "0.500", "0.200 ±.0013", "1.10 ±.0013 known", "3.00 ±.0013", "20.0 ±.20"]
    assert rows["`demo/topk-1`"][0].endswith("**FAIL** ")


def test_all_metrics_are_a_line_each_with_a_column_an_sae(make: Any) -> None:
    _, _, _, judged, reported = markdown.summary(make.full(3)).split("<details>")
    lines = judged.splitlines()
    assert lines[0].startswith("<summary>All 24 judged metrics")
    assert "|metric|allowed|`demo/batchtopk-2`|`demo/l1-0`|`demo/topk-1`|" in lines
    kl = next(line for line in lines if line.startswith("|`kl_gap.kl_sae`|"))
    assert kl == "|`kl_gap.kl_sae`|≤ +5%|0.0649 (+6.0%) inconclusive|0.0449 (+8.8%)|0.0549 (+7.1%) **FAIL**|"
    assert "|`kl_gap.kl_level`|≤ 0.25|0.100|0.100|0.100|" in lines
    assert "|`kl_gap.kl_isotropic`|0.0200|0.0200|0.0200|" in reported
    assert "kl_isotropic" not in judged
    assert "tail_rank" not in reported, "nobody has a value of it, which is said above"
    without = make.report({"a": {"p": make.prop("p", {"m": make.metric(), "n": make.metric(limit="1%")})},
                           "b": {"p": make.prop("p", {"m": make.metric(limit="9%")})}})  # fmt: skip
    text = markdown.summary(without)
    assert "|`p.m`|≤ +5% / ≤ +9%|" in text
    assert re.search(r"^\|`p\.n`\|≤ \+1%\|[^|]+\|\|$", text, re.MULTILINE)


def test_what_is_said_of_several_saes_is_said_once(make: Any) -> None:
    def sae(needed: int) -> Any:
        undecided = make.metric(1.0, Verdict.INCONCLUSIVE, needed_documents=needed)
        return {"p": make.prop("p", {"m": undecided})}

    text = markdown.summary(make.report({"a": sae(60), "b": sae(60), "c": sae(108)}))
    assert "- `p.m` of `a`, `b`: about 60 documents would decide\n" in text
    assert "- `p.m` of `c`: about 108 documents would decide\n" in text
    both = markdown.summary(make.report({"a": sae(60), "b": sae(60)}))
    assert "- `p.m` of all 2 SAEs: about 60 documents would decide\n" in both
    assert "- `p.m` of `a`: about" in markdown.summary(make.report({"a": sae(60)}))


def _large(make: Any, saes: int, reported: int = 20) -> Any:
    """Of 17 properties with names as long as ours: three metrics are judged in each."""
    others = {f"reported_{row:02}_under_a_name": make.reported(0.0123 * (row + 1)) for row in range(reported)}
    judged = {name: make.metric(0.0449) for name in ("judged_one", "judged_two", "judged_three")}
    found = {f"property_{row:02}": make.prop(f"property_{row:02}", {**judged, **others}) for row in range(17)}
    return make.report({f"demo/sae-number-{row:03}": found for row in range(saes)})


def test_six_saes_are_short_enough_to_be_read(make: Any) -> None:
    report = _large(make, 6)
    text = markdown.summary(report, report_path="reports/x/report.html")
    assert sum(len(each.metrics) for sae in report.saes.values() for each in sae.properties.values()) == 2346
    assert len(text.encode()) < 40_000
    assert "Left out" not in text
    assert text.count("<details>") == 4


@pytest.mark.parametrize(("saes", "left_out"), [
    (30, "reported metrics"), (60, "judged metrics, reported metrics"),
    (400, "primary metrics, judged metrics, reported metrics"),
])  # fmt: skip
def test_many_saes_still_fit_into_a_comment(make: Any, saes: int, left_out: str) -> None:
    text = markdown.summary(_large(make, saes))
    assert len(text) < 65_536
    assert f"Left out, so that this fits a comment: {left_out}." in text
    assert text.count("<details>") == text.count("</details>") == 4 - len(left_out.split(", "))
    assert "Provenance of this run" in text


def test_equal_reports_in_another_order_give_equal_text(make: Any) -> None:
    report = make.full(4)
    turned = make.report({sae: dict(reversed(list(each.properties.items()))) for sae, each in
                          reversed(list(report.saes.items()))}, report.run)  # fmt: skip
    assert markdown.summary(turned) == markdown.summary(make.report(
        {sae: each.properties for sae, each in report.saes.items()}, report.run))  # fmt: skip


def test_every_table_row_has_as_many_cells_as_its_head(make: Any) -> None:
    sae = "a|b`c"
    why = "x | y\nz <b> @someone #12 *bold* [link](http://x)"
    known = make.metric(1.0, Verdict.KNOWN, known_reason=why)
    text = markdown.summary(make.report({sae: {"p|q": make.prop("p|q", {"m|n": known})}}))
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert widths == {9, 4, 3}
    for part in ("<b>", "@someone", "\nz", "](http"):
        assert part not in text.replace("\\]", "")
    assert "&#60;b&#62; &#64;someone" in text


def test_reports_that_lack_things_say_so(make: Any) -> None:
    assert "nothing was measured" in markdown.summary(make.report({}))
    failed = make.report({"a": {"kl_gap": make.failed("kl_gap", "a", "it broke")}})
    assert "it broke" in markdown.summary(failed)
    assert "**ERROR**" in markdown.summary(failed)
    passing = make.report({"a": {"kl_gap": make.prop("kl_gap", {"m": make.metric()})}})
    assert "Everything that was judged passes." in markdown.summary(passing)


def test_the_job_summary_is_appended_only_where_there_is_one(make: Any, tmp_path: Path) -> None:
    target, lines = tmp_path / "summary.md", []
    target.write_text("before\n")
    github.publish(make.full(2), environ={}, write=lines.append)
    assert target.read_text() == "before\n"
    assert lines == []
    github.publish(make.full(2), environ={"GITHUB_STEP_SUMMARY": str(target)}, write=lines.append)
    assert target.read_text() == "before\n" + markdown.summary(make.full(2))
    assert lines == []
    github.publish(make.full(2), environ={"GITHUB_ACTIONS": "true"}, write=lines.append)
    assert len(lines) == 1
    github.publish(make.full(2), environ={"GITHUB_ACTIONS": "true"}, write=lines.append, annotate=False)
    assert len(lines) == 1


@pytest.mark.parametrize("already", [0, 20_000, 39_990, 80_000])
def test_the_job_summary_stays_below_what_github_drops(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, already: int
) -> None:
    assert github.SUMMARY_BYTES < 1024 * 1024
    monkeypatch.setattr(github, "SUMMARY_BYTES", 40_000)
    target = tmp_path / "summary.md"
    target.write_text("é" * (already // 2))
    failing = {f"p{row}": make.prop(f"p{row}", {"m": make.metric(1.0, Verdict.FAIL)}) for row in range(20)}
    github.append_summary(make.report({f"sae-{row}": failing for row in range(30)}), target)
    size = target.stat().st_size
    assert size <= max(github.SUMMARY_BYTES, already)
    target.read_text(encoding="utf-8")
    if already <= 20_000:
        assert size > 39_000
        assert "may not be longer" in target.read_text()


def test_at_most_ten_annotations_worst_first_and_the_last_counts_the_rest(make: Any) -> None:
    verdicts = [Verdict.FAIL] * 20 + [Verdict.ERROR] + [Verdict.MISSING] * 3 + [Verdict.PASS, Verdict.KNOWN]
    report = make.report({f"sae{row:02}": {"kl_gap": make.prop("kl_gap", {"m": make.metric(1.0, verdict)})}
                          for row, verdict in enumerate(verdicts)})  # fmt: skip
    lines = github.error_lines(report)
    assert len(lines) == 10
    assert lines[0].startswith("::error title=ERROR kl_gap.m of sae20::")
    assert all("title=FAIL" in line for line in lines[1:])
    assert lines[-1].endswith("(+ 14 more in the summary)")


def test_annotations_escape_what_github_reads_as_syntax(make: Any) -> None:
    message = "100% worse\nsecond line\r::error::no"
    found = make.metric(1.0, Verdict.FAIL, message=message)
    (line,) = github.error_lines(make.report({"a:b,c": {"p": make.prop("p", {"m": found})}}))
    assert line == "::error title=FAIL p.m of a%3Ab%2Cc::100%25 worse%0Asecond line%0D::error::no"


def test_annotations_point_at_the_accepted_reports_line(make: Any, tmp_path: Path) -> None:
    held = {
        "kl_gap": make.prop("kl_gap", {"kl_sae": make.metric()}),
        "sparsity": make.prop("sparsity", {"kl_sae": make.metric(), "l0": make.metric(2.0, Verdict.FAIL)}),
    }
    report = make.report({"demo/l1": held})
    path = tmp_path / "demo" / "l1.json"
    write_report(report, path)
    (line,) = github.error_lines(report, tmp_path)
    number = int(re.search(r"line=(\d+)", line)[1])  # type: ignore[index]
    assert path.read_text().splitlines()[number - 1].strip() == '"l0": {'
    inside = json.loads(path.read_text())["saes"]["demo/l1"]["properties"]
    assert "l0" in inside["sparsity"]["metrics"]
    assert f"file={tmp_path.as_posix()}/demo/l1.json" in line
