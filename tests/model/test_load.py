"""Models that cannot be loaded, or not as they are, say so in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_bench.errors import LoadError, UsageError
from sae_bench.model.files import tensors_sha256
from sae_bench.model.load import load_model


@pytest.fixture
def copy(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(model_folder("Llama"), tmp_path / "model")


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def test_missing_folder() -> None:
    with pytest.raises(LoadError, match=r"model folder \./nowhere does not exist"):
        load_model("./nowhere")


def test_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no config\.json; save the model there"):
        load_model(str(tmp_path))


def test_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match="'nobody/nothing' is not a folder here, and Hugging Face does not provide it"):
        load_model("nobody/nothing")


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"pickles are not read.*save_pretrained"):
        load_model(str(copy))


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    change(copy, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(LoadError, match=r"has no weights for \S*layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(copy))


def test_nan_weights(copy: Path) -> None:
    change(copy, lambda weights: weights["model.layers.1.mlp.up_proj.weight"].view(-1)[3:4].fill_(torch.nan))
    with pytest.raises(LoadError, match=r"NaN or infinite weights in \S*up_proj\.weight"):
        load_model(str(copy))


def test_wrong_shape(copy: Path) -> None:
    def cut(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"][:5].clone()

    change(copy, cut)
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_model(str(copy))


def test_damaged_file(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_model(str(copy))


def test_unknown_architecture(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "novel", "architectures": ["NovelLM"]}))
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_model(str(copy))


def test_unknown_option_and_dtype(copy: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown model option 'fold_lnn'; did you mean 'fold_ln'\?"):
        load_model(str(copy), kwargs={"fold_lnn": True})
    with pytest.raises(UsageError, match="unknown dtype 'float31'; known: float32"):
        load_model(str(copy), dtype="float31")


def test_loading_is_silent(copy: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    load_model(str(copy), kwargs={"fold_ln": True})
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_hash_does_not_depend_on_how_tensors_are_spread_over_files(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    names = sorted(weights)
    for part, chosen in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in chosen}, copy / f"model-{part}.safetensors")
    parts = sorted(copy.glob("model-*.safetensors"))
    assert tensors_sha256(parts) == tensors_sha256([copy / "model.safetensors"])
    weights[names[0]] += 1
    save_file(weights, copy / "other.safetensors")
    assert tensors_sha256([copy / "other.safetensors"]) != tensors_sha256(parts)
