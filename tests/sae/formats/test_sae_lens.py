"""Our reading of SAELens' files against SAELens itself."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_bench.errors import LoadError, MeasurementError, UsageError
from sae_bench.sae import SAE, JumpReLU, LinearDecoderSAE, TopK, controls, fold_decoder_norms, weights_sha256, wrap
from sae_bench.sae.formats import as_sae, read_sae, write_sae_lens

CASES: list[tuple[str, dict[str, Any]]] = [
    ("StandardSAE", {}),
    ("GatedSAE", {}),
    ("JumpReLUSAE", {}),
    ("TopKSAE", {"k": 5}),
    ("TopKSAE", {"k": 5, "rescale_acts_by_decoder_norm": True}),
]
NORMS = ["none", "constant_norm_rescale", "layer_norm"]


def load_with_sae_lens(sae_lens: Any, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sae_lens.SAE.load_from_disk(folder)


def assert_same(ours: SAE, theirs: Any, x: Tensor, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        codes = theirs.encode(x)
        decoded = theirs.decode(codes)
    assert (codes != 0).any()
    torch.testing.assert_close(ours.encode(x), codes, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.decode(codes, x), decoded, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subtracts", [True, False], ids=["subtracts", "keeps"])
@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda each: each if isinstance(each, str) else ",".join(each))
def test_reads_what_sae_lens_wrote(
    make: Callable[..., Any], x: Tensor, tmp_path: Path, name: str, config: dict[str, Any], subtracts: bool, norm: str
) -> None:
    theirs = make(name, apply_b_dec_to_input=subtracts, normalize_activations=norm, **config)
    theirs.save_model(tmp_path)
    ours = read_sae(str(tmp_path))
    assert_same(ours, theirs, x)
    assert_same(as_sae(theirs), theirs, x)
    assert weights_sha256(as_sae(theirs)) == weights_sha256(ours)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_decoder_is_what_decode_uses(make: Callable[..., Any], tmp_path: Path, dtype: str) -> None:
    theirs = make("TopKSAE", k=5, rescale_acts_by_decoder_norm=True)
    theirs.save_model(tmp_path)
    ours = read_sae(str(tmp_path), dtype=dtype)
    one_hot = torch.eye(40)
    with torch.no_grad():
        rows = theirs.decode(one_hot) - theirs.decode(torch.zeros(1, 40))
    torch.testing.assert_close(ours.W_dec.float(), rows, rtol=1e-5, atol=1e-5 if dtype == "float32" else 1e-2)
    assert ours.W_dec.dtype == getattr(torch, dtype)
    assert ours.encode(torch.randn(2, 12)).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("name", ["BatchTopKTrainingSAE", "MatryoshkaBatchTopKTrainingSAE", "JumpReLUTrainingSAE"])
@pytest.mark.parametrize("rescale", [True, False])
def test_a_training_checkpoint_is_what_sae_lens_saves_for_inference(
    sae_lens: Any, make: Callable[..., Any], x: Tensor, tmp_path: Path, name: str, rescale: bool
) -> None:
    config: dict[str, Any] = {} if name.startswith("Jump") else {"k": 5, "rescale_acts_by_decoder_norm": rescale}
    if name.startswith("Matryoshka"):
        config["matryoshka_widths"] = [10, 40]
    training = make(name, **config)
    training.save_model(tmp_path / "checkpoint")
    training.save_inference_model(tmp_path / "final")
    theirs = load_with_sae_lens(sae_lens, tmp_path / "final")
    assert_same(read_sae(str(tmp_path / "checkpoint")), theirs, x)
    assert_same(read_sae(str(tmp_path / "final")), theirs, x)
    assert_same(as_sae(training), theirs, x)
    if rescale:
        edit(tmp_path / "checkpoint", rescale_acts_by_decoder_norm=None)
        assert_same(read_sae(str(tmp_path / "checkpoint")), theirs, x)


@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda each: each if isinstance(each, str) else ",".join(each))
def test_a_stored_scaling_factor_is_folded_in(
    make: Callable[..., Any], x: Tensor, tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    theirs = make(name, normalize_activations="expected_average_only_in", **config)
    theirs.save_model(tmp_path)
    with pytest.raises(LoadError, match=r"the factor is not stored with it; add a file activation_scaler\.json"):
        read_sae(str(tmp_path))
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37, "has_whitening": False}))
    theirs.fold_activation_norm_scaling_factor(0.37)
    assert_same(read_sae(str(tmp_path)), theirs, x)


@pytest.mark.parametrize("rescale", [True, False])
def test_a_checkpoint_with_its_scaler_is_what_training_would_have_saved(
    sae_lens: Any, make: Callable[..., Any], x: Tensor, tmp_path: Path, rescale: bool
) -> None:
    training = make(
        "BatchTopKTrainingSAE", k=5, rescale_acts_by_decoder_norm=rescale,
        normalize_activations="expected_average_only_in",
    )  # fmt: skip
    training.save_model(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))
    training.fold_activation_norm_scaling_factor(0.37)
    training.save_inference_model(tmp_path / "final")
    assert_same(read_sae(str(tmp_path / "checkpoint")), load_with_sae_lens(sae_lens, tmp_path / "final"), x)


def test_a_constant_factor_in_the_config_is_folded_in(make: Callable[..., Any], x: Tensor, tmp_path: Path) -> None:
    theirs = make("JumpReLUSAE")
    theirs.save_model(tmp_path)
    edit(tmp_path, normalize_activations="constant_scalar_rescale", activation_normalization_factor=0.37)
    theirs.fold_activation_norm_scaling_factor(0.37)
    assert_same(read_sae(str(tmp_path)), theirs, x)


def test_hook_z_reads_flattened_heads(make: Callable[..., Any], x: Tensor, tmp_path: Path) -> None:
    theirs = make("StandardSAE", reshape_activations="hook_z", hook_name="blocks.1.attn.hook_z")
    theirs.save_model(tmp_path)
    ours = read_sae(str(tmp_path))
    heads = x.unflatten(-1, (3, 4))
    with torch.no_grad():
        codes = theirs.encode(heads)
        decoded = theirs.decode(codes)
    torch.testing.assert_close(ours.encode(x), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.decode(codes), decoded.flatten(-2), rtol=1e-5, atol=1e-5)
    assert ours.info.extra["reshape_activations"] == "hook_z"


@pytest.mark.parametrize(
    ("extra", "activation"),
    [
        ({"activation_fn_str": "relu"}, "relu"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}, "topk"),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 5}, "architecture": "standard"}, "topk"),
    ],
)
def test_reads_configs_from_before_version_6(
    sae_lens: Any, make: Callable[..., Any], x: Tensor, tmp_path: Path, extra: dict[str, Any], activation: str
) -> None:
    make("StandardSAE").save_model(tmp_path)
    old = {
        "d_in": 12, "d_sae": 40, "dtype": "float32", "device": "cpu", "model_name": "gpt2-small", "prepend_bos": False,
        "hook_point": "blocks.8.hook_resid_pre", "context_size": 128, "normalize_activations": False,
        "finetuning_scaling_factor": False, "sae_lens_training_version": "3.9.0", **extra,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    ours = read_sae(str(tmp_path))
    assert_same(ours, load_with_sae_lens(sae_lens, tmp_path), x)
    assert isinstance(ours, LinearDecoderSAE)
    assert isinstance(ours.activation, TopK) == (activation == "topk")
    assert (ours.info.model, ours.info.site_in, ours.info.prepend_bos) == (
        "gpt2-small", "blocks.8.hook_resid_pre", False,
    )  # fmt: skip


def test_old_tensors_are_understood(make: Callable[..., Any], x: Tensor, tmp_path: Path) -> None:
    theirs = make("JumpReLUSAE")
    theirs.save_model(tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    weights["log_threshold"] = weights.pop("threshold").log()
    weights["scaling_factor"] = torch.full((40,), 2.0)
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(LoadError, match="finetuning_scaling_factor is not true in its cfg"):
        read_sae(str(tmp_path))
    edit(tmp_path, finetuning_scaling_factor=True)
    ours = read_sae(str(tmp_path))
    with torch.no_grad():
        codes = theirs.encode(x)
        torch.testing.assert_close(ours.encode(x), codes, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(codes), theirs.decode(2 * codes), rtol=1e-5, atol=1e-5)


def test_says_what_the_config_says(saved: Path) -> None:
    info = read_sae(str(saved)).info
    assert (info.format, info.architecture, info.d_in, info.d_sae, info.dtype) == (
        "sae_lens", "jumprelu", 12, 40, "float32",
    )  # fmt: skip
    assert (info.model, info.site_in, info.site_out) == ("tiny", "blocks.1.hook_resid_post", "blocks.1.hook_resid_post")
    assert (info.prepend_bos, info.context_size, info.neuronpedia) == (True, 64, "tiny/1-res")
    assert info.model_kwargs == {"center_writing_weights": False}
    assert info.l0 is None
    assert info.extra["dataset_path"] == "somewhere"


def test_the_real_saes_are_read_alike(sae_lens: Any, real_saes: Path) -> None:
    folders = sorted(real_saes.iterdir())
    assert len(folders) == 6
    for folder in folders:
        ours = read_sae(str(folder))
        x = ours.decode(3 * torch.rand(200, 512, generator=torch.Generator().manual_seed(0)).pow(20))
        assert_same(ours, load_with_sae_lens(sae_lens, folder), x)
        assert ours.info.architecture == folder.name.removesuffix("-l3").replace("matryoshka", "matryoshka_batchtopk")
        assert ours.info.l0 is not None


# Saving


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda each: each if isinstance(each, str) else ",".join(each))
def test_sae_lens_reads_what_we_wrote(
    sae_lens: Any, make: Callable[..., Any], x: Tensor, tmp_path: Path, name: str, config: dict[str, Any],
    subtracts: bool, norm: str,
) -> None:  # fmt: skip
    ours = as_sae(make(name, apply_b_dec_to_input=subtracts, normalize_activations=norm, **config))
    write_sae_lens(ours, tmp_path / "new" / "folder")
    theirs = load_with_sae_lens(sae_lens, tmp_path / "new" / "folder")
    assert_same(ours, theirs, x)
    again = read_sae(str(tmp_path / "new" / "folder"))
    assert again.info.model_kwargs == ours.info.model_kwargs
    assert (again.info.site_in, again.info.neuronpedia) == (ours.info.site_in, ours.info.neuronpedia)
    assert theirs.cfg.metadata.hook_name == ours.info.site_in
    assert weights_sha256(again) == weights_sha256(ours)


def test_an_input_bias_of_its_own_survives_saving(
    sae_lens: Any, make: Callable[..., Any], x: Tensor, tmp_path: Path
) -> None:
    for name, config in CASES:
        ours = controls.scale_decoder(as_sae(make(name, **config)), 0.8)
        shifted = LinearDecoderSAE(
            ours.info, ours.W_enc, ours.activation, ours.W_dec, ours.b_dec + 1, ours.pre_bias - 0.3
        )
        write_sae_lens(shifted, tmp_path / name)
        assert_same(shifted, load_with_sae_lens(sae_lens, tmp_path / name), x)


def test_only_saes_made_of_tensors_can_be_written(make: Callable[..., Any], tmp_path: Path) -> None:
    sae = as_sae(make("StandardSAE"))
    with pytest.raises(UsageError, match="cannot be written in SAELens' format"):
        write_sae_lens(fold_decoder_norms(sae), tmp_path)
    with pytest.raises(UsageError, match="cannot be written in SAELens' format"):
        write_sae_lens(wrap(make("StandardSAE")), tmp_path)


# Wrong readings differ, or are refused


def test_each_wrong_reading_changes_the_numbers(make: Callable[..., Any], x: Tensor) -> None:
    for name, config in CASES:
        theirs = make(name, **config)
        sound = as_sae(theirs)
        wrong = [controls.drop_decoder_bias(sound), controls.drop_encoder_bias(sound)]
        if name != "StandardSAE":
            wrong.append(controls.lose_threshold(sound))
        for reading in wrong:
            with pytest.raises(AssertionError):
                assert_same(reading, theirs, x)


def test_a_transposed_square_sae_is_refused(make: Callable[..., Any], tmp_path: Path) -> None:
    theirs = make("StandardSAE", d_in=24, d_sae=24)
    with torch.no_grad():
        theirs.W_enc.copy_(theirs.W_dec.T + 0.3 * torch.randn(24, 24))
    theirs.save_model(tmp_path)
    read_sae(str(tmp_path))
    weights = load_file(tmp_path / "sae_weights.safetensors")
    for name in ("W_enc", "W_dec"):
        turned = {**weights, name: weights[name].T.contiguous()}
        save_file(turned, tmp_path / "sae_weights.safetensors")
        with pytest.raises(LoadError, match="is transposed: encoder and decoder directions have mean cosine"):
            read_sae(str(tmp_path))


def test_a_token_norm_needs_the_input(make: Callable[..., Any], x: Tensor) -> None:
    sae = as_sae(make("StandardSAE", normalize_activations="layer_norm"))
    with pytest.raises(MeasurementError, match=r"pass their input as well: decode\(codes, like=x\)"):
        sae.decode(sae.encode(x))
    zeros = torch.zeros(2, 12)
    rescaled = as_sae(make("StandardSAE", normalize_activations="constant_norm_rescale"))
    assert torch.equal(rescaled.decode(rescaled.encode(zeros), zeros), zeros)


# Bad input is one sentence


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    for key, value in changes.items():
        if key == "metadata":
            config["metadata"].update(value)
        elif value is None:
            config.pop(key, None)
        else:
            config[key] = value
    (folder / "cfg.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "jumprelo"}, r"unknown architecture 'jumprelo' of .*; did you mean 'jumprelu' or"),
        (
            {"architecture": "temporal"},
            "is a temporal SAE, which cannot be measured: its codes depend on",
        ),
        ({"architecture": 7}, "architecture of .* is 7, it must be a str or null"),
        ({"architecture": "standard"}, r"have threshold too many \(expected W_dec, W_enc, b_dec, b_enc\)"),
        ({"architecture": "gated"}, "lack b_gate, b_mag, r_mag and have b_enc, threshold too many"),
        ({"architecture": "transcoder"}, "d_out of .* is None, it must be a positive integer"),
        ({"architecture": "transcoder", "d_out": 12}, r"have threshold too many"),
        ({"architecture": "jumprelu_transcoder", "d_out": 13}, r"W_dec of .* requires \(40, 13\)"),
        ({"architecture": "jumprelu_skip_transcoder", "d_out": 12}, "lack W_skip"),
        (
            {"metadata": {"hook_name_out": "blocks.1.hook_mlp_out"}},
            r"reads blocks\.1\.hook_resid_post and writes blocks\.1\.hook_mlp_out, but its architecture jumprelu is an",
        ),
        ({"d_out": 13}, "writes another width, but its architecture jumprelu is an autoencoder's"),
        ({"metadata": {"hook_head_index": "3"}}, "hook_head_index of .* is '3', it must be a int"),
        ({"d_in": 13}, r"W_enc of .* has shape \(12, 40\) where its config requires \(13, 40\)"),
        ({"d_in": 40, "d_sae": 12}, r"W_enc of .* it looks transposed"),
        ({"d_in": "12"}, "d_in of .* is '12', it must be a positive integer"),
        ({"d_in": None}, "d_in of .* is None, it must be a positive integer"),
        ({"normalize_activations": "covariance_whitening"}, "needs its input whitened .* add activation_whitening"),
        ({"normalize_activations": ["layer_norm"]}, "normalize_activations .* cannot be applied"),
        ({"activation_fn": "tanh-relu"}, "activation function 'tanh-relu' of"),
    ],
    ids=lambda each: str(each)[:40] if isinstance(each, dict) else "",
)
def test_a_config_that_does_not_fit_is_one_sentence(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(LoadError, match=message) as caught:
        read_sae(str(saved))
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


def test_k_must_fit(make: Callable[..., Any], tmp_path: Path) -> None:
    make("TopKSAE", k=5).save_model(tmp_path)
    edit(tmp_path, k=41)
    with pytest.raises(LoadError, match=r"k of .* is 41; it must be between 1 and its number of features, 40"):
        read_sae(str(tmp_path))
    edit(tmp_path, k=None)
    with pytest.raises(LoadError, match=r"k of .* is None, it must be a positive integer"):
        read_sae(str(tmp_path))


@pytest.mark.parametrize(("name", "value"), [("W_dec", math.nan), ("b_enc", math.inf), ("threshold", math.nan)])
def test_weights_that_are_no_numbers_are_named(saved: Path, name: str, value: float) -> None:
    weights = load_file(saved / "sae_weights.safetensors")
    weights[name].view(-1)[:3] = value
    save_file(weights, saved / "sae_weights.safetensors")
    nan, infinite = (3, 0) if math.isnan(value) else (0, 3)
    with pytest.raises(LoadError, match=rf"weight {name} has {nan} NaN and {infinite} infinite of"):
        read_sae(str(saved))


@pytest.mark.parametrize("keep", [0, 4, 200, -40])
def test_truncated_weights(saved: Path, keep: int) -> None:
    path = saved / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LoadError, match=r"is truncated or no safetensors file"):
        read_sae(str(saved))


@pytest.mark.parametrize("text", ["", "{", "<html>404</html>", "\xff\xfe", "[1, 2]", "null"])
def test_a_broken_config(saved: Path, text: str) -> None:
    (saved / "cfg.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadError, match=r"cfg\.json (is not readable JSON|holds a JSON)"):
        read_sae(str(saved))


def test_missing_files_are_named(saved: Path) -> None:
    weights = (saved / "sae_weights.safetensors").rename(saved.parent / "kept")
    with pytest.raises(LoadError, match=r"has no sae_weights\.safetensors"):
        read_sae(str(saved))
    weights.rename(saved / "sae_weights.safetensors")
    (saved / "cfg.json").unlink()
    with pytest.raises(LoadError, match=r"has no cfg\.json"):
        read_sae(str(saved))


def test_thresholds_are_strict_and_codes_never_negative() -> None:
    projections = torch.tensor([[-0.5], [0.5], [0.75]])
    for threshold, codes in [(0.5, [0.0, 0.0, 0.75]), (-1.0, [0.0, 0.5, 0.75])]:
        activation = JumpReLU(torch.zeros(1), torch.full((1,), threshold))
        assert activation(projections).flatten().tolist() == codes
