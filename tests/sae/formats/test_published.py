"""Files as laboratories publish them, against their formulas written out; wrong readings are refused or differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_bench.errors import LoadError
from sae_bench.sae.formats import read_sae

D, F, K = 12, 40, 5
Weights = dict[str, Tensor]


def draw(**shapes: tuple[int, ...]) -> Weights:
    generator = torch.Generator().manual_seed(5)
    return {name.replace("__", "."): torch.randn(shape, generator=generator) / 2 for name, shape in shapes.items()}


def canonical(**more: tuple[int, ...]) -> Weights:
    return draw(W_enc=(D, F), W_dec=(F, D), b_enc=(F,), b_dec=(D,), **more)


def pair(encoder: str = "encoder", decoder: str = "decoder") -> Weights:
    names = {f"{encoder}.weight": (F, D), f"{encoder}.bias": (F,), f"{decoder}.weight": (D, F), f"{decoder}.bias": (D,)}
    return draw(**{name.replace(".", "__"): shape for name, shape in names.items()})


@pytest.fixture
def tokens() -> Tensor:
    """Activations, the first of them as large as a BOS token's."""
    x = torch.randn(60, D, generator=torch.Generator().manual_seed(9))
    x[0] *= 300
    return x


def topk(pre: Tensor, k: int = K) -> Tensor:
    kept = pre.sort(dim=-1, descending=True).values[..., k - 1 : k]
    return torch.relu(pre) * (pre >= kept)


def above(pre: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.where(pre > threshold, torch.relu(pre), torch.zeros(()))


def assert_reads(path: Path, x: Tensor, codes: Tensor, xhat: Tensor) -> None:
    sae = read_sae(str(path))
    assert 0 < float((codes != 0).double().mean()) < 0.7
    torch.testing.assert_close(sae.encode(x), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(codes, like=x), xhat, rtol=1e-5, atol=1e-6 * float(xhat.abs().max()))


# Gemma Scope


def gemma(folder: Path, weights: Weights) -> Path:
    path = folder / "layer_3" / "width_16k" / "average_l0_71"
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **{name: tensor.numpy() for name, tensor in weights.items()})
    return path


@pytest.mark.parametrize("named", [True, False])
def test_gemma_scope(tmp_path: Path, tokens: Tensor, named: bool) -> None:
    w = {**canonical(), "threshold": torch.linspace(0, 2, F)}
    path = gemma(tmp_path, w)
    codes = above(tokens @ w["W_enc"] + w["b_enc"], w["threshold"])
    assert_reads(path / "params.npz" if named else path, tokens, codes, codes @ w["W_dec"] + w["b_dec"])
    info = read_sae(str(path)).info
    assert (info.format, info.l0, info.site_in, info.model) == ("gemma_scope", 71.0, None, None)


