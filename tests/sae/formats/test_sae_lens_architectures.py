"""More of what SAELens offers: signed codes, matching pursuit, transcoders, whitening; with tokens as large as BOS."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_bench.errors import LoadError, MeasurementError, UsageError
from sae_bench.sae import PursuitSAE, fold_decoder_norms, weights_sha256
from sae_bench.sae.formats import as_sae, read_sae, write_sae_lens

D, F, OUT = 12, 40, 9
NORMS = ["none", "constant_norm_rescale", "layer_norm"]
TRANSCODERS = ["Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"]


@pytest.fixture
def tokens(x: Tensor) -> Tensor:
    """Activations, the first of every document as large as a BOS token's."""
    large = x.clone()
    large[:, 0] *= 300
    return large


def assert_same(ours: Any, theirs: Any, x: Tensor) -> None:
    """Codes and full passes agree, each to 1e-5 of its largest value in the token."""
    with torch.no_grad():
        codes, xhat = theirs.encode(x), theirs(x)
    assert 0 < float((codes != 0).double().mean()) < 0.8
    mine = ours.encode(x)
    for found, due in ((mine, codes), (ours.decode(mine, like=x), xhat)):
        scale = due.abs().amax(-1, keepdim=True).clamp(min=1)
        torch.testing.assert_close(found / scale, due / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("config", [{}, {"rescale_acts_by_decoder_norm": True}], ids=["plain", "rescaled"])
def test_codes_of_either_sign(
    make: Callable[..., Any], tokens: Tensor, tmp_path: Path, norm: str, config: dict[str, Any]
) -> None:
    theirs = make("AbsTopKSAE", k=5, normalize_activations=norm, **config)
    theirs.save_model(tmp_path)
    ours = read_sae(str(tmp_path))
    assert_same(ours, theirs, tokens)
    assert bool((ours.encode(tokens) < 0).any())
    assert_same(fold_decoder_norms(ours), theirs, tokens) if config else None
    write_sae_lens(ours, tmp_path / "again")
    assert weights_sha256(read_sae(str(tmp_path / "again"))) == weights_sha256(ours)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"max_iterations": 4, "residual_threshold": 0.0, "stop_on_duplicate_support": False},
        {"max_iterations": 12, "residual_threshold": 1.5, "stop_on_duplicate_support": False},
        {},
    ],
    ids=["steps", "residual", "defaults"],
)
def test_matching_pursuit(
    make: Callable[..., Any], tokens: Tensor, tmp_path: Path, config: dict[str, Any], subtracts: bool, norm: str
) -> None:
    theirs = make("MatchingPursuitSAE", apply_b_dec_to_input=subtracts, normalize_activations=norm, **config)
    with torch.no_grad():
        theirs.W_dec.div_(theirs.W_dec.norm(dim=1, keepdim=True))
    theirs.save_model(tmp_path)
    ours = read_sae(str(tmp_path))
    assert isinstance(ours, PursuitSAE)
    assert_same(ours, theirs, tokens)
    assert_same(as_sae(theirs), theirs, tokens)
    with pytest.raises(UsageError, match="cannot be written in SAELens' format"):
        write_sae_lens(ours, tmp_path / "again")


def test_a_scaled_input_of_matching_pursuit(make: Callable[..., Any], x: Tensor, tmp_path: Path) -> None:
    config = {"max_iterations": 12, "residual_threshold": 0.9, "stop_on_duplicate_support": False}
    theirs = make("MatchingPursuitSAE", normalize_activations="expected_average_only_in", **config)
    with torch.no_grad():
        theirs.W_dec.div_(theirs.W_dec.norm(dim=1, keepdim=True))
    theirs.save_model(tmp_path)
    with pytest.raises(LoadError, match="the factor is not stored with it"):
        read_sae(str(tmp_path))
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.37}')
    theirs.fold_activation_norm_scaling_factor(0.37)
    assert_same(read_sae(str(tmp_path)), theirs, x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", TRANSCODERS)
def test_transcoders(make: Callable[..., Any], tokens: Tensor, tmp_path: Path, name: str, norm: str) -> None:
    theirs = make(name, d_out=OUT, apply_b_dec_to_input=False, normalize_activations=norm)
    theirs.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    theirs.save_model(tmp_path)
    ours = read_sae(str(tmp_path))
    assert (ours.d_in, ours.d_out) == (D, OUT)
    assert (ours.site_in, ours.site_out) == ("blocks.1.hook_resid_post", "blocks.1.hook_mlp_out")
    assert_same(ours, theirs, tokens)
    assert_same(as_sae(theirs), theirs, tokens)
    if "Skip" in name:
        with pytest.raises(MeasurementError, match="adds a linear map of its input"):
            ours.decode(ours.encode(tokens))
    with pytest.raises(UsageError, match=r"a transcoder .* cannot be written"):
        write_sae_lens(ours, tmp_path / "again")


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("StandardSAE", {}),
        ("GatedSAE", {}),
        ("JumpReLUSAE", {}),
        ("TopKSAE", {"k": 5}),
        ("TopKSAE", {"k": 5, "rescale_acts_by_decoder_norm": True}),
        ("AbsTopKSAE", {"k": 5}),
        ("AbsTopKSAE", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ],
    ids=["standard", "gated", "jumprelu", "topk", "topk-rescaled", "abstopk", "abstopk-rescaled"],
)
def test_a_whitened_input(
    make: Callable[..., Any], tokens: Tensor, tmp_path: Path, name: str, config: dict[str, Any], subtracts: bool
) -> None:
    theirs = make(name, normalize_activations="covariance_whitening", apply_b_dec_to_input=subtracts, **config)
    theirs.save_model(tmp_path)
    generator = torch.Generator().manual_seed(3)
    mean, matrix = torch.randn(D, generator=generator), torch.randn(D, D, generator=generator) / 4 + torch.eye(D)
    # As it is stored: a product with another layout of the same matrix may round otherwise.
    inverse = torch.linalg.inv(matrix.double()).float().contiguous()
    with pytest.raises(LoadError, match=r"add activation_whitening\.safetensors from its checkpoint"):
        read_sae(str(tmp_path))
    stored = {"mean": mean, "matrix": matrix, "inverse_matrix": inverse}
    save_file(stored, tmp_path / "activation_whitening.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fold_activation_whitening(mean, matrix, inverse)
    ours = read_sae(str(tmp_path))
    assert_same(ours, theirs, tokens)


def test_one_head_is_part_of_the_site(make: Callable[..., Any], tmp_path: Path) -> None:
    theirs = make("StandardSAE", hook_name="blocks.1.attn.hook_z")
    theirs.cfg.metadata.hook_head_index = 3
    theirs.save_model(tmp_path)
    assert read_sae(str(tmp_path)).site_in == "blocks.1.attn.hook_z[3]"


def test_a_temporal_object_is_refused_not_wrapped(sae_lens: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = sae_lens.TemporalSAEConfig(d_in=16, d_sae=64, n_heads=1, bottleneck_factor=8, kval_topk=4)
        temporal = sae_lens.TemporalSAE(config)
    with pytest.raises(
        LoadError, match="is a temporal SAE, which cannot be measured: its codes depend on earlier tokens"
    ):
        as_sae(temporal)
