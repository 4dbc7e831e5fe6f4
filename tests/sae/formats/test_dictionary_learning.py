"""dictionary_learning's files, against its classes' formulas written out with torch's own linear layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from sae_bench.errors import LoadError
from sae_bench.sae.formats import read_sae

D, F, K = 12, 40, 5
Weights = dict[str, Tensor]


def draw(seed: int, **shapes: tuple[int, ...]) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name.replace("__", "."): torch.randn(shape, generator=generator) / 2 for name, shape in shapes.items()}


def layers(**more: tuple[int, ...]) -> Weights:
    return draw(1, encoder__weight=(F, D), encoder__bias=(F,), decoder__weight=(D, F), **more)


def matrices() -> Weights:
    return draw(2, W_enc=(D, F), b_enc=(F,), W_dec=(F, D), b_dec=(D,))


def topk(pre: Tensor) -> Tensor:
    kept = pre.sort(dim=-1, descending=True).values[..., K - 1 : K]
    return relu(pre) * (pre >= kept)


def above(pre: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(relu(pre) > threshold, relu(pre), torch.zeros(()))


def gated(w: Weights, x: Tensor) -> Tensor:
    shared = linear(x - w["decoder_bias"], w["encoder.weight"])
    return (shared + w["gate_bias"] > 0) * relu(w["r_mag"].exp() * shared + w["mag_bias"])


BUFFERS = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.6)}
GATE = {"decoder_bias": (D,), "r_mag": (F,), "gate_bias": (F,), "mag_bias": (F,)}
Case = tuple[Weights, Callable[[Weights, Tensor], Tensor], str]
CASES: dict[str, Case] = {
    "AutoEncoder": (
        layers(bias=(D,)),
        lambda w, x: relu(linear(x - w["bias"], w["encoder.weight"], w["encoder.bias"])),
        "bias",
    ),
    "AutoEncoderNew": (
        layers(decoder__bias=(D,)),
        lambda w, x: relu(linear(x, w["encoder.weight"], w["encoder.bias"])),
        "decoder.bias",
    ),
    "GatedAutoEncoder": (draw(3, encoder__weight=(F, D), decoder__weight=(D, F), **GATE), gated, "decoder_bias"),
    "JumpReluAutoEncoder": (
        {**matrices(), "threshold": torch.linspace(0, 1, F)},
        lambda w, x: above(x @ w["W_enc"] + w["b_enc"], w["threshold"]),
        "b_dec",
    ),
    "AutoEncoderTopK": (
        {**layers(b_dec=(D,)), **BUFFERS},
        lambda w, x: topk(linear(x - w["b_dec"], w["encoder.weight"], w["encoder.bias"])),
        "b_dec",
    ),
    "BatchTopKSAE": (
        {**layers(b_dec=(D,)), **BUFFERS},
        lambda w, x: above(linear(x - w["b_dec"], w["encoder.weight"], w["encoder.bias"]), w["threshold"]),
        "b_dec",
    ),
    "MatryoshkaBatchTopKSAE": (
        {**matrices(), **BUFFERS, "group_sizes": torch.tensor([10, 30])},
        lambda w, x: above((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], w["threshold"]),
        "b_dec",
    ),
}


def save(folder: Path, name: str, weights: Weights, **trainer: Any) -> Path:
    torch.save(weights, folder / "ae.pt")
    said = {
        "dict_class": name, "activation_dim": D, "dict_size": F, "k": K, "layer": 3, "lm_name": "EleutherAI/pythia-70m",
        "submodule_name": "resid_post_layer_3", "steps": 10, **trainer,
    }  # fmt: skip
    config = {"trainer": said, "buffer": {"ctx_len": 128, "io": "out"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_class_is_read_as_it_computes(tmp_path: Path, name: str) -> None:
    weights, encode, bias = CASES[name]
    sae = read_sae(str(save(tmp_path, name, weights)))
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(0)) * 2
    codes = encode(weights, x)
    assert 0 < float((codes != 0).double().mean()) < 0.6
    torch.testing.assert_close(sae.encode(x), codes, rtol=1e-5, atol=1e-5)
    decoder = weights["W_dec"] if "W_dec" in weights else weights["decoder.weight"].T
    torch.testing.assert_close(sae.decode(codes), codes @ decoder + weights[bias], rtol=1e-5, atol=1e-5)
    assert (sae.info.format, sae.info.architecture) == ("dictionary_learning", name)


def test_says_what_the_config_says(tmp_path: Path) -> None:
    info = read_sae(str(save(tmp_path, "BatchTopKSAE", CASES["BatchTopKSAE"][0]))).info
    assert (info.model, info.site_in, info.context_size) == ("EleutherAI/pythia-70m", "blocks.3.hook_resid_post", 128)
    assert info.site_in == info.site_out


@pytest.mark.parametrize(
    ("submodule", "site"),
    [
        ("resid_pre_layer_2", "blocks.2.hook_resid_pre"),
        ("mlp_out_layer_2", "blocks.2.hook_mlp_out"),
        ("model.layers.4", "blocks.4.hook_resid_post"),
        ("gpt_neox.layers.4.mlp", "blocks.4.mlp.hook_out"),
        ("something_else", None),
        (None, None),
    ],
)
def test_the_site_is_only_said_when_it_is_certain(tmp_path: Path, submodule: str | None, site: str | None) -> None:
    folder = save(tmp_path, "AutoEncoder", CASES["AutoEncoder"][0], submodule_name=submodule)
    assert read_sae(str(folder)).info.site_in == site


@pytest.mark.parametrize(
    ("name", "changes", "trainer", "message"),
    [
        ("AutoEncodr", {}, {}, r"unknown dict_class 'AutoEncodr' of .*; did you mean 'AutoEncoder'"),
        ("AutoEncoderNew", {}, {}, r"lack decoder\.bias and have b_dec, threshold too many"),
        ("BatchTopKSAE", {"threshold": torch.tensor(-1.0)}, {}, r"the threshold of .* is -1: its training stopped"),
        ("AutoEncoderTopK", {}, {"k": 6}, "says k 6 but its weights say 5"),
        (
            "AutoEncoderTopK",
            {"k": torch.tensor(41)},
            {"k": 41},
            "is 41; it must be between 1 and its number of features, 40",
        ),
        ("BatchTopKSAE", {}, {"dict_size": 41}, "says dict_size 41 but its weights say 40"),
        ("BatchTopKSAE", {"b_dec": None}, {}, "lack b_dec"),
        ("BatchTopKSAE", {"decoder.weight": torch.zeros(F, D)}, {}, "it looks transposed"),
        ("BatchTopKSAE", {"encoder.bias": torch.full((F,), torch.nan)}, {}, "weight b_enc has 40 NaN"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tmp_path: Path, name: str, changes: dict[str, Any], trainer: dict[str, Any], message: str
) -> None:
    weights = {**CASES["BatchTopKSAE"][0], **changes}
    save(tmp_path, name, {key: tensor for key, tensor in weights.items() if tensor is not None}, **trainer)
    with pytest.raises(LoadError, match=message) as caught:
        read_sae(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("io", "submodule", "sites"),
    [
        ("in_and_out", "gpt_neox.layers.4.mlp", ("blocks.4.mlp.hook_in", "blocks.4.mlp.hook_out")),
        ("in", "gpt_neox.layers.4", ("blocks.4.hook_resid_pre", "blocks.4.hook_resid_pre")),
        ("out", "gpt_neox.layers.4", ("blocks.4.hook_resid_post", "blocks.4.hook_resid_post")),
        ("in", "mlp_out_layer_4", (None, None)),
    ],
)
def test_the_ends_of_a_module_that_are_read_and_written(
    tmp_path: Path, io: str, submodule: str, sites: tuple[str | None, str | None]
) -> None:
    save(tmp_path, "AutoEncoderNew", CASES["AutoEncoderNew"][0], submodule_name=submodule)
    config = json.loads((tmp_path / "config.json").read_text())
    config["buffer"]["io"] = io
    (tmp_path / "config.json").write_text(json.dumps(config))
    sae = read_sae(str(tmp_path))
    assert (sae.site_in, sae.site_out) == sites
    config["buffer"]["io"] = "sideways"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=r"io of the buffer of .* is 'sideways'"):
        read_sae(str(tmp_path))


def test_pickles_of_anything_but_tensors_are_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    save(tmp_path, "AutoEncoder", {"bias": Evil()})  # type: ignore[dict-item]
    with pytest.raises(LoadError, match=r"is not a plain dict of tensors: .* which is never run"):
        read_sae(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>", b"PK\x03\x04broken"])
def test_broken_weights(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, "AutoEncoder", CASES["AutoEncoder"][0])
    (tmp_path / "ae.pt").write_bytes(content)
    with pytest.raises(LoadError, match=r"is not a plain dict of tensors: it is truncated, a web page"):
        read_sae(str(tmp_path))


def test_both_files_are_needed(tmp_path: Path) -> None:
    save(tmp_path, "AutoEncoder", CASES["AutoEncoder"][0])
    (tmp_path / "config.json").unlink()
    with pytest.raises(LoadError, match=r"has no config\.json"):
        read_sae(str(tmp_path / "ae.pt"))
    save(tmp_path, "AutoEncoder", CASES["AutoEncoder"][0])
    (tmp_path / "ae.pt").unlink()
    with pytest.raises(LoadError, match=r"has no ae\.pt"):
        read_sae(str(tmp_path))
