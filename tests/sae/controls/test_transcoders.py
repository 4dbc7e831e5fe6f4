"""Controls of a transcoder are made from what it reads, and held against what it should write."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from sae_bench.errors import MeasurementError
from sae_bench.sae import LinearDecoderSAE, SAEInfo, TopK, controls
from sae_bench.sae.controls import make_control

READ, WRITTEN, RANK, K, F = 12, 9, 4, 3, 30
SITES = ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")


@pytest.fixture
def both() -> tuple[Tensor, Tensor]:
    """Activations read (4000, 12) and written (4000, 9): a map of rank 4 plus noise, around means that are not 0."""
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(4000, READ, generator=generator) * torch.linspace(1, 9, READ) + 5
    plan = torch.randn(READ, RANK, generator=generator) @ torch.randn(RANK, WRITTEN, generator=generator)
    return read, read @ plan + 0.1 * torch.randn(4000, WRITTEN, generator=generator) - 2


@pytest.fixture
def transcoder() -> LinearDecoderSAE:
    generator = torch.Generator().manual_seed(1)
    return LinearDecoderSAE(
        info=SAEInfo("test", "transcoder", READ, F, site_in=SITES[0], site_out=SITES[1]),
        W_enc=torch.randn(READ, F, generator=generator),
        activation=TopK(torch.zeros(F), K),
        W_dec=torch.randn(F, WRITTEN, generator=generator),
        b_dec=torch.zeros(WRITTEN),
        pre_bias=torch.full((READ,), 5.0),
    )


def squares(sae: LinearDecoderSAE, read: Tensor, written: Tensor) -> float:
    return float((sae.decode(sae.encode(read)) - written).double().square().sum())


def test_the_best_map_of_a_rank(both: tuple[Tensor, Tensor]) -> None:
    """Against every other map of that rank that is easily had, and against the least squares it is made of."""
    read, written = both
    ones = torch.cat([read, torch.ones(len(read), 1)], dim=1).double()
    full = ones @ torch.linalg.lstsq(ones, written.double()).solution
    unexplained = float((full - written).square().sum())
    spectrum = torch.linalg.svdvals(full - full.mean(0)).square()
    found = []
    for k in range(1, WRITTEN + 1):
        sae = controls.reduced_rank(read, written, k, SITES)
        # What is lost is what no linear map has, and the variance of its prediction beyond k directions.
        due = unexplained + float(spectrum[k:].sum())
        assert squares(sae, read, written) == pytest.approx(due, rel=1e-3)
        assert float((sae.encode(read) != 0).sum(1).double().mean()) == k
        assert (sae.site_in, sae.site_out) == SITES
        found.append(squares(sae, read, written))
    assert found == sorted(found, reverse=True)
    assert found[RANK - 2] > 10 * found[RANK - 1]
    # Components of the input, chosen without a look at what is written, do worse.
    inner = controls.pca(read, RANK).encode(read).double()
    inner = torch.cat([inner, torch.ones(len(inner), 1, dtype=torch.float64)], dim=1)
    onto = inner @ torch.linalg.lstsq(inner, written.double(), driver="gelsd").solution
    assert float((onto - written).square().sum()) > 2 * found[RANK - 1]


def test_it_is_pca_where_both_ends_are_the_same(both: tuple[Tensor, Tensor]) -> None:
    read = both[0]
    for k in (1, 5, READ):
        one, two = controls.reduced_rank(read, read, k), controls.pca(read, k)
        torch.testing.assert_close(one.decode(one.encode(read)), two.decode(two.encode(read)), rtol=1e-4, atol=1e-3)


def test_a_direction_that_never_varies_gets_no_weight(both: tuple[Tensor, Tensor]) -> None:
    read, written = both
    stuck = torch.cat([read, read[:, :1] * 2], dim=1)
    sae = controls.reduced_rank(stuck, written, RANK)
    assert float(sae.W_enc.abs().max()) < 100
    assert squares(sae, stuck, written) == pytest.approx(
        squares(controls.reduced_rank(read, written, RANK), read, written), rel=1e-3
    )


def test_ranks_that_do_not_exist(both: tuple[Tensor, Tensor]) -> None:
    for k in (0, WRITTEN + 1):
        with pytest.raises(MeasurementError, match=f"widths 12 and 9 have no map of rank {k}; take 1 to 9"):
            controls.reduced_rank(*both, k)


def test_l0_is_counted_where_the_transcoder_reads(both: tuple[Tensor, Tensor], transcoder: LinearDecoderSAE) -> None:
    read, written = both
    found = make_control("pca", transcoder, read, written, torch.Generator())
    assert found.d_sae == 2 * K
    assert (found.d_in, found.d_out) == (READ, WRITTEN)
    square = dataclasses.replace(
        transcoder,
        W_enc=torch.randn(READ, F, generator=torch.Generator().manual_seed(2)),
        W_dec=torch.randn(F, READ, generator=torch.Generator().manual_seed(3)),
        b_dec=torch.zeros(READ),
    )
    # Widths alike do not make it an autoencoder: what is written is not what is read.
    elsewhere = read.flip(1)
    assert squares(make_control("pca", square, read, elsewhere, torch.Generator()), read, elsewhere) < squares(
        controls.pca(read, K), read, elsewhere
    )


@pytest.mark.parametrize("name", ["random", "permuted", "identity"])
def test_the_other_controls_have_a_transcoders_widths(
    both: tuple[Tensor, Tensor], transcoder: LinearDecoderSAE, name: str
) -> None:
    found = make_control(name, transcoder, *both, torch.Generator().manual_seed(0))
    assert found.d_out == WRITTEN
    if name == "identity":
        assert squares(found, both[1], both[1]) == 0
    else:
        assert found.decode(found.encode(both[0])).shape == both[1].shape
        torch.testing.assert_close(found.W_dec.norm(dim=1).sort().values, transcoder.W_dec.norm(dim=1).sort().values)
