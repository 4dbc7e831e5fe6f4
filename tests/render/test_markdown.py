"""``summary.md``, the job summary and GitHub's annotations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sae_bench.outcome import Verdict
from sae_bench.render import github, markdown
from sae_bench.report import write_report


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_is_shown(make: Any, verdict: Verdict) -> None:
    report = make.report({"a": {"kl_gap": make.prop("kl_gap", {"kl_sae": make.metric(0.04, verdict)})}})
    text = markdown.summary(report)
    assert verdict.value.lower() in text.lower()
    assert ("| `a` | `kl_gap.kl_sae` |" in text) == (verdict is not Verdict.PASS)


def test_the_worst_comes_first_and_the_rest_is_folded(make: Any) -> None:
    text = markdown.summary(make.full(), report_path="reports/x/report.html")
    assert text.startswith("## SAE quality: FAIL: 1 fail")
    words = re.findall(r"\| (\**\w+\**) \|$", text.partition("<details>")[0], re.MULTILINE)
    assert words[:3] == ["verdict", "**FAIL**", "inconclusive"]
    assert text.count("<details>") == text.count("</details>") == 3
    assert re.search(r"^\| `demo/topk-1` \| \*\*FAIL\*\* \|", text, re.MULTILINE)
    assert "`kl_gap.kl_isotropic`" not in text.partition("<details>")[0]
    assert "`kl_gap.kl_isotropic`" in text
    assert "reports/x/report.html" in text


def test_equal_reports_in_another_order_give_equal_text(make: Any) -> None:
    report = make.full(4)
    turned = make.report({sae: dict(reversed(list(each.properties.items()))) for sae, each in
                          reversed(list(report.saes.items()))}, report.run)  # fmt: skip
    assert markdown.summary(turned) == markdown.summary(make.report(
        {sae: each.properties for sae, each in report.saes.items()}, report.run))  # fmt: skip


def test_every_table_row_has_as_many_cells_as_its_head(make: Any) -> None:
    sae = "a|b`c"
    why = "x | y\nz <b> @someone #12 *bold* [link](http://x)"
    known = make.metric(1.0, Verdict.KNOWN, message=f"m; known: {why}")
    text = markdown.summary(make.report({sae: {"p|q": make.prop("p|q", {"m|n": known})}}))
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert widths == {9, 8, 3}
    for part in ("<b>", "@someone", "\nz", "](http"):
        assert part not in text.replace("\\]", "")
    assert "&#60;b&#62; &#64;someone" in text


def test_reports_that_lack_things_say_so(make: Any) -> None:
    assert "nothing was measured" in markdown.summary(make.report({}))
    failed = make.report({"a": {"kl_gap": make.failed("kl_gap", "a", "it broke")}})
    assert "it broke" in markdown.summary(failed)
    assert "**ERROR**" in markdown.summary(failed)
    passing = make.report({"a": {"kl_gap": make.prop("kl_gap", {"m": make.metric()})}})
    assert "as it was accepted" in markdown.summary(passing)


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
