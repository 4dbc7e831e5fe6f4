"""The table at the end of a run and ``--sae-list``."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.registry.spec import SAESpec
from sae_bench.report.records import Difference, Verdict
from sae_bench.report.report import write_report
from sae_bench.show.rows import verdict_line
from sae_bench.show.terminal import listing, summary

COMMAND = 'pytest benchmarks/ --sae {} --sae-accept --sae-accept-reason "..."'


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if name in line)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_is_shown_and_loud_only_where_somebody_must_act(make: Any, verdict: Verdict, width: int) -> None:
    metrics = {"kl_sae": make.metric(0.04, verdict), "ce_gap": make.metric()}
    report = make.report({"a/b": {"kl_gap": make.prop("kl_gap", metrics)}})
    shown = row(summary(report, width=width), "kl_gap.kl_sae")
    loud = verdict in (Verdict.FAIL, Verdict.ERROR, Verdict.MISSING, Verdict.INCOMPARABLE)
    assert (verdict.value if loud else verdict.value.lower()) in shown


def test_inconclusive_is_loud_beyond_its_limit_and_says_what_would_decide(make: Any) -> None:
    for exceeds_limit, word in ((True, "INCONCLUSIVE"), (False, "inconclusive")):
        found = make.metric(0.04, Verdict.INCONCLUSIVE, exceeds_limit=exceeds_limit, needed_documents=310)
        text = summary(make.report({"a": {"kl_gap": make.prop("kl_gap", {"kl_sae": found})}}))
        assert word in text
        assert "about 310 documents would decide" in text


def test_a_row_has_accepted_now_change_interval_and_limit(make: Any) -> None:
    report = make.report({"a": {"kl_gap": make.prop("kl_gap", {"kl_sae": make.metric(0.0449, Verdict.FAIL)})}})
    shown = row(summary(report), "kl_gap.kl_sae")
    for part in ("↓", "nats", "0.0412", "0.0449 ±.0013", "+9.0%", "[+6.1, +11.9]", "≤ +5%", "FAIL"):
        assert part in shown


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_lines_fit_and_nothing_is_coloured_unless_asked(make: Any, width: int) -> None:
    text = summary(make.full(), width=width, report_path="reports/20261120T092037-4f2c1ab/report.html")
    too_long = [line for line in text.splitlines() if len(line) > width and "--sae-accept" not in line]
    assert not [line for line in too_long if width >= 80]
    assert "\x1b" not in text
    coloured = summary(make.full(), width=width, color=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()[4:20] == text.splitlines()[4:20]


def test_when_all_passes_six_saes_fit_one_screen(make: Any) -> None:
    properties = {name: make.prop(name, {"m": make.metric()}) for name in ("kl_gap", "reconstruction", "sparsity")}
    text = summary(make.report({f"demo/sae{row}": properties for row in range(6)}))
    assert len(text.splitlines()) <= 34
    assert text.count("pass") == 18 + 1


def test_only_primary_metrics_and_what_does_not_pass_get_a_line(make: Any) -> None:
    metrics = {
        "kl_sae": make.metric(),
        "ce_gap": make.metric(0.1, Verdict.FAIL),
        "kl_level": make.metric(0.2),
        "kl_isotropic": make.reported(0.1),
    }
    text = summary(make.report({"a": {"kl_gap": make.prop("kl_gap", metrics)}}))
    assert "kl_gap.kl_sae" in text
    assert "kl_gap.ce_gap" in text
    assert "kl_level" not in text
    assert "kl_isotropic" not in text


def test_the_count_line_counts_judged_metrics_and_errors_worst_first(make: Any) -> None:
    report = make.report(
        {
            "a": {
                "kl_gap": make.prop("kl_gap", {"x": make.metric(1.0, Verdict.FAIL), "y": make.metric()}),
                "sparsity": make.failed("sparsity", "a", "it broke"),
                "other": make.prop("other", {"z": make.reported(1.0)}, verdict=None),
            }
        }
    )
    assert "1 error · 1 fail · 1 pass" in summary(report)
    assert verdict_line(report) == "ERROR: 1 error · 1 fail · 1 pass"


def test_an_sae_that_cannot_be_loaded_says_so_once(make: Any) -> None:
    why = "SAE 'a' (conftest.py:3): cfg.json lacks d_in; add it"
    names = ("kl_gap", "reconstruction", "sparsity")
    text = summary(make.report({"a": {name: make.failed(name, "a", why) for name in names}}))
    assert text.count("cfg.json lacks d_in") == 1
    assert "kl_gap, reconstruction, sparsity:" in text
    assert "3 properties" in text
    assert "3 error" in text


def test_known_shows_its_reason_and_undefined_is_listed_with_its_own(make: Any) -> None:
    text = summary(make.full())
    assert text.count("known: L1 penalty, issue 12") == 6
    assert "undefined metrics:\n  kl_gap.tail_rank of all 6 SAEs: only in the full tier\n" in text


def test_new_metrics_share_the_line_of_their_primary_metric(make: Any) -> None:
    metrics = {"kl_sae": make.new(), "ce_gap": make.new(), "kl_level": make.metric(0.1, limit="max:0.25")}
    text = summary(make.report({"a": {"kl_gap": make.prop("kl_gap", metrics)}}))
    assert "new (+1)" in row(text, "kl_gap.kl_sae")
    assert "ce_gap" not in text


def test_incomparable_lists_what_differs_once(make: Any) -> None:
    metrics = {name: make.metric(0.1, Verdict.INCOMPARABLE) for name in ("kl_sae", "ce_gap")}
    differences = (Difference("corpus", "x", "y"),)
    text = summary(make.report({"a": {"kl_gap": make.prop("kl_gap", metrics, differences=differences)}}))
    assert text.count("corpus: 'x' now, 'y' accepted") == 1
    assert "INCOMPARABLE (+1)" in text


def test_the_accept_command_names_what_is_new_or_better_and_nothing_worse(make: Any) -> None:
    new = {"kl_gap": make.prop("kl_gap", {"m": make.new()})}
    assert COMMAND.format("'a/b'") in summary(make.report({"a/b": new}))
    assert COMMAND.format("'a/b' --sae 'c'") in summary(make.report({"a/b": new, "c": new}))
    worse = {**new, "sparsity": make.prop("sparsity", {"m": make.metric(1.0, Verdict.FAIL)})}
    assert COMMAND.format("'a/b' --sae-property kl_gap") in summary(make.report({"a/b": worse}))
    mixed = make.prop("kl_gap", {"m": make.metric(1.0, Verdict.IMPROVED), "n": make.metric(1.0, Verdict.FAIL)})
    assert "--sae-accept" not in summary(make.report({"a/b": {"kl_gap": mixed}}))
    passing = make.prop("kl_gap", {"m": make.metric()})
    assert "--sae-accept" not in summary(make.report({"a/b": {"kl_gap": passing}}))


def test_report_path_and_slowest_property(make: Any) -> None:
    report = make.report({"a": {"quick": make.prop("quick", {"m": make.metric()}, seconds=1.0),
                                "slow": make.prop("slow", {"m": make.metric()}, seconds=20.0)}})  # fmt: skip
    text = summary(report, report_path="reports/x/report.html")
    assert "report: reports/x/report.html" in text
    assert "slowest: slow of a, 20.0 s of 123 s" in text


def test_reports_that_lack_things_say_so(make: Any) -> None:
    assert "nothing was measured" in summary(make.report({}))
    assert "nothing was measured" in summary(make.report({"a": {}}))
    alone = make.report({"a": {"kl_gap": make.prop("kl_gap", {"m": make.new()})}})
    assert "nothing compared with accepted/" in summary(alone, baselines="accepted")
    assert "accepted" not in row(summary(alone), "verdict")
    bare = make.prop("kl_gap", {}, verdict=None, context={}, confidence=None, seconds=None, clusters=())
    assert "nothing is recorded about it" in summary(make.report({"a": {"kl_gap": bare}}))


def test_escape_sequences_in_a_report_do_not_reach_the_terminal(make: Any) -> None:
    report = make.report({"a": {"kl_gap": make.failed("kl_gap", "a", "\x1b[2J gone \x07")}})
    assert "\x1b[2J" not in summary(report)
    assert "\x07" not in summary(report, color=True)


@settings(max_examples=25, deadline=None)
@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    limit=st.sampled_from(["5%", "2se", "max:1", "min:-1"]),
)
def test_any_number_has_a_row(make: Any, value: float, limit: str) -> None:
    found = make.metric(value, Verdict.PASS, limit=limit, change=value, interval=(value, value + abs(value)))
    assert "pass" in summary(make.report({"a": {"p": make.prop("p", {"m": found})}}), width=80)


def test_rendering_needs_neither_torch_nor_plotly_nor_pandas(make: Any) -> None:
    import subprocess

    code = (
        "import sys; import sae_bench.show.terminal, sae_bench.show.markdown, sae_bench.show.github, "
        "sae_bench.show.html.page; print([m for m in ('torch', 'plotly', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listing_says_what_is_registered_and_what_is_accepted(make: Any, tmp_path: Path) -> None:
    specs = [
        SAESpec("demo/l1", path="saes/l1", model="gpt2", site="blocks.1.hook_resid_post", origin="conftest.py:4",
                tags=("stage:demo",), known_failures={"shrinkage.gamma_centred": "L1 penalty"}),
        SAESpec("demo/topk", load=lambda: None, origin="conftest.py:9"),
    ]  # fmt: skip
    held = make.report({"demo/l1": {"kl_gap": make.prop("kl_gap", {"m": make.metric()})}})
    write_report(held, tmp_path / "demo" / "l1.json")
    text = listing(specs, ["kl_gap", "sparsity"], tmp_path)
    for part in ("2 SAEs, 2 properties", "conftest.py:4", "saes/l1", "gpt2", "blocks.1.hook_resid_post", "stage:demo",
                 "shrinkage.gamma_centred (L1 penalty)", "l1.json, without sparsity", "no report (", "load=...",
                 "kl_gap, sparsity"):  # fmt: skip
        assert part in text
    (tmp_path / "demo" / "topk.json").write_text("{")
    assert "is not complete JSON" in listing(specs, ["kl_gap"], tmp_path)
    assert "no SAE is registered" in listing([], [], tmp_path)


def test_a_report_that_an_older_version_wrote_without_optional_fields_is_shown(make: Any) -> None:
    report = make.full(1)
    name = next(iter(report.saes))
    stripped = {key: replace(each, series={}, lines=(), notes=()) for key, each in report.saes[name].properties.items()}
    assert name in summary(make.report({name: stripped}))