def test_gemma_scope_arrays_are_never_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    w = {**canonical(), "threshold": torch.ones(F)}
    path = gemma(tmp_path, w) / "params.npz"
    arrays = {name: tensor.numpy() for name, tensor in w.items()}
    np.savez(path, **{**arrays, "b_enc": np.array([Evil()], dtype=object)})
    with pytest.raises(LoadError, match=r"no archive of plain arrays|not a plain array of numbers"):
        read_sae(str(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("skips", [True, False])
def test_gemma_scope_2(tmp_path: Path, tokens: Tensor, skips: bool) -> None:
    w = draw(w_enc=(D, F), w_dec=(F, 7), b_enc=(F,), b_dec=(7,), affine_skip_connection=(D, 7))
    w["threshold"] = torch.linspace(0, 2, F)
    skip = w["affine_skip_connection"] if skips else w.pop("affine_skip_connection") * 0
    save_file(w, tmp_path / "params.safetensors")
    config = {
        "architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "l0": 50, "affine_connection": skips,
        "hf_hook_point_in": "model.layers.4.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.4.post_feedforward_layernorm.output",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    codes = above(tokens @ w["w_enc"] + w["b_enc"], w["threshold"])
    assert_reads(tmp_path, tokens, codes, codes @ w["w_dec"] + w["b_dec"] + tokens @ skip)
    sae = read_sae(str(tmp_path))
    assert (sae.site_in, sae.site_out, sae.d_out) == ("blocks.4.mlp.hook_in", "blocks.4.hook_mlp_out", 7)
    (tmp_path / "config.json").write_text(json.dumps({**config, "affine_connection": not skips}))
    with pytest.raises(LoadError, match=r"affine_connection of .* but its weights (have|lack) affine_skip_connection"):
        read_sae(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w_enc": torch.zeros(2, D, F)}, "is a transcoder across layers, which cannot be measured"),
        ({"W_enc": torch.zeros(D, F)}, "have w_enc too many"),
        ({"w_dec": torch.zeros(F)}, "have no matrix W_dec"),
        ({"threshold": torch.zeros(F + 1)}, r"threshold of .* has shape \(41,\)"),
    ],
    ids=["across layers", "both spellings", "a vector", "another width"],
)
def test_gemma_scope_2_that_is_something_else(tmp_path: Path, changes: dict[str, Tensor], message: str) -> None:
    w = draw(w_enc=(D, F), w_dec=(F, D), b_enc=(F,), b_dec=(D,), threshold=(F,))
    save_file({**w, **changes}, tmp_path / "params.safetensors")
    config = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.4.output", "hf_hook_point_out": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=message):
        read_sae(str(tmp_path))


# OpenAI


@pytest.mark.parametrize("name", ["ReLU", "TopK"])
def test_openai(tmp_path: Path, tokens: Tensor, name: str) -> None:
    w: dict[str, Any] = draw(pre_bias=(D,), latent_bias=(F,), encoder__weight=(F, D), decoder__weight=(D, F))
    rides = {"stats_last_nonzero": torch.zeros(F, dtype=torch.long), "latents_activation_frequency": torch.ones(F)}
    state = {"k": K, "postact_fn": "ReLU"} if name == "TopK" else {}
    torch.save({**w, **rides, "activation": name, "activation_state_dict": state}, tmp_path / "6.pt")
    mean, std = tokens.mean(-1, keepdim=True), tokens.std(-1, keepdim=True)
    seen = (tokens - mean) / (std + 1e-5) if name == "TopK" else tokens
    pre = (seen - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    codes = topk(pre) if name == "TopK" else torch.relu(pre)
    xhat = codes @ w["decoder.weight"].T + w["pre_bias"]
    assert_reads(tmp_path, tokens, codes, xhat * std + mean if name == "TopK" else xhat)


def test_openai_with_an_unknown_activation(tmp_path: Path) -> None:
    w: dict[str, Any] = draw(pre_bias=(D,), latent_bias=(F,), encoder__weight=(F, D), decoder__weight=(D, F))
    state = {"k": K, "postact_fn": "Identity"}
    torch.save({**w, "activation": "TopK", "activation_state_dict": state}, tmp_path / "6.pt")
    with pytest.raises(LoadError, match=r"activation 'TopK' of .*, followed by 'Identity', is not supported"):
        read_sae(str(tmp_path))


# Llama Scope


def test_llama_scope(tmp_path: Path, tokens: Tensor) -> None:
    w, norm = pair(), 17.0
    (tmp_path / "checkpoints").mkdir()
    save_file(w, tmp_path / "checkpoints" / "final.safetensors")
    config = {
        "jump_relu_threshold": 1.2, "dataset_average_activation_norm": {"in": norm, "out": norm}, "d_model": D,
        "hook_point_in": "blocks.7.hook_resid_post", "hook_point_out": "blocks.7.hook_resid_post",
    }  # fmt: skip
    (tmp_path / "hyperparams.json").write_text(json.dumps(config))
    scale = math.sqrt(D) / norm
    pre = (tokens * scale) @ w["encoder.weight"].T + w["encoder.bias"]
    codes = above(pre, 1.2 * scale)
    assert_reads(tmp_path, tokens, codes, (codes @ w["decoder.weight"].T + w["decoder.bias"]) / scale)
    assert read_sae(str(tmp_path)).site_in == "blocks.7.hook_resid_post"
    for key in ("jump_relu_threshold", "dataset_average_activation_norm"):
        (tmp_path / "hyperparams.json").write_text(json.dumps({**config, key: None}))
        with pytest.raises(LoadError, match=key):
            read_sae(str(tmp_path))


def test_llama_scope_of_a_distilled_model(tmp_path: Path, tokens: Tensor) -> None:
    w, norm = pair(), 9.0
    logs = {"log_jumprelu_threshold": torch.linspace(-3, 0.5, F)}
    site = "blocks.7.hook_resid_post"
    norms = {f"dataset_average_activation_norm.{site}": torch.tensor(norm)}
    save_file({**w, **logs, **norms}, tmp_path / "sae_weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"hook_point_in": site, "d_model": D, "expansion_factor": 4}))
    scale = math.sqrt(D) / norm
    codes = above((tokens * scale) @ w["encoder.weight"].T + w["encoder.bias"], logs["log_jumprelu_threshold"].exp())
    assert_reads(tmp_path, tokens, codes, (codes @ w["decoder.weight"].T + w["decoder.bias"]) / scale)
    save_file({**w, **logs}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(LoadError, match=r"needs its input scaled, but dataset_average_activation_norm of blocks\.7"):
        read_sae(str(tmp_path))


# Qwen Scope


def test_qwen_scope(tmp_path: Path, tokens: Tensor) -> None:
    w = draw(W_enc=(F, D), W_dec=(D, F), b_enc=(F,), b_dec=(D,))
    folder = tmp_path / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    folder.mkdir()
    torch.save(w, folder / "layer3.sae.pt")
    codes = topk(tokens @ w["W_enc"].T + w["b_enc"])
    assert_reads(folder / "layer3.sae.pt", tokens, codes, codes @ w["W_dec"].T + w["b_dec"])
    torch.save(w, folder / "layer4.sae.pt")
    with pytest.raises(
        LoadError, match=r"holds 2 weight files \(layer3\.sae\.pt, layer4\.sae\.pt \.\.\.\); give the path"
    ):
        read_sae(str(folder))
    torch.save(w, tmp_path / "layer3.sae.pt")
    with pytest.raises(LoadError, match="is unknown: the file does not store it; put the file into a folder"):
        read_sae(str(tmp_path / "layer3.sae.pt"))


# Goodfire and DeepSeek-R1


@pytest.mark.parametrize("suffix", ["_linear", ""])
def test_a_linear_pair(tmp_path: Path, tokens: Tensor, suffix: str) -> None:
    encoder, decoder = f"encoder{suffix}", f"decoder{suffix}"
    w = pair(encoder, decoder)
    torch.save(w, tmp_path / "sae-l19.pth")
    codes = torch.relu(tokens @ w[f"{encoder}.weight"].T + w[f"{encoder}.bias"])
    assert_reads(tmp_path, tokens, codes, codes @ w[f"{decoder}.weight"].T + w[f"{decoder}.bias"])


# The first attention SAEs


def test_hook_z(tmp_path: Path, tokens: Tensor) -> None:
    w = canonical()
    torch.save(w, tmp_path / "gpt2-small_L5.pt")
    config = {"act_size": D, "dict_size": F, "act_name": "blocks.5.attn.hook_z", "seq_len": 128}
    (tmp_path / "gpt2-small_L5_cfg.json").write_text(json.dumps(config))
    codes = torch.relu((tokens - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    assert_reads(tmp_path, tokens, codes, codes @ w["W_dec"] + w["b_dec"])
    assert read_sae(str(tmp_path)).site_in == "blocks.5.attn.hook_z"
    (tmp_path / "gpt2-small_L5_cfg.json").write_text(json.dumps({**config, "dict_size": F + 1}))
    with pytest.raises(LoadError, match=r"W_enc of .* has shape \(12, 40\) where its config requires \(12, 41\)"):
        read_sae(str(tmp_path))


# Plain tensors


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("subtracts", [True, False])
def test_plain_tensors(
    tmp_path: Path, tokens: Tensor, turned: tuple[bool, bool], activation: str, subtracts: bool
) -> None:
    w = canonical()
    stored = {
        name: tensor.T.contiguous() if name in ("W_enc", "W_dec") and turned[name == "W_dec"] else tensor
        for name, tensor in w.items()
    }
    threshold = torch.linspace(0, 2, F)
    save_file(stored | ({"threshold": threshold} if activation == "jumprelu" else {}), tmp_path / "mine.safetensors")
    config = {"activation": activation, "k": K, "apply_b_dec_to_input": subtracts, "site": "blocks.2.hook_mlp_out"}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    pre = (tokens - w["b_dec"] * subtracts) @ w["W_enc"] + w["b_enc"]
    act: dict[str, Callable[[], Tensor]] = {
        "relu": lambda: torch.relu(pre), "topk": lambda: topk(pre), "jumprelu": lambda: above(pre, threshold),
    }  # fmt: skip
    codes = act[activation]()
    assert_reads(tmp_path, tokens, codes, codes @ w["W_dec"] + w["b_dec"])
    assert read_sae(str(tmp_path)).site_out == "blocks.2.hook_mlp_out"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"has no cfg\.json with activation and apply_b_dec_to_input; put one into its folder"),
        ({"activation": "relu"}, r"has no cfg\.json with activation and apply_b_dec_to_input"),
        ({"activation": "relo", "apply_b_dec_to_input": True}, "unknown activation 'relo' .* did you mean 'relu'"),
        ({"activation": "topk", "apply_b_dec_to_input": True}, "k of .* is None, it must be a positive integer"),
        ({"activation": "jumprelu", "apply_b_dec_to_input": True}, "lack threshold"),
    ],
)
def test_plain_tensors_that_say_too_little(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    save_file(canonical(), tmp_path / "mine.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=message):
        read_sae(str(tmp_path))


def test_plain_square_tensors_are_not_guessed(tmp_path: Path) -> None:
    save_file(draw(W_enc=(D, D), W_dec=(D, D), b_enc=(D,), b_dec=(D,)), tmp_path / "mine.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"activation": "relu", "apply_b_dec_to_input": True}))
    with pytest.raises(LoadError, match=r"W_enc of .* is square, so its shape does not show whether it is"):
        read_sae(str(tmp_path))
