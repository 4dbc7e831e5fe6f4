"""Results of other tools become reports under their own names, and reports become what other tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sae_bench.errors import StoreError
from sae_bench.frontends import cli
from sae_bench.measure.properties import property_names
from sae_bench.report.export_results import action_benchmark, log_to_wandb
from sae_bench.report.import_results import read_results
from sae_bench.report.report import from_json, load_report, to_json

BASELINE = Path(__file__).parents[2] / "baselines" / "demo" / "topk.json"
SAEBENCH = {
    "eval_type_id": "core",
    "eval_config": {"model_name": "gpt2", "context_size": 128},
    "eval_id": "0",
    "datetime_epoch_millis": 1_700_000_000_000,
    "eval_result_metrics": {
        "model_behavior_preservation": {"kl_div_score": 0.98, "kl_div_with_sae": -1},
        "reconstruction_quality": {"explained_variance": 0.91, "mse": 3.5},
        "misc_metrics": {"name": "text", "used": True},
    },
    "sae_lens_release_id": "gpt2-small-res-jb",
    "sae_lens_id": "blocks.8.hook_resid_pre",
}
SAE_LENS = {
    "unique_id": "rel-sae",
    "sae_set": "Rel",
    "sae_id": "blocks.3/width_1",
    "eval_cfg": {"context_size": 64, "dataset": "d", "library_version": "6.54.0"},
    "metrics": {"sparsity": {"l0": 40.0, "l1": float("nan")}, "reconstruction_quality": {"cossim": 0.9}},
}


def written(folder: Path, tree: Any) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(tree))
    return path


def test_saebench_results_keep_their_names_and_formulas(tmp_path: Path) -> None:
    report = read_results(written(tmp_path, SAEBENCH))
    (found,) = report.saes["gpt2-small-res-jb/blocks.8.hook_resid_pre"].properties.values()
    assert found.name == "saebench_core"
    assert found.name not in property_names()
    ev = found.metrics["reconstruction_quality.explained_variance"]
    assert (ev.value, ev.better, ev.verdict) == (0.91, "reported", None)
    assert "SAEBench core: 1 - residual / variance" in ev.meaning
    assert "misc_metrics.used" not in found.metrics
    assert report.run.started == "2023-11-14T22:13:20Z"


def test_what_stood_for_nan_is_no_value(tmp_path: Path) -> None:
    (sae,) = read_results(written(tmp_path, SAEBENCH)).saes.values()
    kl = sae.properties["saebench_core"].metrics["model_behavior_preservation.kl_div_with_sae"]
    assert kl.value is None
    assert "found NaN" in kl.reason
    (sae,) = read_results(written(tmp_path, [SAE_LENS])).saes.values()
    assert sae.properties["sae_lens_evals"].metrics["sparsity.l1"].value is None


def test_sae_lens_results_and_writing_what_was_read(tmp_path: Path) -> None:
    report = read_results(written(tmp_path, [SAE_LENS]))
    assert list(report.saes) == ["rel/blocks.3/width_1"]
    assert from_json(to_json(report)).saes == report.saes
    assert "SAELens evals 6.54.0" in report.saes["rel/blocks.3/width_1"].properties["sae_lens_evals"].lines[0]


def test_they_are_never_judged_against_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    assert cli.main(["import", str(written(tmp_path, SAEBENCH)), "--out", str(out)]) == 0
    assert load_report(out).exit_code() == 5
    assert cli.main(["show", str(out)]) == 0
    assert cli.main(["compare", str(BASELINE.parents[1]), str(out)]) == 4
    assert "holds results of SAEBench core" in capsys.readouterr().err
    assert cli.main(["accept", str(out), "--reason", "r", "--baselines", str(tmp_path / "b"), "--in-ci"]) == 4
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("tree", [{}, [], [3], {"metrics": 3, "eval_cfg": {}}, {"eval_result_metrics": {"a": {}}}])
def test_other_files_are_one_sentence(tmp_path: Path, tree: Any) -> None:
    path = written(tmp_path, tree)
    with pytest.raises(StoreError, match=str(path)):
        read_results(path)


def test_action_benchmark_has_one_direction_a_file(tmp_path: Path) -> None:
    for flag, better in (("--smaller-is-better", "lower"), ("--bigger-is-better", "higher")):
        out = tmp_path / f"{better}.json"
        assert cli.main(["export", str(BASELINE), flag, str(out)]) == 0
        entries = json.loads(out.read_text())
        assert entries
        assert entries == action_benchmark(load_report(BASELINE), better)
        for entry in entries:
            assert {"name", "unit", "value"} <= set(entry)
            assert isinstance(entry["value"], float)
    names = {entry["name"] for entry in action_benchmark(load_report(BASELINE), "lower")}
    assert "demo/topk/kl_gap.kl_sae" in names
    assert "demo/topk/kl_gap.ce_clean" not in names


class Recorder:
    """Stands for a run of Weights & Biases."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, Any], int | None]] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *given: object) -> None: ...

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((values, step))


def test_wandb_gets_every_value_once() -> None:
    run, report = Recorder(), load_report(BASELINE)
    logged = log_to_wandb(report, run, step=7)
    assert run.logged == [(logged, 7)]
    kl = report.saes["demo/topk"].properties["kl_gap"].metrics["kl_sae"]
    assert logged["demo/topk/kl_gap.kl_sae"] == kl.value


def test_wandb_from_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys
    from types import SimpleNamespace

    run = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda project: run if project == "saes" else None))
    assert cli.main(["export", str(BASELINE), "--wandb", "saes"]) == 0
    assert len(run.logged) == 1
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.main(["export", str(BASELINE), "--wandb", "saes"]) == 4
    assert "pip install wandb" in capsys.readouterr().err
