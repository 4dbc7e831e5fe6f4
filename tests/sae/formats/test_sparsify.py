"""sparsify's files, against its formulas written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_bench.errors import LoadError, MeasurementError
from sae_bench.sae.formats import read_sae

D, F, K = 12, 48, 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    path = tmp_path / "layers.3.mlp"
    path.mkdir()
    weights = {key: torch.randn(shape, generator=generator) / 2 for key, shape in shapes.items()}
    save_file(weights, path / "sae.safetensors")
    config = {
        "activation": "topk", "expansion_factor": 4, "normalize_decoder": True, "num_latents": 0, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D,
    }  # fmt: skip
    (path / "cfg.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))
    return path


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))


def pre(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.relu((x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"])


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
@pytest.mark.parametrize("latents", [0, F])
def test_codes_and_reconstructions(folder: Path, activation: str, latents: int) -> None:
    edit(folder, activation=activation, num_latents=latents, expansion_factor=4 if latents == 0 else 32)
    weights = load_file(folder / "sae.safetensors")
    x = torch.randn(3, 100, D, generator=torch.Generator().manual_seed(1)) * 2
    positive = pre(weights, x)
    if activation == "topk":
        kept = positive >= positive.sort(dim=-1, descending=True).values[..., K - 1 : K]
    else:
        groups = positive.unflatten(-1, (K, F // K))
        kept = (groups == groups.max(dim=-1, keepdim=True).values).flatten(-2)
    codes = positive * kept
    sae = read_sae(str(folder))
    torch.testing.assert_close(sae.encode(x), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(codes), codes @ weights["W_dec"] + weights["b_dec"], rtol=1e-5, atol=1e-5)


def test_says_what_the_folders_say(folder: Path) -> None:
    info = read_sae(str(folder)).info
    assert (info.format, info.architecture) == ("sparsify", "topk")
    assert (info.model, info.site_in) == ("EleutherAI/pythia-160m", "blocks.3.mlp.hook_out")
    renamed = folder.rename(folder.parent / "layers.10")
    assert read_sae(str(renamed)).info.site_in == "blocks.10.hook_resid_post"
    renamed = renamed.rename(folder.parent / "mine")
    assert read_sae(str(renamed)).info.site_in is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip_connection": True}, "lack W_skip"),
        ({"signed": True}, "has signed codes"),
        ({"k": 0}, "k of .* is 0, it must be a positive integer"),
        ({"k": 49}, "k of .* is 49; it must be between 1 and its number of features, 48"),
        ({"activation": "groupmax", "k": 7}, "does not divide its 48 features"),
        ({"activation": "topq"}, r"unknown activation 'topq' of .*; did you mean 'topk'\?"),
        ({"d_in": 13}, "has shape"),
        ({"expansion_factor": 5}, r"encoder\.weight of .* has shape \(48, 12\) where its config requires \(60, 12\)"),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_what_does_not_fit_is_one_sentence(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(LoadError, match=message):
        read_sae(str(folder))


def test_a_transcoder_reads_a_modules_input_and_writes_its_output(folder: Path) -> None:
    weights = load_file(folder / "sae.safetensors")
    skip = torch.randn(D, D, generator=torch.Generator().manual_seed(2))
    save_file({**weights, "W_skip": skip}, folder / "sae.safetensors")
    edit(folder, transcode=True, skip_connection=True)
    sae = read_sae(str(folder))
    assert (sae.site_in, sae.site_out) == ("blocks.3.mlp.hook_in", "blocks.3.mlp.hook_out")
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(1))
    positive = torch.relu(x @ weights["encoder.weight"].T + weights["encoder.bias"])
    codes = positive * (positive >= positive.sort(dim=-1, descending=True).values[..., K - 1 : K])
    torch.testing.assert_close(sae.encode(x), codes, rtol=1e-5, atol=1e-5)
    written = codes @ weights["W_dec"] + weights["b_dec"] + x @ skip.T
    torch.testing.assert_close(sae.decode(codes, like=x), written, rtol=1e-5, atol=1e-5)
    with pytest.raises(MeasurementError, match="adds a linear map of its input, so its codes alone"):
        sae.decode(codes)


def test_the_orientation_that_another_loader_expects_is_refused(folder: Path) -> None:
    weights = load_file(folder / "sae.safetensors")
    save_file({**weights, "W_dec": weights["W_dec"].T.contiguous()}, folder / "sae.safetensors")
    with pytest.raises(LoadError, match=r"W_dec of .* it looks transposed"):
        read_sae(str(folder))


def test_both_files_are_needed(folder: Path) -> None:
    weights = (folder / "sae.safetensors").rename(folder.parent / "kept")
    with pytest.raises(LoadError, match=r"has no sae\.safetensors"):
        read_sae(str(folder))
    weights.rename(folder / "sae.safetensors")
    (folder / "cfg.json").unlink()
    with pytest.raises(LoadError, match=r"has no cfg\.json"):
        read_sae(str(folder))
