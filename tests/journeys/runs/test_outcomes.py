"""Situations in which a gate could let a bad run through, one by one: none is green when it should not be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from sae_bench.report import run_folder
from sae_bench.report.report import load_report

BASELINE = "baselines/lab/a.json"


@pytest.fixture
def accepted(toy: Any) -> Any:
    """A repository whose values of now are accepted."""
    assert toy.accept("-q").ret == 0
    return toy


def _edit(toy: Any, change: Callable[[Any], None]) -> None:
    path = toy.path / BASELINE
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def _metrics(tree: Any) -> Any:
    return tree["saes"]["lab/a"]["properties"]["kl_gap"]["metrics"]


def test_unchanged_is_green(accepted: Any) -> None:
    assert accepted("--sae-strict").ret == 0
    assert accepted.verdicts() == {"PASS"}
    changes = [each["metrics"]["l0"]["change"] for each in _property(accepted, "sparsity")]
    assert changes == [0, 0, 0]


def _property(toy: Any, name: str) -> list[Any]:
    return [sae["properties"][name] for sae in toy.values().values()]


@pytest.mark.parametrize(
    ("what", "code", "verdict"),
    [
        ("nan", 1, "ERROR"),
        ("raise", 1, "ERROR"),
        ("drop", 11, "MISSING"),
        (1.2, 1, "FAIL"),
        (0.8, 0, "IMPROVED"),
        (-1.0, 0, "IMPROVED"),
    ],
)
def test_what_the_run_finds(accepted: Any, what: Any, code: int, verdict: str) -> None:
    accepted.say(lab_a__kl_gap=what)
    result = accepted("--junitxml", "junit.xml")
    assert result.ret == code
    assert accepted.report()["saes"]["lab/a"]["properties"]["kl_gap"]["verdict"] == verdict
    junit = (accepted.path / "junit.xml").read_text()
    assert ('failures="0"' in junit) == (code == 0)
    assert "kl_gap" in result.stdout.str()


def test_the_results_of_one_process_are_not_read_back_from_disk(accepted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those that its records hold, all the same."""
    accepted.say(lab_a__kl_gap="nan", lab_b__kl_gap="raise", lab_c__kl_gap=1.2, lab_c__sparsity="drop")
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "read_record", lambda path: pytest.fail(f"{path} was read"))
        assert accepted("-q").ret == 1
    report = load_report(accepted.path / "reports" / "latest.json")
    records = [run_folder.read_record(path) for path in (accepted.path / "reports").glob("2*/records/lab/*/*.json")]
    latest = {(record.sae, record.result.name): record.result for record in sorted(records, key=lambda each: each.path)}
    assert len(latest) == 9
    for (sae, name), result in latest.items():
        assert report.saes[sae].properties[name] == result


def test_a_negative_accepted_value_has_a_good_direction_too(toy: Any) -> None:
    toy.say(lab_a__kl_gap=-1.0)
    toy.accept("-q")
    toy.say(lab_a__kl_gap=-0.8)
    assert toy().ret == 1
    assert "FAIL" in toy.verdicts()


def test_a_percentage_of_an_accepted_zero_is_a_usage_error(toy: Any) -> None:
    toy.say(lab_a__kl_gap=0.0)
    toy.accept("-q")
    toy.measured()
    result = toy()
    _usage_error(toy, result, "*percentage of the accepted value, which is 0*")
    assert toy("--sae-limit", "kl_gap.kl_sae:5%+0.001").ret == 0


def _usage_error(toy: Any, result: pytest.RunResult, message: str) -> None:
    assert result.ret == 4
    output = result.stdout.str() + result.stderr.str()
    pytest.LineMatcher(output.splitlines()).fnmatch_lines([message])
    assert "Traceback" not in output
    assert toy.measured() == []


