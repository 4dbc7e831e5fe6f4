"""`check_sae` says what pytest says, and measures tensors at hand without running a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench import check_sae
from sae_bench.demo.paths import MODEL, SAES, SITE
from sae_bench.errors import UsageError
from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.properties import load_property, property_names
from tests.support.toy_saes import WIDTH, Tied, linear


def results(report: Any, sae: str = "sae") -> Any:
    return report.saes[sae].properties


def test_activations_alone_need_no_model(activations: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_bench.run.load.load_model", None)
    found = results(check_sae(linear(0.9), activations=activations))
    assert set(found) == set(property_names())
    assert found["reconstruction"].metrics["fvu"].value == pytest.approx(0.01, rel=0.1)
    assert found["shrinkage"].metrics["gamma_centred"].value == pytest.approx(0.9, rel=0.02)
    assert found["sparsity"].metrics["l0"].value == pytest.approx(WIDTH, rel=0.01)


def test_what_needs_the_model_is_undefined_with_the_reason(activations: Tensor) -> None:
    found = results(check_sae(linear(), activations=activations))
    for name in property_names():
        if load_property(name).needs_model:
            assert found[name].verdict is Verdict.UNDEFINED
            assert "needs the model" in found[name].lines[0]
    assert "needs the model" in found["shrinkage"].metrics["kl_uniform"].reason
    assert "needs the model" in found["sparsity"].metrics["kl_dense_only"].reason


def test_a_property_that_cannot_be_measured_is_refused_when_it_is_asked_for(activations: Tensor) -> None:
    with pytest.raises(UsageError, match=r"kl_gap needs the model.*tokens="):
        check_sae(linear(), activations=activations, properties=["kl_gap"])


def test_a_bad_sae_fails_with_exit_code_one(activations: Tensor) -> None:
    report = check_sae(linear(0.2), activations=activations, properties=["reconstruction"])
    assert report.exit_code() == 1
    assert results(report)["reconstruction"].verdict is Verdict.FAIL


def test_rows_of_a_matrix_are_all_used_and_documents_lose_their_first_position(activations: Tensor) -> None:
    def tokens(x: Tensor) -> float:
        found = results(check_sae(Tied(), activations=x, properties=["sparsity"]))
        return float(found["sparsity"].metrics["alive_tokens"].value)

    assert tokens(activations) == 512
    assert tokens(activations[:100]) == 100
    assert tokens(activations.view(8, 64, WIDTH)) == 8 * 63


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activations": torch.zeros(3)}, "shape (3,)"),
        ({"activations": torch.full((4, WIDTH), torch.nan)}, "NaN"),
        ({"activations": torch.zeros(4, WIDTH), "properties": "contract"}, "list of names"),
        ({"activations": torch.zeros(4, WIDTH), "properties": []}, "measures nothing"),
        ({"activations": torch.zeros(4, WIDTH), "properties": ["contrakt"]}, "did you mean"),
        ({"activations": torch.zeros(4, WIDTH), "docs": 3}, "does not know the option 'docs'"),
        ({"tokens": [[1, 2]], "corpus": "c"}, "corpus= or tokens="),
        ({"tier": "smokey"}, "must be one of smoke"),
    ],
)
def test_mistakes_are_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        check_sae(linear(), **options)
    assert said in str(error.value)


def test_the_wrong_width_is_an_error_of_the_sae(activations: Tensor) -> None:
    report = check_sae(linear(), activations=activations[:, :4], properties=["reconstruction"])
    assert report.exit_code() == 1
    assert "reads 8 dimensions" in results(report)["reconstruction"].lines[0]


def test_the_same_verdicts_as_pytest(tmp_path: Path, small_corpus: Path) -> None:
    where = {"model": str(MODEL), "site": SITE, "corpus": str(small_corpus)}
    (tmp_path / "conftest.py").write_text(
        f"from sae_bench import register_sae\nregister_sae('lab/topk', path={str(SAES['topk'])!r}, **{where!r})\n"
    )
    names = ["contract", "reconstruction"]
    tests = "".join(f"test_{name} = property_test({name!r})\n" for name in names)
    (tmp_path / "test_saes.py").write_text(f"from sae_bench.frontends.testing import property_test\n{tests}")
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    for more in (["--sae-accept", "--sae-accept-reason", "first"], ["--sae-docs=16", "--sae-json=run.json"]):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--sae-tier=smoke", *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stdout
    run = json.loads((tmp_path / "run.json").read_text())["saes"]["lab/topk"]["properties"]
    report = check_sae(
        SAES["topk"],
        id="lab/topk",
        properties=names,
        baselines=tmp_path / "baselines",
        tier="smoke",
        documents=16,
        **where,
    )
    assert report.exit_code() == 0
    assert results(report, "lab/topk")["reconstruction"].verdict is Verdict.PASS
    for name, found in results(report, "lab/topk").items():
        assert found.lines == tuple(run[name]["lines"])
        for metric, each in found.metrics.items():
            assert each.value == run[name]["metrics"][metric].get("value"), metric
            assert each.verdict == run[name]["metrics"][metric].get("verdict"), metric


def test_model_and_activations_in_memory_are_used_as_they_are(
    monkeypatch: pytest.MonkeyPatch, small_corpus: Path
) -> None:
    from sae_bench.engine.corpus import load_corpus
    from sae_bench.model.forward import ForwardPasses
    from sae_bench.model.load import load_model
    from sae_bench.registry.site import parse_site

    model, corpus = load_model(str(MODEL)), load_corpus(small_corpus)
    full = corpus.take(int((corpus.lengths == corpus.lengths.max()).nonzero()[0]) + 1)
    tokens = full.tokens[-1:].repeat(4, 1)
    x = model.capture(tokens, parse_site(SITE)).value
    passes: list[int] = []
    forward = ForwardPasses.logits
    monkeypatch.setattr(ForwardPasses, "logits", lambda *given: passes.append(1) or forward(*given))
    cheap = ["reconstruction", "contract"]
    report = check_sae(SAES["topk"], model=model.bridge, tokens=tokens, activations=x, properties=cheap)
    assert not passes
    assert results(report)["reconstruction"].metrics["fvu"].value < 0.1
    report = check_sae(SAES["topk"], model=model.bridge, tokens=tokens, activations=x, properties=["kl_gap"])
    assert passes
    assert 0 < results(report)["kl_gap"].metrics["kl_sae"].value < 0.05
