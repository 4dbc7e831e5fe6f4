"""SAEs made and saved by dictionary_learning and sparsify themselves, with tokens as large as BOS."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.errors import LoadError
from sae_bench.sae import weights_sha256
from sae_bench.sae.formats import as_sae, read_sae

D, F, K = 12, 40, 5


@pytest.fixture
def tokens() -> Tensor:
    x = torch.randn(80, D, generator=torch.Generator().manual_seed(9)) * 2
    x[0] *= 300
    return x


def fill(module: torch.nn.Module) -> None:
    """Random weights, biases and thresholds, so that nothing is left at a value that would hide a mistake."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in sorted(module.named_parameters()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
            if name == "threshold":
                tensor.abs_()
        for name, buffer in module.named_buffers():
            if name == "threshold":
                buffer.fill_(0.6)


def assert_same(ours: Any, codes: Tensor, xhat: Tensor, x: Tensor) -> None:
    assert 0 < float((codes != 0).double().mean()) < 0.8
    mine = ours.encode(x)
    for found, due in ((mine, codes), (ours.decode(mine, like=x), xhat)):
        scale = due.abs().amax(-1, keepdim=True).clamp(min=1)
        torch.testing.assert_close(found / scale, due / scale, rtol=0, atol=1e-5)


# dictionary_learning


@pytest.fixture(scope="module")
def learning() -> dict[str, Any]:
    """Its classes by name. It is installed without what it trains with, of which its package imports one name."""
    stub = types.ModuleType("nnsight")
    stub.LanguageModel = object  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        if "nnsight" not in sys.modules:
            patch.setitem(sys.modules, "nnsight", stub)
        pytest.importorskip("dictionary_learning", reason="dictionary-learning is not installed")
        from dictionary_learning import dictionary
        from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    modules = (dictionary, batch_top_k, matryoshka_batch_top_k, top_k)
    return {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}


MAKERS: dict[str, Callable[[Any], Any]] = {
    "AutoEncoder": lambda cls: cls(D, F),
    "AutoEncoderNew": lambda cls: cls(D, F),
    "GatedAutoEncoder": lambda cls: cls(D, F),
    "JumpReluAutoEncoder": lambda cls: cls(D, F),
    "AutoEncoderTopK": lambda cls: cls(D, F, K),
    "BatchTopKSAE": lambda cls: cls(D, F, K),
    "MatryoshkaBatchTopKSAE": lambda cls: cls(D, F, K, [10, 30]),
}


def save(folder: Path, theirs: Any, name: str) -> None:
    torch.save(theirs.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": F, "k": K, "lm_name": "m", "layer": 3}
    config = {"trainer": {**trainer, "submodule_name": "resid_post_layer_3"}, "buffer": {"ctx_len": 128, "io": "out"}}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_dictionary_learning(learning: dict[str, Any], tokens: Tensor, tmp_path: Path, name: str) -> None:
    theirs = MAKERS[name](learning[name])
    fill(theirs)
    save(tmp_path, theirs, name)
    with torch.no_grad():
        codes = theirs.encode(tokens)
        xhat = theirs(tokens)
    ours = read_sae(str(tmp_path))
    assert_same(ours, codes, xhat, tokens)
    assert weights_sha256(as_sae(theirs)) == weights_sha256(ours)


def test_every_class_with_weights_is_tried(learning: dict[str, Any]) -> None:
    base = learning["Dictionary"]
    known = {name for name, value in learning.items() if issubclass(value, base) and value is not base}
    assert known - {"IdentityDict"} == set(MAKERS)


def test_a_threshold_that_was_never_set_is_refused(learning: dict[str, Any], tmp_path: Path) -> None:
    theirs = MAKERS["BatchTopKSAE"](learning["BatchTopKSAE"])
    save(tmp_path, theirs, "BatchTopKSAE")
    with pytest.raises(LoadError, match=r"the threshold of .* is -1: its training stopped before one was estimated"):
        read_sae(str(tmp_path))


# sparsify


@pytest.fixture(scope="module")
def sparsify() -> Any:
    return pytest.importorskip("sparsify", reason="eai-sparsify is not installed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("transcodes", [False, True])
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify(
    sparsify: Any, tokens: Tensor, tmp_path: Path, activation: str, transcodes: bool, skips: bool, dtype: torch.dtype
) -> None:
    config = sparsify.SparseCoderConfig(
        activation=activation, k=K, num_latents=F, transcode=transcodes, skip_connection=skips
    )
    theirs = sparsify.SparseCoder(D, config, dtype=dtype)
    fill(theirs)
    folder = tmp_path / "layers.3.mlp"
    theirs.save_to_disk(folder)
    ours = read_sae(str(folder))
    # Its own arithmetic in half precision is its own; the weights that were stored are compared in full.
    full = theirs.float()
    with torch.no_grad():
        out = full(tokens)
        codes = torch.zeros(len(tokens), F).scatter_(-1, out.latent_indices, out.latent_acts)
    assert_same(ours, codes, out.sae_out, tokens)
    assert ours.site_out == "blocks.3.mlp.hook_out"
    assert ours.site_in == ("blocks.3.mlp.hook_in" if transcodes else "blocks.3.mlp.hook_out")
    assert ours.info.dtype == str(dtype).removeprefix("torch.")
    assert weights_sha256(as_sae(theirs)) == weights_sha256(ours)


def test_no_number_of_latents_means_the_expansion_factor(sparsify: Any, tokens: Tensor, tmp_path: Path) -> None:
    theirs = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(k=K, expansion_factor=3))
    fill(theirs)
    theirs.save_to_disk(tmp_path / "layers.2")
    assert json.loads((tmp_path / "layers.2" / "cfg.json").read_text())["num_latents"] == 0
    assert read_sae(str(tmp_path / "layers.2")).d_sae == 36
