"""Reports and accepted files of schema 1, as pytest-sae-bench 0.1.0 wrote them, still load, compare, render and accept.

The files in `schema_1/` are stored as they were written (paths and names of people aside): ``report.json`` and
``other-corpus.json`` are runs against ``lab/a.json`` and ``lab/b.json``.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_bench.errors import StoreError
from sae_bench.frontends.cli import main
from sae_bench.report.accept import accept
from sae_bench.report.baselines import load_accepted
from sae_bench.report.declared_limits import rules_of
from sae_bench.report.records import Difference, Drift, LoadCheck, SourcedLimit, Verdict
from sae_bench.report.report import Report, from_json, load_report, to_csv, to_json, write_report
from sae_bench.report.rerun_commands import RerunCommand
from sae_bench.show import terminal
from sae_bench.show.html.page import report_html
from sae_bench.show.markdown import summary
from sae_bench.show.rows import changed

OLD = Path(__file__).with_name("schema_1")
DEMO = Path(__file__).parents[2] / "baselines"
FILES = [*sorted(OLD.rglob("*.json")), *sorted((DEMO / "demo").glob("*.json"))]


@pytest.fixture(autouse=True)
def outside_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


@pytest.fixture
def old() -> Report:
    return load_report(OLD / "report.json")


def tree(name: str = "report.json") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((OLD / name).read_text())
    return loaded


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_old_file_loads_and_is_written_as_schema_2(path: Path) -> None:
    written = json.loads(path.read_text())
    report = load_report(path)
    assert report.schema == 2
    assert from_json(to_json(report)) == report
    for sae, result in written["saes"].items():
        for name, each in result["properties"].items():
            now = report.saes[sae].properties[name]
            assert now.primary_metric == each["headline"] if "headline" in each else not now.primary_metric
            for metric, was in each["metrics"].items():
                limits = [*now.metrics[metric].limits, *now.metrics[metric].overruled]
                spelled = [*was.get("limit", "").split("; "), *was.get("overruled", {}).values()]
                assert [str(limit) for limit in limits] == list(filter(None, spelled))
                assert now.metrics[metric].value == was["value"]
                assert list(now.metrics[metric].interval or ()) == was.get("interval", [])


def test_sentences_become_fields(old: Report) -> None:
    a, b = old.saes["lab/a"], old.saes["lab/b"]
    assert a.load_checks == (
        LoadCheck("l0", True, "20, none is claimed"),
        LoadCheck("threshold", False, "0 to 1, 3 below 0; was it ever set, or rounded when it was saved?"),
    )
    assert a.provenance == {"architecture": "toy", "neuronpedia_id": "toy/lab/a"}
    stopped = a.properties["reconstruction"]
    assert stopped.error == "reconstruction of lab/a stopped with RuntimeError: the engine stopped"
    assert [command.purpose for command in stopped.commands] == ["reproduce"]
    stale = a.properties["sparsity"].metrics["l0"]
    assert (stale.stale_known_failure, stale.known_reason) == (True, "stale")
    known = b.properties["reconstruction"].metrics["fvu"]
    assert (known.verdict, known.known_reason) == (Verdict.KNOWN, "trained on half of the tokens")
    drifted = b.properties["kl_gap"]
    assert drifted.metrics["kl_sae"].drift == Drift(anchor=0.1765, change=0.0212)
    assert (drifted.decided_by, drifted.message) == ("kl_sae", drifted.lines[0])
    assert drifted.commands[0].text.startswith("pytest test_sae.py --sae 'lab/b' --sae-property kl_gap")
    lost = b.properties["sparsity"].metrics["l0"]
    assert (lost.verdict, lost.kind, lost.reason) == (Verdict.MISSING, "unmeasured", "was not measured")
    assert isinstance(old.run.rerun_command, RerunCommand)
    assert "again" not in old.run.options
    other = load_report(OLD / "other-corpus.json").saes["lab/a"].properties["reconstruction"]
    assert other.differences == (Difference("corpus", "decaf", "c0ffee"),)
    assert other.metrics["fvu"].not_comparable == "of another corpus"


def test_limits_keep_their_sources(old: Report) -> None:
    metric = old.saes["lab/b"].properties["reconstruction"].metrics["fvu"]
    assert metric.limits == (
        SourcedLimit("change", percent=5.0, source="property"),
        SourcedLimit("max", bound=0.001, source="command line"),
    )
    assert [rule.source for rule in rules_of(old.saes["lab/b"].properties["reconstruction"])] == [
        "property",
        "command line",
    ]


def test_an_old_report_renders(old: Report) -> None:
    text = terminal.summary(old, width=120)
    assert "drifted by +0.0212 since the anchor 0.1765" in text
    assert "(stale): remove this entry" in text
    assert "known: trained on half of the tokens" in summary(old)
    assert "1 of 2 load checks need a look" in report_html(old)
    assert to_csv(old).count("\n") > 10
    (row,) = changed(load_report(OLD / "other-corpus.json"))
    assert row.notes == ("corpus: 'decaf' now, 'c0ffee' accepted",)


@pytest.mark.parametrize("now_is_old", [True, False])
@pytest.mark.parametrize("accepted_is_old", [True, False])
def test_reports_of_both_schemas_are_compared(
    old: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str], now_is_old: bool, accepted_is_old: bool
) -> None:
    """The same verdicts, whichever side is old."""
    write_report(old, tmp_path / "report.json")
    for sae in ("lab/a", "lab/b"):
        write_report(load_report(OLD / f"{sae}.json"), tmp_path / f"accepted/{sae}.json")
    now = OLD / "report.json" if now_is_old else tmp_path / "report.json"
    accepted = OLD if accepted_is_old else tmp_path / "accepted"
    assert main(["compare", str(accepted), str(now)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 error · 3 fail · 1 missing · 1 known" in printed
    for words in ("+30.0%", "since the anchor", "known: trained on half of the tokens", "(stale): remove this entry"):
        assert words in printed


def test_accepting_again_writes_schema_2(old: Report, tmp_path: Path) -> None:
    shutil.copytree(OLD / "lab", tmp_path / "lab")
    sound = replace(old, saes={"lab/b": old.saes["lab/b"]})
    accept(sound, tmp_path, reason="wanted", who="Ada", when="2026-12-01T00:00:00Z")
    written = json.loads((tmp_path / "lab/b.json").read_text())
    assert written["schema"] == 2
    kl_sae = written["saes"]["lab/b"]["properties"]["kl_gap"]["metrics"]["kl_sae"]
    assert kl_sae["limits"] == [{"kind": "change", "percent": 5.0, "source": "property"}]
    before = load_accepted(OLD, "lab/b")
    assert before is not None
    assert kl_sae["anchor"] == before.result.properties["kl_gap"].metrics["kl_sae"].anchor


DAMAGE = {
    "an unreadable limit": (("limit", "5 percent"), "limit '5 percent' cannot be read"),
    "an unknown field": (("unti", "nats"), "unknown field 'unti'"),
    "a limit of another type": (("limit", 5), "has an unknown field"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_old_files_are_refused_with_a_sentence(damage: str) -> None:
    (field, value), words = DAMAGE[damage]
    broken = tree()
    broken["saes"]["lab/b"]["properties"]["kl_gap"]["metrics"]["kl_sae"][field] = value
    with pytest.raises(StoreError, match=words):
        from_json(json.dumps(broken), "old.json")


@pytest.mark.parametrize("path", [("saes",), ("run",), ("saes", "lab/a", "properties")])
def test_old_files_that_lack_a_part_are_refused(path: tuple[str, ...]) -> None:
    broken = tree()
    place = broken
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    with pytest.raises(StoreError, match=path[-1]):
        from_json(json.dumps(broken), "old.json")
