"""Accepting, comparing with what was accepted, pruning; and accepted files that are not what they seem."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sae_bench.errors import StoreError, UsageError
from sae_bench.frontends.cli import main
from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.measurement import Exact, Influence, Measurement, Ratio, Series, Undefined
from sae_bench.report.accept import accept, describe
from sae_bench.report.baselines import accepted_ids, accepted_property, load_accepted, prune, vanished
from sae_bench.report.report import Report, write_report
from sae_bench.run.options import RunOptions
from sae_bench.run.run import Run

WHO = {"who": "Ada", "when": "2026-11-20T12:00:00Z"}
ID = "demo/topk"


@pytest.fixture(autouse=True)
def outside_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def _take(report: Report, folder: Path, reason: str = "first release", **options) -> list[str]:
    return [str(line) for line in accept(report, folder, reason=reason, **WHO, **options)]


def _compare(gate, now: Measurement, folder: Path, **options):
    from sae_bench.report.convert import property_context

    held = accepted_property(folder, ID, "kl_gap")
    return gate.judge(now, held, context=property_context(gate.context, now), **options)


def _tree(folder: Path) -> dict:
    return json.loads((folder / f"{ID}.json").read_text())


def test_accept_then_compare(gate, sound, tmp_path: Path) -> None:
    assert accepted_property(tmp_path, ID, "kl_gap") is None
    listed = _take(gate.report(sound), tmp_path)
    assert any(line.startswith("kl_gap.kl_sae of demo/topk: 0.1") and line.endswith("(new)") for line in listed)
    judged = _compare(gate, sound, tmp_path)
    assert judged.verdict is Verdict.PASS
    assert [each.change for name, each in judged.judgements.items() if each.limits and name != "kl_level"] == [
        0,
        0,
        0,
        0,
    ]
    file = load_accepted(tmp_path, ID)
    assert file is not None
    acceptance = file.result.properties["kl_gap"].acceptance
    assert acceptance is not None
    assert (acceptance.who, acceptance.reason, acceptance.commit) == ("Ada", "first release", "0123abc")


@pytest.mark.parametrize("documents", [2, 16, 64])
def test_an_unchanged_sae_in_smoke_changes_by_exactly_nothing(gate, sound, tmp_path: Path, documents: int) -> None:
    """The accepted file holds six significant digits of all documents; the run, every digit of the first ones."""
    _take(gate.report(sound), tmp_path)
    assert (
        _tree(tmp_path)["saes"][ID]["properties"]["kl_gap"]["metrics"]["kl_sae"]["value"]
        != sound.estimates["kl_sae"].value
    )
    jitter = 1 + gate.rng.uniform(-2e-6, 2e-6, documents)
    few = Measurement(
        {
            name: Ratio(each.numerator[:documents] * jitter, each.denominator[:documents])
            if isinstance(each, Ratio)
            else each
            for name, each in sound.estimates.items()
        },
        sound.clusters[:documents],
    )
    judged = _compare(gate, few, tmp_path)
    changed = {name: each.change for name, each in judged.judgements.items() if each.change is not None}
    assert changed == {"kl_sae": 0, "ev": 0, "l0": 0, "nn1": 0}
    assert judged.exit_code == 0


def test_files_are_made_for_review(gate, sound, tmp_path: Path) -> None:
    _take(gate.report(sound), tmp_path)
    text = (tmp_path / f"{ID}.json").read_text()
    assert (
        max(
            len(f"{value:.12g}".lstrip("-0.").replace(".", "").rstrip("0"))
            for value in _numbers(json.loads(text)["saes"][ID]["properties"]["kl_gap"]["metrics"])
        )
        <= 6
    )
    assert '"meaning"' not in text
    assert '"series"' not in text
    metrics = _tree(tmp_path)["saes"][ID]["properties"]["kl_gap"]["metrics"]
    assert {name for name, each in metrics.items() if "per_cluster" in each} == {"kl_sae", "ev", "l0"}
    assert sum('"numerator": [' in line and line.rstrip().endswith("]") for line in text.splitlines()) == 3
    again = tmp_path / "again"
    _take(gate.report(sound), again)
    assert (again / f"{ID}.json").read_text() == text


def _numbers(tree) -> list[float]:
    if isinstance(tree, dict):
        return [number for each in tree.values() for number in _numbers(each)]
    if isinstance(tree, list):
        return [number for each in tree for number in _numbers(each)]
    return [tree] if isinstance(tree, float) and "e" not in repr(tree) else []


def test_a_second_acceptance_lists_old_and_new_and_keeps_the_rest(gate, sound, tmp_path: Path) -> None:
    other = replace(gate.declared, name="sparsity")
    first = gate.report(sound)
    kept = replace(gate.result(sound), name="sparsity")
    both = Report.of({ID: {"kl_gap": first.saes[ID].properties["kl_gap"], other.name: kept}}, first.run)
    _take(both, tmp_path)
    worse = Measurement({**sound.estimates, "kl_sae": gate.scaled(sound.estimates["kl_sae"], 1.1)}, sound.clusters)
    listed = _take(gate.report(worse), tmp_path, "v4 weights, PR 31")
    line = next(line for line in listed if "kl_sae" in line)
    assert " -> " in line
    assert "(+10.00%)" in line
    properties = _tree(tmp_path)["saes"][ID]["properties"]
    assert set(properties) == {"kl_gap", "sparsity"}
    assert set(properties["kl_gap"]["acceptance"]["previous"]) == {"kl_sae"}
    assert properties["sparsity"]["acceptance"]["reason"] == "first release"
    assert _compare(gate, worse, tmp_path).judgements["kl_sae"].verdict is Verdict.PASS


class TestAnchors:
    def test_stay_until_somebody_re_anchors(self, gate, sound, tmp_path: Path) -> None:
        now, verdicts = sound, []
        _take(gate.report(now), tmp_path)
        for _ in range(3):
            now = Measurement({**now.estimates, "kl_sae": gate.scaled(now.estimates["kl_sae"], 1.04)}, now.clusters)
            verdicts.append(_compare(gate, now, tmp_path).verdict)
            _take(gate.report(now), tmp_path, "a small step")
        assert verdicts == [Verdict.PASS, Verdict.PASS, Verdict.FAIL]
        assert _compare(gate, now, tmp_path).verdict is Verdict.FAIL
        _take(gate.report(now), tmp_path, "the new model", reanchor=True)
        assert _compare(gate, now, tmp_path).verdict is Verdict.PASS

    def test_move_along_when_other_documents_are_accepted(self, gate, sound, tmp_path: Path) -> None:
        _take(gate.report(sound), tmp_path)
        kl = gate.scaled(sound.estimates["kl_sae"], 1.04)
        half = Measurement({"kl_sae": Ratio(kl.numerator[:32], kl.denominator[:32])}, sound.clusters[:32])
        _take(gate.report(half), tmp_path)
        metric = _tree(tmp_path)["saes"][ID]["properties"]["kl_gap"]["metrics"]["kl_sae"]
        assert metric["value"] / metric["anchor"] == pytest.approx(1.04, rel=1e-4)

    def test_start_anew_in_another_context(self, gate, sound, tmp_path: Path) -> None:
        _take(gate.report(sound), tmp_path)
        gate.context = {**gate.context, "site": "blocks.4.hook_resid_pre"}
        worse = Measurement({**sound.estimates, "kl_sae": gate.scaled(sound.estimates["kl_sae"], 3)}, sound.clusters)
        _take(gate.report(worse), tmp_path, "another layer")
        metric = _tree(tmp_path)["saes"][ID]["properties"]["kl_gap"]["metrics"]["kl_sae"]
        assert metric["anchor"] == metric["value"]


class TestRefusals:
    def test_no_reason(self, gate, sound, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="needs a reason"):
            _take(gate.report(sound), tmp_path, "  ")

    def test_ci(self, gate, sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CI", "true")
        with pytest.raises(UsageError, match="where CI is set"):
            _take(gate.report(sound), tmp_path)
        assert not list(tmp_path.iterdir())
        _take(gate.report(sound), tmp_path, in_ci=True)
        assert accepted_ids(tmp_path) == (ID,)

    @pytest.mark.parametrize("broken", [Ratio(np.full(64, np.nan), np.ones(64)), Exact(float("inf"))])
    def test_values_that_are_none(self, gate, sound, tmp_path: Path, broken) -> None:
        bad = Measurement({**sound.estimates, "norm": broken}, sound.clusters)
        fine = gate.report(sound, sae="demo/other")
        report = replace(fine, saes={**fine.saes, **gate.report(bad).saes})
        with pytest.raises(UsageError, match="cannot be accepted"):
            _take(report, tmp_path)
        assert accepted_ids(tmp_path) == ()

    def test_errors(self, gate, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="3 dimensions"):
            _take(gate.report("it has 3 dimensions"), tmp_path)

    def test_nothing(self, gate, sound, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="nothing to accept"):
            _take(gate.report(sound), tmp_path, only=["steering"])
        with pytest.raises(UsageError, match="nothing to accept"):
            _take(Report.of({}, gate.report(sound).run), tmp_path)


def test_accepting_only_what_is_new(gate, sound, tmp_path: Path) -> None:
    _take(gate.report(sound), tmp_path)
    worse = Measurement({**sound.estimates, "kl_sae": gate.scaled(sound.estimates["kl_sae"], 2)}, sound.clusters)
    report = gate.report(worse)
    report = replace(report, saes={**report.saes, **gate.report(worse, sae="demo/new").saes})
    listed = _take(report, tmp_path, new_only=True)
    assert all("demo/new" in line for line in listed)
    assert accepted_ids(tmp_path) == ("demo/new", ID)
    assert _compare(gate, sound, tmp_path).verdict is Verdict.PASS


def test_undefined_and_fitted_values_survive_acceptance(gate, sound, tmp_path: Path) -> None:
    influence = gate.rng.normal(0, 0.01, 64)
    now = Measurement(
        {**sound.estimates, "ev": Undefined("no variance"), "l0": Influence(20.0, influence)}, sound.clusters
    )
    _take(gate.report(now), tmp_path)
    judged = _compare(gate, now, tmp_path)
    assert judged.judgements["ev"].verdict is Verdict.UNDEFINED
    assert (judged.judgements["l0"].verdict, judged.judgements["l0"].change) == (Verdict.PASS, 0)


def test_accepting_the_same_again_lists_no_change(gate, sound, tmp_path: Path) -> None:
    """An accepted file keeps six digits; the rest of a value is no change."""
    kl = sound.estimates["kl_sae"]
    odd = replace(sound, estimates={**sound.estimates, "kl_sae": Ratio(kl.numerator * (1 + 1e-9), kl.denominator)})
    accept(gate.report(odd), tmp_path, reason="first release", **WHO)
    changes = accept(gate.report(odd), tmp_path, reason="the same again", **WHO)
    assert any(each.old != each.new for each in changes), "the case is to have digits that are not kept"
    assert describe(changes) == [f"  {len(changes)} values unchanged"]


def test_an_accepted_file_keeps_the_weights_hash_and_the_series_that_say_so(gate, sound, tmp_path: Path) -> None:
    series = {
        "alive": Series("table", {"features": [8], "mask": ["eJz7DwABAQEA"]}, accepted=True),
        "density": Series("table", {"x": [1.0]}),
    }
    _take(gate.report(replace(sound, series=series, weights="c0ffee")), tmp_path)
    file = load_accepted(tmp_path, ID)
    assert file is not None
    kept = file.result.properties["kl_gap"]
    assert kept.weights == "c0ffee"
    assert dict(kept.series) == {"alive": series["alive"]}
    held = accepted_property(tmp_path, ID, "kl_gap")
    assert held is not None
    assert held.weights == "c0ffee"


def test_files_of_another_sae_and_broken_files(gate, sound, tmp_path: Path) -> None:
    _take(gate.report(sound), tmp_path)
    path = tmp_path / f"{ID}.json"
    (tmp_path / "demo" / "gated.json").write_text(path.read_text())
    with pytest.raises(StoreError, match="holds demo/topk instead of demo/gated"):
        load_accepted(tmp_path, "demo/gated")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(StoreError, match=r"demo/topk\.json is not complete JSON"):
        accepted_property(tmp_path, ID, "kl_gap")
    with pytest.raises(StoreError, match="not complete JSON"):
        _take(gate.report(sound), tmp_path)


def test_any_report_can_be_compared_with(gate, sound, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(gate.report(sound), path)
    held = accepted_property(path, ID, "kl_gap")
    assert held is not None
    assert gate.judge(sound, held, context=held.context).verdict is Verdict.PASS
    assert accepted_property(path, "demo/other", "kl_gap") is None
    with pytest.raises(StoreError, match="no report"):
        accepted_property(tmp_path / "none.json", ID, "kl_gap")


def test_accepted_files_are_compared_by_what_they_keep(gate, sound, tmp_path: Path, capsys) -> None:
    """Values per document are kept for limits on change only: other values are the same, or cannot be judged."""
    _take(gate.report(sound), tmp_path)
    here = str(tmp_path / f"{ID}.json")
    assert main(["compare", here, here]) == 0
    out = capsys.readouterr().out
    assert "MISSING" not in out
    assert "kl_gap.kl_sae" in out
    assert main(["compare", here, here, "--limit", "kl_gap.norm:5%"]) == 0
    tree = _tree(tmp_path)
    metrics = tree["saes"][ID]["properties"]["kl_gap"]["metrics"]
    assert "per_cluster" not in metrics["norm"]
    metrics["norm"]["value"] *= 1.5
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(tree))
    capsys.readouterr()
    assert main(["compare", here, str(moved)]) == 0, "nobody set a limit"
    assert main(["compare", here, str(moved), "--limit", "kl_gap.norm:5%"]) == 11
    assert "keeps no values per document" in " ".join(capsys.readouterr().out.split())
    rows = metrics["kl_sae"]["per_cluster"]["numerator"]
    rows[:] = [1.5 * each for each in rows]
    metrics["kl_sae"]["value"] *= 1.5
    moved.write_text(json.dumps(tree))
    assert main(["compare", here, str(moved)]) == 1, "held to what kl_gap declares"


def test_vanished_saes_are_found_and_fail(gate, sound, tmp_path: Path) -> None:
    _take(gate.report(sound), tmp_path)
    assert vanished(tmp_path, [ID, "demo/new"]) == ()
    assert vanished(tmp_path, ["demo/new"]) == (ID,)
    assert vanished(tmp_path / "nowhere", []) == ()
    checked = Run(RunOptions(baselines=tmp_path)).missing(ID)
    assert (checked.verdict.verdict, checked.verdict.exit_code) == (Verdict.MISSING, 11)
    assert next(str(command) for command in checked.result.commands) == "if removed: pytest-sae-bench prune"
    assert "  if removed: pytest-sae-bench prune\n" in str(checked.failure)


def test_prune_lists_first_and_removes_when_told(gate, sound, tmp_path: Path) -> None:
    _take(gate.report(sound), tmp_path)
    _take(gate.report(sound, sae="demo/gone"), tmp_path)
    declared = {"kl_gap": ["kl_sae", "ev", "l0", "kl_level", "nn1"]}
    before = sorted(path.read_text() for path in tmp_path.rglob("*.json"))
    listed = [str(entry) for entry in prune(tmp_path, [ID], declared)]
    assert listed == ["demo/gone (the whole file)", "kl_gap.norm of demo/topk"]
    assert sorted(path.read_text() for path in tmp_path.rglob("*.json")) == before
    prune(tmp_path, [ID], declared, write=True)
    assert accepted_ids(tmp_path) == (ID,)
    assert "norm" not in _tree(tmp_path)["saes"][ID]["properties"]["kl_gap"]["metrics"]
    assert prune(tmp_path, [ID], declared, write=True) == ()
    prune(tmp_path, [ID], {}, write=True)
    assert accepted_ids(tmp_path) == ()
