"""Commands that follow from verdicts: they name what was measured, where it was, and nothing that would mislead."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sae_bench.judge.verdicts import Verdict
from sae_bench.registry.spec import SAESpec
from sae_bench.report.provenance import Provenance
from sae_bench.report.report import Report, from_json, to_json
from sae_bench.report.rerun_commands import SUITE, RerunCommand, place_of

HERE = Path("/home/me/work")


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ([], ""),
        (["benchmarks/test_a.py", "benchmarks/test_b.py"], "benchmarks/"),
        (["test_quality.py"], "test_quality.py"),
        (["tests/sae/test_a.py", "tests/sae/deep/test_b.py"], "tests/sae/"),
        (["test_a.py", "deep/test_b.py"], "."),
        (["../other/test_a.py", "../other/test_b.py"], "../other/"),
        (["my tests/test_a.py"], "'my tests/test_a.py'"),
        ([str(SUITE / "test_fidelity.py"), str(SUITE / "test_geometry.py")], "--pyargs sae_bench.suite"),
    ],
)
def test_the_place_is_as_pytest_is_told(files: list[str], place: str) -> None:
    assert place_of([Path("/home/me/work", file).resolve() for file in files], HERE) == place


def test_commands_follow_from_verdicts() -> None:
    again = RerunCommand(
        "tests/q.py", {"v4": "--sae ./v4 --sae-model gpt2"}, ("--sae-tier smoke", "--sae-limit kl_gap.x:5%")
    )
    whole = "pytest tests/q.py --sae ./v4 --sae-model gpt2 --sae-property kl_gap"
    accept = f'{whole} --sae-accept --sae-accept-reason "..."'
    same = f"  reproduce:  {whole} --sae-tier smoke --sae-limit kl_gap.x:5%"
    told = {
        Verdict.PASS: [],
        Verdict.ERROR: [same],
        Verdict.FAIL: [same, f"  if wanted:  {accept}"],
        Verdict.INCONCLUSIVE: [same, f"  decide:     {whole} --sae-limit kl_gap.x:5% --sae-tier full"],
        Verdict.NEW: [f"  accept:     {accept}"],
        Verdict.MISSING: ["  if removed: pytest-sae-bench prune", f"  if wanted:  {accept}"],
    }
    for verdict, lines in told.items():
        assert [f"  {command}" for command in again.commands({Verdict.PASS, verdict}, "kl_gap", "v4")] == lines, verdict


def test_accepting_repeats_what_decides_whether_reports_are_comparable() -> None:
    again = RerunCommand(
        "benchmarks/", {}, ("--sae-docs 8", "--sae-seed 3", "--sae-no-compare", "--sae-baselines held")
    )
    assert again.accept(["a/b", "c"]) == (
        "pytest benchmarks/ --sae 'a/b' --sae 'c' --sae-seed 3 --sae-baselines held "
        '--sae-accept --sae-accept-reason "..."'
    )


def test_it_goes_through_a_report() -> None:
    command = RerunCommand("benchmarks/", {"a": "--sae ./a"}, ("--sae-docs 8",))
    report = Report(Provenance(None, None, "", rerun_command=command), {})
    assert from_json(to_json(report)).run.rerun_command == command


def test_a_control_is_chosen_by_its_sae() -> None:
    spec = SAESpec(id="lab/a", path="./a")
    assert spec.selection_options is None
    assert spec.as_control("pca").selection_options == "--sae 'lab/a' --sae-controls"
    given = SAESpec(id="a", path="./a b", command_options=shlex.join(["--sae", "./a b"]))
    assert given.as_control("pca").selection_options == "--sae './a b' --sae-controls"
