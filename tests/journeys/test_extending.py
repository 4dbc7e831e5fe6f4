"""Everything in docs/extending.md, done as it says: property, noise floor, format and control in another repository."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sae_bench.demo.paths import MODEL, SAES, SITE
from sae_bench.errors import UsageError
from sae_bench.registry.extensions import Extensions
from tests.support.docs_pages import files

PAGE = "extending.md"
OF_THE_ERRORS_NORM = ("isotropic", "one_coordinate")


def repository(folder: Path, corpus: Path, conftest: str) -> None:
    """The page's files, a conftest, and a checkpoint in the page's own format."""
    from sae_bench.sae.formats import read_sae

    for name, text in files(PAGE).items():
        (folder / name).write_text(text)
    sae = read_sae(str(SAES["topk"]))
    from safetensors.torch import save_file

    (folder / "checkpoint").mkdir()
    tensors = {"enc": sae.W_enc, "enc_bias": sae.activation.b_enc, "dec": sae.W_dec, "dec_bias": sae.b_dec}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, str(folder / "checkpoint" / "lab.safetensors")
    )
    (folder / "checkpoint" / "lab.json").write_text(json.dumps({"k": sae.activation.k}))
    register = (
        "from sae_bench import register_sae\n"
        f"register_sae('lab/own', path='checkpoint', model={str(MODEL)!r}, site={SITE!r}, corpus={str(corpus)!r})\n"
    )
    (folder / "conftest.py").write_text(conftest + register)


def run(folder: Path, *options: str) -> tuple[str, dict[str, object]]:
    command = [sys.executable, "-m", "pytest", "--sae-tier=smoke", "--sae-docs=8", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "reports" / "latest.json").read_text())["saes"]


def test_by_lines_in_conftest(tmp_path: Path, small_corpus: Path) -> None:
    repository(tmp_path, small_corpus, files(PAGE)["conftest.py"])
    (tmp_path / "test_saes.py").write_text(
        "from sae_bench.frontends.testing import property_test\ntest_bias_share = property_test('bias_share')\n"
    )
    _, saes = run(tmp_path, "--sae-controls", "--sae-property=bias_share")
    assert 0 < saes["lab/own"]["properties"]["bias_share"]["metrics"]["bias_share"]["value"] < 1
    assert "lab/own/halved" in saes


def test_a_noise_floor_by_one_line_in_conftest_is_measured_in_workers(tmp_path: Path, small_corpus: Path) -> None:
    repository(tmp_path, small_corpus, files(PAGE)["conftest.py"])
    (tmp_path / "test_saes.py").write_text("from sae_bench import property_test\ntest_kl = property_test('kl_gap')\n")
    _, saes = run(tmp_path, "-n1", "--sae-limit=kl_gap.ratio_one_coordinate:max:100")
    metrics = saes["lab/own"]["properties"]["kl_gap"]["metrics"]
    assert metrics["ratio_one_coordinate"]["verdict"] == "PASS"
    assert metrics["kl_sae"]["value"] / metrics["kl_one_coordinate"]["value"] == pytest.approx(
        metrics["ratio_one_coordinate"]["value"]
    )
    # Noise of one size has one squared distance, whatever its direction.
    squares = [metrics[f"kl_{name}"]["value"] / metrics[f"kappa_{name}"]["value"] for name in OF_THE_ERRORS_NORM]
    assert squares == pytest.approx([squares[0]] * len(squares), rel=1e-4)


def test_by_entry_points(tmp_path: Path, small_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(tmp_path, small_corpus, "")
    information = tmp_path / "lab_sae_bench-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-sae-bench\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(files(PAGE)["entry_points.txt"])
    (tmp_path / "test_saes.py").write_text(
        "from sae_bench.frontends.testing import property_test\ntest_bias_share = property_test('bias_share')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "test_floors.py").write_text("from sae_bench import property_test\ntest_kl = property_test('kl_gap')\n")
    _, saes = run(tmp_path, "--sae-property=bias_share", "--sae-property=kl_gap")
    assert 0 < saes["lab/own"]["properties"]["bias_share"]["metrics"]["bias_share"]["value"] < 1
    assert saes["lab/own"]["properties"]["kl_gap"]["metrics"]["kl_one_coordinate"]["value"] > 0


def test_taken_names_and_wrong_things_are_one_sentence() -> None:
    def checked(name: str, found: object) -> int:
        if not isinstance(found, int):
            raise UsageError(f"thing {name!r} is no number")
        return found

    things: Extensions[int] = Extensions("thing", lambda: ("ours",), checked)
    assert things.group == "sae_bench.things"
    things.register("theirs", 1)
    assert things.names() == ("theirs",)
    assert things.load("theirs") == 1
    for name, thing, said in (("ours", 1, "has the name of one"), ("theirs", 1, "twice"), ("x", "y", "no number")):
        with pytest.raises(UsageError, match=said):
            things.register(name, thing)  # type: ignore[arg-type]


def test_an_entry_point_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "lab-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[sae_bench.things]\nbroken = not_there:THING\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    things: Extensions[int] = Extensions("thing", tuple, lambda name, found: 1)
    assert "broken" in things
    with pytest.raises(UsageError, match=r"broken = not_there:THING .* cannot be imported: ModuleNotFoundError"):
        things.load("broken")