BROKEN = {
    "truncated": (lambda text: text[: len(text) // 2], "*not complete JSON*restore it from git*"),
    "newer": (lambda text: text.replace('"schema": 2', '"schema": 3'), "*schema 3*upgrade*"),
    "another SAE's": (lambda text: text.replace('"lab/a"', '"lab/x"'), "*holds lab/x instead of lab/a*"),
    "NaN": (lambda text: text.replace('"value": 0', '"value": NaN, "x": 0', 1), "*NaN*not a number*"),
    "nonsense": (lambda text: text.replace('"unit": "nats"', '"unit": 5', 1), "*unit*must be*"),
    "not a report": (lambda text: "[1, 2]", "*not a report*"),
    "empty": (lambda text: "", "*is empty*"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_accepted_file_is_one_sentence_before_anything_is_measured(accepted: Any, kind: str) -> None:
    damage, message = BROKEN[kind]
    path = accepted.path / BASELINE
    path.write_text(damage(path.read_text()))
    accepted.measured()
    _usage_error(accepted, accepted(), message)


def test_a_value_edited_away_is_an_error_not_a_pass(accepted: Any) -> None:
    def remove(tree: Any) -> None:
        metric = _metrics(tree)["kl_sae"]
        metric["value"], metric["reason"] = None, "lost"

    _edit(accepted, remove)
    assert accepted().ret == 1
    assert "ERROR" in accepted.verdicts()


def test_a_metric_that_the_accepted_file_lacks_is_new(accepted: Any) -> None:
    _edit(accepted, lambda tree: _metrics(tree).pop("kl_sae"))
    assert accepted().ret == 0
    assert "NEW" in accepted.verdicts()
    assert accepted("--sae-strict").ret == 11


def test_another_corpus_cannot_be_compared(accepted: Any) -> None:
    accepted.say(corpus="another")
    result = accepted()
    assert result.ret == 11
    result.stdout.fnmatch_lines(["*corpus: 'another' now, 'c0ffee' accepted*"])


def test_a_vanished_sae_is_missing(accepted: Any) -> None:
    accepted.register(_without(accepted, "lab/b"))
    result = accepted()
    assert result.ret == 11
    result.stdout.fnmatch_lines(["*lab/b has an accepted report*not registered*"])
    assert accepted("--sae", "lab/a").ret == 0


def _without(toy: Any, sae: str) -> str:
    lines = (toy.path / "conftest.py").read_text().splitlines()
    return "\n".join(line for line in lines if sae not in line)


def test_a_vanished_property_is_missing(accepted: Any) -> None:
    path = accepted.path / "test_sae.py"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "sparsity" not in line))
    result = accepted()
    assert result.ret == 11
    result.stdout.fnmatch_lines(["*sparsity of lab/a was accepted*but nothing in this run measures it*"])
    result.stdout.fnmatch_lines(["*prune --property sparsity*"])
    assert accepted("test_sae.py").ret == 0


def test_a_skipped_item_with_accepted_values_is_missing(accepted: Any) -> None:
    skip = "\nimport pytest\ntest_sparsity = pytest.mark.skip(reason='slow')(test_sparsity)\n"
    with (accepted.path / "test_sae.py").open("a") as file:
        file.write(skip)
    result = accepted()
    assert result.ret == 11
    result.assert_outcomes(passed=6, failed=3)
    result.stdout.fnmatch_lines(["*sparsity of lab/a was accepted*its test was skipped*"])


@pytest.mark.parametrize("way", ["nothing registered", "everything skipped", "nothing selected"])
def test_nothing_measured_is_exit_five(toy: Any, way: str) -> None:
    arguments: list[str] = []
    if way == "nothing registered":
        toy.register("")
    elif way == "everything skipped":
        with (toy.path / "test_sae.py").open("a") as file:
            file.write("\nimport pytest\npytestmark = pytest.mark.skip(reason='no GPU')\n")
    else:
        arguments = ["-k", "nobody"]
    assert toy(*arguments).ret == 5
    assert not (toy.path / "reports" / "latest.json").exists()
    assert toy.folders() == []


@pytest.mark.parametrize(
    ("register", "message"),
    [
        ('register_sae("lab/a", path="x")', "*'lab/a' is registered twice*"),
        ('register_sae("lab/a.json/b", path="x")', "*the accepted report of 'lab/a'*is the file lab/a.json*"),
        (
            'register_sae("lab/d", path="x", known_failures={"kl_gap.kl_sea": "y"})',
            "*known_failures*no declared*kl_sae*",
        ),
        ('register_sae("lab/d", path="x", limits=["kl_gap.kl_sae:5"+"x"])', "*cannot be read*"),
        ('register_sae("Lab D", path="x")', "*lower case*'lab-d'*"),
    ],
)
def test_registrations_that_cannot_be_followed(toy: Any, register: str, message: str) -> None:
    with (toy.path / "conftest.py").open("a") as file:
        file.write(register + "\n")
    result = toy()
    assert result.ret == 4
    output = result.stdout.str() + result.stderr.str()
    pytest.LineMatcher(output.splitlines()).fnmatch_lines([message])
    assert "in <module>" not in output
    assert toy.measured() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sae-limit", "kl_gap.kl_sae:1noise"], "*needs the measured noise*--sae-selfcheck*"),
        (["--sae-limit", "kl_gap.kl_sae:5%@lab/z"], "*for no registered SAE*"),
        (["--sae-accept", "--sae-accept-reason", "x", "--lf"], "*narrowed by --lf*"),
        (["--sae-accept", "--sae-accept-reason", "x", "-x"], "*narrowed by -x*"),
        (["--sae-accept", "--sae-accept-reason", "x", "test_sae.py::test_kl_gap"], "*narrowed by test_sae.py::*"),
    ],
)
def test_options_that_cannot_be_followed(accepted: Any, arguments: list[str], message: str) -> None:
    accepted.measured()
    result = accepted.plain(*arguments)
    _usage_error(accepted, result, message)


def test_reports_that_cannot_be_written_cost_no_verdict_and_are_loud(toy: Any) -> None:
    (toy.path / "reports").write_text("a file where the folder should be")
    result = toy()
    assert result.ret == 1
    result.assert_outcomes(passed=9)
    lines = ["*lab/a*kl_gap.kl_sae*new*", "*ERROR: *reports cannot hold reports*verdicts are valid*"]
    result.stdout.fnmatch_lines(lines)
    toy.say(lab_a__kl_gap="nan")
    result = toy()
    result.assert_outcomes(passed=8, failed=1)
    assert result.ret == 1


def test_a_report_of_a_narrowed_run_is_not_accepted_later(toy: Any) -> None:
    from sae_bench.frontends.cli import main

    assert toy("-k", "kl_gap").ret == 0
    latest = str(toy.path / "reports" / "latest.json")
    assert main(["accept", latest, "--reason", "x", "--baselines", str(toy.path / "baselines")]) == 4


def test_quiet_strict_markers_and_stopping_early(toy: Any) -> None:
    toy.say(lab_a__kl_gap="nan")
    result = toy("-q", "-p", "no:xdist", "--strict-markers", "-x", "-m", "fidelity")
    assert result.ret == 1
    assert toy.report()["run"]["narrowed_by"] == ["-m", "-x"]
    assert os.listdir(toy.path / "reports")
