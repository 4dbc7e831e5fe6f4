"""Accepted files keep the limits that are declared, and are judged by those as a run judges."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sae_bench.frontends.cli import main
from sae_bench.judge.judge import judge
from sae_bench.judge.limits import SourcedLimit, parse_rule
from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.measurement import Exact, Measurement
from sae_bench.report.accept import accept
from sae_bench.report.baselines import accepted_property
from sae_bench.report.convert import property_context, property_result
from sae_bench.report.declared_limits import with_overruled
from sae_bench.report.json import decode
from sae_bench.report.report import Report, write_report
from sae_bench.show.cells import verdict_word

ID = "demo/topk"


@pytest.fixture(autouse=True)
def outside_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def _take(report: Report, folder: Path) -> None:
    accept(report, folder, reason="measured", who="Ada", when="2026-11-20T12:00:00Z")


def _compare(gate, now: Measurement, folder: Path):
    held = accepted_property(folder, ID, "kl_gap")
    return gate.judge(now, held, context=property_context(gate.context, now))


def _tree(folder: Path) -> dict:
    return json.loads((folder / f"{ID}.json").read_text())


def _report(gate, now: Measurement, *given: str) -> Report:
    """As a run writes it: ``given`` are ``source:metric:limit``."""
    rules = [parse_rule(f"kl_gap.{limit}", "property") for limit in gate.declared.limits]
    for text in given:
        source, _, limit = text.partition(":")
        rules.append(parse_rule(f"kl_gap.{limit}", source))
    context = property_context(gate.context, now)
    verdict = judge("kl_gap", gate.declared.metrics, "kl_sae", now, None, sae=ID, rules=rules, context=context)
    result = property_result(now, verdict, gate.declaration, context=context)
    return Report.of({ID: {"kl_gap": with_overruled(result, rules, ID)}}, gate.report(now).run)


def _limits(folder: Path) -> dict[str, tuple[str, str]]:
    metrics = _tree(folder)["saes"][ID]["properties"]["kl_gap"]["metrics"]
    return {
        name: (_spelled(each["limits"]), "; ".join(dict.fromkeys(limit["source"] for limit in each["limits"])))
        for name, each in metrics.items()
        if "limits" in each
    }


def _spelled(limits: list[dict]) -> str:
    return "; ".join(str(decode(SourcedLimit, limit, "limit")) for limit in limits)


def test_limits_that_are_kept_are_those_of_property_and_registration(gate, sound, tmp_path: Path) -> None:
    declared = {
        "kl_sae": ("5%", "property"),
        "ev": ("0.02", "property"),
        "l0": ("5%", "property"),
        "kl_level": ("max:0.25", "property"),
        "nn1": ("0.02", "property"),
    }
    for row, given in enumerate([(), ("command line:*:30%", "environment:norm:1%", "ini:kl_level:max:9")]):
        _take(_report(gate, sound, *given), tmp_path / str(row))
        assert _limits(tmp_path / str(row)) == declared
    first, second = ((tmp_path / row / f"{ID}.json").read_text() for row in "01")
    assert first != second, "what was compared keeps its values per document"
    registered = ("registration:kl_sae:10%", "registration:kl_sae:max:0.5", "command line:kl_sae:20%")
    _take(_report(gate, sound, *registered), tmp_path)
    assert _limits(tmp_path) == {**declared, "kl_sae": ("10%; max:0.5", "registration")}
    kept = _tree(tmp_path)["saes"][ID]["properties"]["kl_gap"]["metrics"]["kl_sae"]
    assert kept["overruled"] == [{"kind": "change", "percent": 5.0, "source": "property"}]


def test_limits_of_three_kinds_keep_their_sources(gate, sound, tmp_path: Path) -> None:
    gate.declared = replace(gate.declared, limits=("kl_sae:min:0.0", "kl_sae:5%"))
    report = _report(gate, sound, "command line:kl_sae:max:0.5")
    limits = report.saes[ID].properties["kl_gap"].metrics["kl_sae"].limits
    assert [limit.source for limit in limits] == ["property", "property", "command line"]
    _take(report, tmp_path)
    assert _limits(tmp_path) == {"kl_sae": ("5%; min:0", "property")}


def test_limits_that_follow_from_equal_weights_are_not_kept(gate, sound, tmp_path: Path) -> None:
    """They hold as long as the weights do, and are no rule of anybody."""
    weights = replace(gate.declared.metrics[4], better="higher", of_weights=True)
    gate.declared = replace(gate.declared, metrics=(*gate.declared.metrics[:4], weights, gate.declared.metrics[5]))
    now = replace(sound, weights="c0ffee", estimates={**sound.estimates, "norm": Exact(0.5)})
    report = gate.report(now, replace(gate.accepted(now), weights="c0ffee", context=gate.result(now).context))
    assert report.saes[ID].properties["kl_gap"].metrics["norm"].limits == (
        SourcedLimit("change", absolute=1e-5, source="unchanged weights"),
    )
    _take(report, tmp_path)
    assert "norm" not in _limits(tmp_path)
    assert "anchor" not in _tree(tmp_path)["saes"][ID]["properties"]["kl_gap"]["metrics"]["norm"]

    # Nor do they bind another SAE that is compared with this one.
    write_report(report, tmp_path / "report.json")
    other = replace(now, weights="beef", estimates={**now.estimates, "norm": Exact(0.6)})
    write_report(gate.report(other), tmp_path / "other.json")
    same = replace(now, estimates=other.estimates)
    write_report(gate.report(same), tmp_path / "same.json")
    assert main(["compare", str(tmp_path / "other.json"), str(tmp_path / "report.json")]) == 0
    assert main(["compare", str(tmp_path / "same.json"), str(tmp_path / "report.json")]) == 1


@pytest.mark.parametrize("factor", [1.02, 1.047, 1.053, 1.1, 0.9])
def test_limits_judge_an_accepted_file_as_a_run_would(gate, sound, tmp_path: Path, factor: float, capsys) -> None:
    """To the error rate: it depends on how many metrics are declared, also by hard limits."""
    before, after = tmp_path / "before", tmp_path / "after"
    _take(_report(gate, sound), before)
    kl = gate.scaled(sound.estimates["kl_sae"], factor, 0.05)
    now = replace(sound, estimates={**sound.estimates, "kl_sae": kl})
    given = ("registration:l0:4%", "command line:ev:0.5")
    run = _compare(gate, now, before)
    _take(_report(gate, now, *given), after)
    main(["compare", str(before), str(after / f"{ID}.json")])
    printed = capsys.readouterr().out
    assert f"{100 * run.confidence:g}% intervals" in printed
    wanted = run.judgements["kl_sae"]
    line = next(line for line in printed.splitlines() if "kl_gap.kl_sae" in line)
    assert verdict_word(wanted.verdict, wanted.exceeds_limit) in line


def test_limits_that_are_hard_were_judged_when_the_values_were_accepted(gate, sound, tmp_path: Path, capsys) -> None:
    high = Exact(0.9)
    _take(gate.report(replace(sound, estimates={**sound.estimates, "kl_level": high})), tmp_path)
    here = str(tmp_path / f"{ID}.json")
    assert main(["compare", here, here]) == 0
    assert main(["compare", here, here, "--limit", "kl_gap.kl_level:max:0.25"]) == 1


def test_files_of_before_keep_no_limits_and_are_compared_with_but_not_judged(
    gate, sound, tmp_path: Path, capsys
) -> None:
    _take(_report(gate, sound), tmp_path)
    tree = _tree(tmp_path)
    for metric in tree["saes"][ID]["properties"]["kl_gap"]["metrics"].values():
        metric.pop("limits", None)
    path = tmp_path / f"{ID}.json"
    path.write_text(json.dumps(tree))
    assert _compare(gate, sound, tmp_path).verdict is Verdict.PASS
    write_report(_report(gate, sound), tmp_path / "report.json")
    assert main(["compare", str(path), str(tmp_path / "report.json")]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "report.json"), str(path)]) == 4, "nothing passes for want of a limit"
    said = capsys.readouterr().err
    assert "kl_gap of demo/topk cannot be judged: it was accepted when accepted files held no limits" in said
    limit = re.search(r"--limit '(.*)'", said)
    assert limit is not None
    assert main(["compare", str(tmp_path / "report.json"), str(path), "--limit", limit[1]]) == 0
    _take(_report(gate, sound), tmp_path)
    assert main(["compare", str(tmp_path / "report.json"), str(path)]) == 0
