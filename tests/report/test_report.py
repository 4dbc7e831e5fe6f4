"""Reports: whole, strict, atomic, and the same after a round trip."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.errors import StoreError
from sae_bench.judge.judge import judge
from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.measurement import Exact, Influence, Measurement, Ratio, Series, Undefined
from sae_bench.report.convert import accepted_from, context_digest, declaration_from, measurement_from, rules_from
from sae_bench.report.json import dumps, loads, plain, rounded
from sae_bench.report.provenance import Provenance, checkout
from sae_bench.report.report import from_json, load_report, to_csv, to_frame, to_json, write_report

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture
def rich(gate, sound) -> Measurement:
    """Every kind of evidence, a series, and an undefined value."""
    influence = gate.rng.normal(0, 0.01, 64)
    return Measurement(
        {**sound.estimates, "norm": Influence(0.9, influence, influence[:5], 0.002), "ev": Undefined("no variance")},
        sound.clusters,
        {"nn1": Series("histogram", {"edges": [0, 1, 2], "counts": np.array([3, 4])}, "nearest neighbour")},
        {"include_bos": False},
        ("2 of 66 documents are too short",),
    )


@given(json_values)
def test_canonical_json_reads_back(tree) -> None:
    text = dumps(tree)
    assert loads(text, "x") == tree
    assert dumps(loads(text, "x")) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_six_digits(value: float) -> None:
    short = rounded(value)
    assert rounded(short) == short
    if abs(value) > 1e-300 and math.isfinite(short):
        assert abs(short - value) <= 5.01e-6 * abs(value)


def test_nothing_that_is_no_number_is_written_as_one() -> None:
    tree = plain({"a": math.nan, "b": [np.float64("inf"), np.int64(3)], "c": np.array([1.0, math.nan])})
    assert tree == {"a": None, "b": [None, 3], "c": [1.0, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps(math.nan)


def test_a_report_reads_back_as_it_was(gate, rich, tmp_path: Path) -> None:
    report = gate.report(rich)
    path = tmp_path / "deep" / "report.json"
    write_report(report, path)
    back = load_report(path)
    assert to_json(back) == to_json(report) == path.read_text()
    assert path.read_text().endswith("}\n")
    assert b"\r" not in path.read_bytes()
    assert [each.name for each in path.parent.iterdir()] == ["report.json"]
    result = back.saes["demo/topk"].properties["kl_gap"]
    again = measurement_from(result)
    assert isinstance(again, Measurement)
    assert again.clusters == rich.clusters
    for name, estimate in rich.estimates.items():
        found = again.estimates[name]
        assert type(found) is type(estimate)
        if not isinstance(estimate, Undefined):
            assert found.value == estimate.value
    assert back.exit_code() == report.exit_code()


def test_a_result_can_be_judged_again_from_its_report_alone(gate, sound, tmp_path: Path) -> None:
    """What `compare` does: no SAE, no property, the same verdict."""
    kl = sound.estimates["kl_sae"]
    worse = Measurement({**sound.estimates, "kl_sae": gate.scaled(kl, 1.06, 0.02)}, sound.clusters)
    first = gate.judge(
        worse, accepted_from(gate.result(sound)), limits=["kl_sae:3%"], context=gate.result(sound).context
    )
    write_report(gate.report(worse, limits=["kl_sae:3%"]), tmp_path / "b.json")
    result = load_report(tmp_path / "b.json").saes["demo/topk"].properties["kl_gap"]
    again = judge(
        result.name,
        declaration_from(result).metrics,
        result.primary_metric,
        measurement_from(result),
        accepted_from(gate.result(sound)),
        sae="demo/topk",
        rules=rules_from(result),
        context=result.context,
    )
    assert again.verdict is first.verdict
    assert again.judgements.keys() == first.judgements.keys()
    for metric, judgement in first.judgements.items():
        other = again.judgements[metric]
        assert (other.verdict, other.change, other.limits) == (judgement.verdict, judgement.change, judgement.limits)


def test_errors_are_written_without_a_number(gate, sound) -> None:
    broken = Measurement(
        {**sound.estimates, "kl_sae": Ratio(np.full(64, np.nan), np.ones(64)), "nn1": Exact(math.inf)}, sound.clusters
    )
    text = to_json(gate.report(broken))
    assert "NaN" not in text
    assert "Infinity" not in text
    back = from_json(text).saes["demo/topk"].properties["kl_gap"]
    assert back.metrics["kl_sae"].value is None
    assert "nan" in back.metrics["kl_sae"].reason
    assert back.verdict is Verdict.ERROR
    assert gate.judge(sound, accepted_from(back), context=back.context).verdict is Verdict.ERROR
    rejudged = gate.judge(measurement_from(back), None)
    assert rejudged.verdict is Verdict.ERROR
    failed = gate.report("it has 3 dimensions").saes["demo/topk"].properties["kl_gap"]
    assert "3 dimensions" in str(measurement_from(failed))


DAMAGE = {
    "truncated": (lambda text: text[: len(text) // 2], "not complete JSON"),
    "empty": (lambda text: "", "is empty"),
    "no report": (lambda text: '{"a": 1}', "no schema number"),
    "a list": (lambda text: "[1]", "no schema number"),
    "newer": (lambda text: text.replace('"schema": 2', '"schema": 3'), "reads up to 2: upgrade"),
    "NaN": (lambda text: text.replace('"version": 1', '"version": NaN', 1), "holds NaN"),
    "word": (lambda text: text.replace('"unit": "nats"', '"unit": 3'), "unit must be of type str, not 3"),
    "misspelt": (lambda text: text.replace('"unit": "nats"', '"unti": "nats"'), "did you mean 'unit'"),
    "verdict": (lambda text: text.replace('"verdict": "NEW"', '"verdict": "FINE"'), "one of PASS, IMPROVED"),
    "twice": (lambda text: text.replace('"schema": 2', '"schema": 2,\n "schema": 2'), "gives 'schema' twice"),
    "context": (lambda text: text.replace("c0ffee", "c0ffef"), "context was changed"),
    "infinite": (lambda text: text.replace('"seconds": 1.5', '"seconds": 1e999'), "must be a number"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_reports_are_refused_with_a_sentence(gate, sound, tmp_path: Path, damage: str) -> None:
    change, said = DAMAGE[damage]
    text = to_json(gate.report(sound))
    path = tmp_path / "report.json"
    path.write_text(change(text))
    assert path.read_text() != text
    with pytest.raises(StoreError, match=said) as error:
        load_report(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("key", ["value", "numerator", "clusters"])
def test_numbers_that_contradict_each_other_are_refused(gate, sound, key: str) -> None:
    tree = json.loads(to_json(gate.report(sound)))
    result = tree["saes"]["demo/topk"]["properties"]["kl_gap"]
    if key == "value":
        result["metrics"]["kl_sae"]["value"] *= 0.9
    elif key == "numerator":
        result["metrics"]["kl_sae"]["per_cluster"]["numerator"][3] *= 2
    else:
        result["clusters"].pop()
    with pytest.raises(StoreError, match=r"kl_sae says|must have one entry per cluster \(63\)"):
        from_json(json.dumps(tree))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no report at"):
        load_report(tmp_path / "none.json")
    with pytest.raises(StoreError, match="cannot be read"):
        load_report(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match="cannot be read"):
        load_report(tmp_path / "binary.json")


def test_an_interrupted_write_leaves_the_old_file(gate, sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_report(gate.report(sound), path)
    before = path.read_text()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_report(gate.report(sound, sae="demo/other"), path)
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_a_folder_that_cannot_be_written_is_named(gate, sound, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(gate.report(sound), tmp_path / "file" / "report.json")


def test_tables_are_tidy(gate, rich) -> None:
    report = gate.report(rich)
    frame = to_frame(report)
    assert len(frame) == len(rich.estimates)
    assert not frame.duplicated(["sae", "property", "metric"]).any()
    read = pandas.read_csv(StringIO(to_csv(report)))
    assert list(read.columns) == list(frame.columns)
    row = read.set_index("metric").loc["kl_sae"]
    assert row["value"] == rich.estimates["kl_sae"].value
    assert row["primary_metric"]
    assert read.set_index("metric").loc["ev", "reason"] == "no variance"


def test_a_report_loads_itself_and_becomes_a_frame(gate, rich, tmp_path: Path) -> None:
    write_report(gate.report(rich), tmp_path / "report.json")
    from sae_bench import Report

    report = Report.load(tmp_path / "report.json")
    assert report.to_frame().equals(to_frame(gate.report(rich)))
    with pytest.raises(StoreError, match="no report at"):
        Report.load(tmp_path / "other.json")


def test_digests_follow_the_context_only() -> None:
    one = context_digest({"a": 1, "b": {"c": (1, 2)}})
    assert one == context_digest({"b": {"c": [1, 2]}, "a": 1})
    assert one != context_digest({"a": 1, "b": {"c": [2, 1]}})
    assert one.startswith("sha256:")


def test_provenance_names_the_checkout(tmp_path: Path) -> None:
    assert checkout(tmp_path) == (None, None)
    found = Provenance.collect(tmp_path, started=0.0, command=["pytest", "benchmarks/ x"], options={"tier": "smoke"})
    assert found.commit is None
    assert found.started == "1970-01-01T00:00:00Z"
    assert found.seconds is not None
    assert found.seconds > 1e9
    assert found.command == "pytest 'benchmarks/ x'"
    assert "numpy" in found.packages
    plain(replace(found, seconds=None))
