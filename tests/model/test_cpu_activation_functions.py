"""Activation functions done in parts: the same bits, and the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import activations as theirs

from sae_bench.model import chunked_gelu
from sae_bench.model.chunked_gelu import CHAINED_GELUS, chained_gelus, in_chunks
from sae_bench.model.language_model import Model


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers an original function was given, each time; parts are of 1,000."""
    monkeypatch.setattr(chunked_gelu, "CHUNK", 1000)
    seen: list[int] = []
    for name in CHAINED_GELUS:
        original = getattr(theirs, name).forward

        def counted(self: Any, x: torch.Tensor, original: Any = original) -> Any:
            seen.append(x.numel())
            return original(self, x)

        monkeypatch.setattr(getattr(theirs, name), "forward", counted)
    return seen


@pytest.mark.parametrize("name", CHAINED_GELUS)
@pytest.mark.parametrize("shape", [(3, 7, 100), (2, 1001), (1, 1, 2000), (5, 77, 13), (4, 25)])
def test_parts_give_the_same_bits(name: str, shape: tuple[int, ...], sizes: list[int]) -> None:
    function = getattr(theirs, name)()
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for given in (x, x.transpose(0, -1)):
        whole = function(given)
        sizes.clear()
        with torch.no_grad(), in_chunks([function]):
            assert torch.equal(function(given), whole)
        numbers = x.numel()
        assert sizes == ([1000] * (numbers // 1000) + [numbers % 1000] * (numbers % 1000 > 0))


def test_all_threads_give_the_same_bits() -> None:
    function = theirs.NewGELUActivation()
    x = torch.randn(2 * chunked_gelu.CHUNK + 12_345, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            whole = function(x)
            with torch.no_grad(), in_chunks([function]):
                assert torch.equal(function(x), whole)
    finally:
        torch.set_num_threads(threads)


def test_gradients_are_of_the_whole(sizes: list[int]) -> None:
    function = theirs.NewGELUActivation()
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with in_chunks([function]):
        (slope,) = torch.autograd.grad(function(x).sum(), x)
    assert sizes == [3000]
    assert slope.ne(0).all()


def test_a_models_own_functions_come_back(tiny_model: Callable[..., Model], sizes: list[int]) -> None:
    model = tiny_model("GPT2")
    found = chained_gelus(model.bridge)
    assert [type(each).__name__ for each in found] == ["NewGELUActivation"] * model.n_layers
    tokens = torch.randint(2, 61, (3, 12), generator=torch.Generator().manual_seed(1))
    logits = model.logits(tokens)
    assert sizes == [1000, 1000, 304] * model.n_layers
    assert all("forward" not in vars(each) for each in found)
    chunked_gelu.CHUNK = 1 << 18  # monkeypatch puts back what was there before the test
    assert torch.equal(model.logits(tokens), logits)


def test_what_somebody_replaced_is_left_alone() -> None:
    function = theirs.NewGELUActivation()
    function.forward = torch.relu  # type: ignore[method-assign, assignment]
    with torch.no_grad(), in_chunks([function]):
        assert torch.equal(function(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    assert function.forward is torch.relu


def test_another_class_of_that_name_is_no_chain() -> None:
    class NewGELUActivation(nn.Module):
        """It could do anything, over a whole row for example."""

    assert chained_gelus(nn.Sequential(NewGELUActivation(), nn.GELU(), theirs.SiLUActivation())) == []
    (only,) = chained_gelus(nn.Sequential(theirs.FastGELUActivation()))
    assert type(only) is theirs.FastGELUActivation
