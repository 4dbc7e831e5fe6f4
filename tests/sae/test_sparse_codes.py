"""Codes without their zeros say what dense ones say, for every activation and every way back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_bench.sae import (
    AbsTopK,
    Activation,
    Gated,
    GroupMax,
    JumpReLU,
    LinearDecoderSAE,
    PursuitSAE,
    ReLU,
    SAEInfo,
    TopK,
    decode_codes,
    encode_sparse,
    fold_decoder_norms,
    linear,
)
from sae_bench.sae.sparse_codes import SparseCodes

D, N = 12, 50


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activations() -> dict[str, Activation]:
    bias = 0.3 * normal(N, seed=1) - 1
    return {
        "relu": ReLU(bias),
        "jumprelu": JumpReLU(bias, normal(N, seed=2).abs()),
        "gated": Gated(bias, 0.2 * normal(N, seed=3), 0.3 * normal(N, seed=4)),
        "topk": TopK(bias, 4),
        "abstopk": AbsTopK(bias, 4),
        "groupmax": GroupMax(bias, 5),
    }


def sae_of(activation: Activation, **options: Any) -> LinearDecoderSAE:
    info = SAEInfo(format="test", architecture="test", d_in=D, d_sae=N)
    return LinearDecoderSAE(
        info=info, W_enc=normal(D, N, seed=5), activation=activation, W_dec=normal(N, D, seed=6),
        b_dec=normal(D, seed=7), pre_bias=normal(D, seed=8), **options,
    )  # fmt: skip


SAES = {
    **{name: sae_of(activation) for name, activation in activations().items()},
    "layer_norm": sae_of(activations()["jumprelu"], token_norm="layer_norm"),
    "rescaled": sae_of(activations()["topk"], token_norm="constant_norm_rescale"),
    "skip": sae_of(activations()["relu"], W_skip=normal(D, D, seed=9)),
    "pursuit": PursuitSAE(
        SAEInfo("test", "matching_pursuit", D, N), torch.nn.functional.normalize(normal(N, D, seed=6), dim=1),
        normal(D, seed=7), residual_threshold=0.1, max_iterations=6, stop_on_duplicate_support=False,
    ),
    "folded": fold_decoder_norms(sae_of(activations()["jumprelu"])),
}  # fmt: skip


@pytest.mark.parametrize("width", [7, 50, 2048])
@pytest.mark.parametrize("name", SAES)
def test_sparse_and_dense_agree(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "FEATURES", width)
    sae, x = SAES[name], 2 * normal(40, D, seed=10)
    dense, sparse = sae.encode(x), encode_sparse(sae, x)
    torch.testing.assert_close(sparse.dense(), dense, rtol=1e-6, atol=1e-6)
    assert (sparse.tokens, sparse.features) == (40, N)
    assert bool((sparse.token[1:] >= sparse.token[:-1]).all())
    torch.testing.assert_close(decode_codes(sae, sparse, x), sae.decode(dense, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["jumprelu", "topk", "layer_norm", "pursuit"])
def test_few_codes_are_decoded_by_their_rows_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And many by a product: neither may change what comes out."""
    sae, x = SAES[name], 2 * normal(40, D, seed=10)
    codes = encode_sparse(sae, x)
    found = []
    for once_in in (0, 10**6):
        monkeypatch.setattr("sae_bench.sae.decoder.SPARSE", once_in)
        found.append(decode_codes(sae, codes, x))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    written: list[int] = []
    write = SparseCodes.write
    monkeypatch.setattr(SparseCodes, "write", lambda *given: (written.append(1), write(*given))[1])
    monkeypatch.setattr("sae_bench.sae.decoder.SPARSE", 0)
    decode_codes(sae, codes, x)
    assert written


def test_half_precision_goes_through_the_product() -> None:
    sae = SAES["jumprelu"].to(dtype=torch.bfloat16)
    x = normal(40, D, seed=10).bfloat16()
    codes = encode_sparse(sae, x)
    assert codes.value.dtype == torch.bfloat16
    assert torch.equal(decode_codes(sae, codes, x), sae.decode(codes.dense(), x))


def test_a_code_that_is_no_number_is_not_lost() -> None:
    sae = sae_of(activations()["jumprelu"])
    broken = dataclasses.replace(sae, W_enc=torch.where(torch.arange(N) == 3, torch.nan, sae.W_enc))
    codes = encode_sparse(broken, normal(4, D))
    assert codes.value[codes.feature == 3].isnan().sum() == 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 100), st.integers(1, 9))
def test_codes_are_cut_and_joined(counts: list[int], seed: int, columns: int) -> None:
    dense = torch.relu(normal(sum(counts), 9, seed=seed) - 0.5)
    codes = SparseCodes.from_columns(dense.split(columns, dim=1))
    assert torch.equal(codes.dense(), dense)
    parts = codes.split(counts)
    for part, rows in zip(parts, dense.split(counts), strict=True):
        assert torch.equal(part.dense(), rows)
    assert torch.equal(SparseCodes.join(parts).dense(), dense)
    assert torch.equal(codes.first(counts[0]).dense(), dense[: counts[0]])
