"""Mistakes in files that give plausible numbers: each is made on purpose, and it is refused or named in the report."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_bench.engine.corpus import Corpus, save_corpus
from sae_bench.engine.settings import Settings
from sae_bench.errors import LoadError
from sae_bench.registry.spec import SAESpec
from sae_bench.run.load import Loader
from sae_bench.sae import LinearDecoderSAE, ReLU, SAEInfo
from sae_bench.sae.formats import write_sae_lens

D, SITE = 16, "blocks.1.hook_resid_pre"
Check = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def checks(model_folder: Callable[[str], Path], corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Load checks by name of the SAE at a path, each with ``ok:`` or ``LOOK:`` in front."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.safetensors"
    save_corpus(file, corpus)
    loader, count = Loader(Settings()), iter(range(1000))

    def load(path: Path, **fields: Any) -> dict[str, str]:
        place = {"model": str(model_folder("GPT2")), "site": SITE, "corpus": str(file)}
        description = loader.description(SAESpec(id=f"sae{next(count)}", path=str(path), **{**place, **fields}))
        return {check.name: f"{'ok' if check.ok else 'LOOK'}: {check.text}" for check in description.load_checks}

    return load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exact SAE in SAELens' format: half of its features fire on every token."""
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    sae = LinearDecoderSAE(
        info=SAEInfo("sae_lens", "standard", D, 2 * D),
        W_enc=both.T.contiguous(),
        activation=ReLU(torch.zeros(2 * D)),
        W_dec=both,
        b_dec=torch.zeros(D),
        pre_bias=torch.zeros(D),
    )
    write_sae_lens(sae, tmp_path / "sae")
    return tmp_path / "sae"


def test_15_logarithms_of_densities_read_as_densities(checks: Check, folder: Path) -> None:
    assert checks(folder)["l0"] == "ok: 16, none is claimed"
    density = torch.full((2 * D,), 0.5)
    save_file({"sparsity": density.log10()}, folder / "sparsity.safetensors")
    assert checks(folder)["l0"] == "ok: 16, claimed 16"
    # The file read the wrong way, its sum taken for the L0 of training.
    wrong = float(load_file(folder / "sparsity.safetensors")["sparsity"].sum())
    assert checks(folder, l0=wrong)["l0"].startswith("LOOK: 16, claimed -9.63; ")
    # The file written the wrong way.
    save_file({"sparsity": density}, folder / "sparsity.safetensors")
    with pytest.raises(LoadError, match=r"sparsity\.safetensors holds numbers above 0, but it must hold log10"):
        checks(folder)


def test_15_densities_of_another_sae(checks: Check, folder: Path) -> None:
    save_file({"sparsity": torch.full((2 * D,), 0.05).log10()}, folder / "sparsity.safetensors")
    assert checks(folder)["l0"].startswith("LOOK: 16, claimed 1.6; ")
    save_file({"sparsity": torch.zeros(7)}, folder / "sparsity.safetensors")
    with pytest.raises(LoadError, match=r"sparsity of .* has shape \(7,\)"):
        checks(folder)


class Runs:
    """What a pickle can do to whoever opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", ["pickle", "web page", "nothing"])
def test_17_a_file_of_weights_that_is_none(checks: Check, tmp_path: Path, content: str) -> None:
    trainer = {"dict_class": "AutoEncoder", "activation_dim": D, "dict_size": 2 * D}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    written = {
        "pickle": pickle.dumps(Runs(tmp_path / "ran")),
        "web page": b"<html>404 Not Found</html>",
        "nothing": b"",
    }
    (tmp_path / "ae.pt").write_bytes(written[content])
    with pytest.raises(LoadError, match=r"ae\.pt is not a plain dict of tensors"):
        checks(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_18_a_number_of_latents_that_is_not_said(checks: Check, tmp_path: Path) -> None:
    folder = tmp_path / "layers.0"
    folder.mkdir()
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    weights = {
        "encoder.weight": both,
        "encoder.bias": torch.zeros(2 * D),
        "W_dec": both.clone(),
        "b_dec": torch.zeros(D),
    }
    save_file(weights, folder / "sae.safetensors")
    config = {"activation": "topk", "k": D, "d_in": D, "num_latents": 0, "expansion_factor": 2, "transcode": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    assert checks(folder)["explained_variance"] == "ok: 1.000"
    # Zero taken for the number itself, or the factor for its default of 32.
    for wrong in ({"expansion_factor": 0}, {"expansion_factor": 32}, {"num_latents": 512}):
        (folder / "cfg.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(LoadError, match=r"layers\.0"):
            checks(folder)


def test_1_sparsify_read_with_the_orientation_of_another_loader(checks: Check, tmp_path: Path) -> None:
    """As many features as dimensions, which shapes cannot tell apart."""
    folder = tmp_path / "layers.0"
    folder.mkdir()
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0))).Q
    weights = {"encoder.weight": turn.contiguous(), "encoder.bias": torch.zeros(D), "b_dec": torch.zeros(D)}
    config = {"activation": "topk", "k": D, "d_in": D, "num_latents": D, "transcode": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({**weights, "W_dec": turn.clone(memory_format=torch.contiguous_format)}, folder / "sae.safetensors")
    assert checks(folder)["orientation"].startswith("ok: ")
    save_file({**weights, "W_dec": turn.T.contiguous()}, folder / "sae.safetensors")
    with pytest.raises(LoadError, match=r"W_enc or W_dec of .*layers\.0 is transposed"):
        checks(folder)
