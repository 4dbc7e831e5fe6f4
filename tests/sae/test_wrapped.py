"""Objects of other libraries and users, measured as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sae_bench.errors import LoadError, MeasurementError
from sae_bench.sae import WrappedSAE, check_outputs, fold_decoder_norms, weights_sha256, wrap

W = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
SQUARE = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))


class Plain:
    """Rows of W write; encode is tied."""

    def __init__(self, rows: Tensor = W, stored: Tensor | None = None, **attributes: Any) -> None:
        self.rows = rows
        if stored is not None:
            self.W_dec = stored
        for name, value in attributes.items():
            setattr(self, name, value)

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.rows.T)

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self.rows + 0.5


class LikeDictionaryLearning(nn.Module):
    """Linear layers, a bias of its own, and gradients on, as that library has it."""

    def __init__(self) -> None:
        super().__init__()
        self.activation_dim, self.dict_size = 6, 10
        self.encoder, self.decoder = nn.Linear(6, 10), nn.Linear(10, 6, bias=False)
        self.bias = nn.Parameter(torch.randn(6))

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.encoder(x - self.bias))

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(codes) + self.bias


def test_encode_and_decode_are_the_objects_own() -> None:
    obj = LikeDictionaryLearning()
    sae = wrap(obj)
    x = torch.randn(3, 5, 6)
    assert torch.equal(sae.encode(x), obj.encode(x))
    assert torch.equal(sae.decode(sae.encode(x), x), obj.decode(obj.encode(x)))
    assert not sae.encode(x).requires_grad
    assert (sae.d_in, sae.d_sae, sae.d_out) == (6, 10, 6)
    assert torch.equal(sae.W_dec, obj.decoder.weight.T)
    assert torch.allclose(sae.b_dec, obj.bias)
    assert not obj.training
    check_outputs(sae)


@pytest.mark.parametrize("stored", [W, W.T.contiguous()], ids=["rows", "columns"])
def test_orientation_is_found_by_shape(stored: Tensor) -> None:
    sae = wrap(Plain(stored=stored))
    assert (sae.d_in, sae.d_sae) == (6, 10)
    assert torch.equal(sae.W_dec, W)
    assert torch.allclose(sae.b_dec, torch.full((6,), 0.5))


@pytest.mark.parametrize("stored", [SQUARE, SQUARE.T.contiguous()], ids=["rows", "columns"])
def test_a_square_decoder_is_asked(stored: Tensor) -> None:
    assert torch.equal(wrap(Plain(SQUARE, stored)).W_dec, SQUARE)


def test_a_decoder_that_scales_its_rows_is_taken_at_its_word() -> None:
    sae = wrap(Plain(stored=W * torch.linspace(1, 4, 10).unsqueeze(1)))
    torch.testing.assert_close(sae.W_dec, W)


def test_weights_are_optional() -> None:
    sae = wrap(Plain(d_in=6))
    assert sae.d_sae == 10
    with pytest.raises(
        MeasurementError, match=r"the Plain object has no W_dec.*add an attribute W_dec \(d_sae, d_out\)"
    ):
        _ = sae.W_dec
    x = torch.randn(4, 6)
    assert torch.equal(sae.decode(sae.encode(x)), Plain().decode(Plain().encode(x)))


def test_a_decoder_that_is_not_linear_has_no_directions() -> None:
    class Curved(Plain):
        def decode(self, codes: Tensor) -> Tensor:
            return torch.tanh(codes @ self.rows)

    with pytest.raises(MeasurementError, match="is not linear in the codes"):
        _ = wrap(Curved(stored=W)).W_dec


def test_the_width_may_be_given_or_said_elsewhere() -> None:
    class Config:
        d_in = 6

    assert wrap(Plain(cfg=Config())).d_in == 6
    assert wrap(Plain(), d_in=6).d_in == 6
    with pytest.raises(LoadError, match="input is unknown; add an attribute d_in"):
        wrap(Plain())


def test_an_sae_is_returned_as_it_is() -> None:
    sae = wrap(Plain(d_in=6))
    assert wrap(sae) is sae


class Returns(Plain):
    def encode(self, x: Tensor) -> Any:
        return (x, x)


class Flattens(Plain):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x).flatten()


class Fails(Plain):
    def encode(self, x: Tensor) -> Tensor:
        raise ValueError("bad luck\nand more")


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (object(), "the object object has no encode"),
        (Returns(d_in=6), r"must return one tensor.*for shape \(1, 6\) it returned a tuple"),
        (Flattens(d_in=6), r"for shape \(1, 6\) it returned shape \(10,\)"),
        (Fails(d_in=6), r"failed on a tensor of shape \(1, 6\): ValueError: bad luck$"),
        (Plain(d_in=7), r"encode\(\) of the Plain object failed on a tensor of shape \(1, 7\)"),
    ],
)
def test_objects_that_cannot_be_used(obj: Any, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        wrap(obj)


def test_moving_and_precision() -> None:
    obj = LikeDictionaryLearning()
    half = wrap(obj).to("cpu", torch.bfloat16)
    assert half.encode(torch.randn(2, 6)).dtype == torch.bfloat16
    assert half.info.dtype == "bfloat16"
    with pytest.raises(LoadError, match=r"has no to\(\), so it cannot be moved to cpu as torch.float64"):
        wrap(Plain(stored=W)).to("cpu", torch.float64)
    sae = wrap(Plain(stored=W))
    assert sae.to("cpu", torch.float32) is sae


def test_the_hash_knows_weights_settings_and_behaviour() -> None:
    base = weights_sha256(wrap(Plain(stored=W)))
    assert weights_sha256(wrap(Plain(stored=W.clone()))) == base
    assert weights_sha256(wrap(Plain(stored=W, k=3))) != base
    changed = W.clone()
    changed[0, 0] += 1e-6
    assert weights_sha256(wrap(Plain(rows=changed, stored=changed))) != base

    class Slotted:
        __slots__ = ()
        d_in = 6

        def encode(self, x: Tensor) -> Tensor:
            return torch.relu(x @ W.T)

        def decode(self, codes: Tensor) -> Tensor:
            return codes @ W

    class Louder(Slotted):
        __slots__ = ()
        __qualname__ = Slotted.__qualname__

        def encode(self, x: Tensor) -> Tensor:
            return 2 * torch.relu(x @ W.T)

    assert weights_sha256(wrap(Slotted())) == weights_sha256(wrap(Slotted()))
    assert weights_sha256(wrap(Slotted())) != weights_sha256(wrap(Louder()))


def test_folding_works_on_wrapped_objects() -> None:
    sae = wrap(Plain(stored=W))
    folded = fold_decoder_norms(sae)
    x = torch.randn(5, 6)
    torch.testing.assert_close(folded.decode(folded.encode(x)), sae.decode(sae.encode(x)))
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(10))
    assert isinstance(sae, WrappedSAE)
