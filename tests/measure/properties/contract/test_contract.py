"""Sound SAEs keep the contract; each planted defect breaks the clause that speaks of it, with the smallest input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.properties.contract import CLAUSES
from sae_bench.sae import AbsTopK, TopK
from tests.support.toy_saes import WIDTH, Tied, linear


class NaNOnZeros(Tied):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x / x.norm(dim=-1, keepdim=True)) * x.norm(dim=-1, keepdim=True)


class Centred(Tied):
    """Subtracts the mean of the batch."""

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x - x.mean(0))


class FirstIsSpecial(Tied):
    """Treats the first row of a batch as BOS."""

    def encode(self, x: Tensor) -> Tensor:
        codes = super().encode(x)
        codes[0] = 0
        return codes


class Drifting(Tied):
    """Counts its calls, as a running mean does."""

    calls = 0

    def encode(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().encode(x) * (1 + 1e-3 * self.calls)


class Noisy(Tied):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x + 0.01 * torch.randn_like(x))


class Half(Tied):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x).to(torch.bfloat16)


class HalfAndBack(Tied):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x).to(torch.bfloat16).float()


class Signed(Tied):
    def encode(self, x: Tensor) -> Tensor:
        return x @ self.W_dec.T / 2


class Clipped(Tied):
    def decode(self, codes: Tensor) -> Tensor:
        return super().decode(codes).clamp(-10, 10)


class Cleaned(Tied):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x.nan_to_num())


class Overflowing(Tied):
    """Fine on real activations, infinite on large ones."""

    def encode(self, x: Tensor) -> Tensor:
        return torch.where(x.abs().amax(-1, keepdim=True) > 1e4, torch.inf, super().encode(x))


DEFECTS: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN on zeros": (NaNOnZeros, "not_finite"),
    "infinite on large": (Overflowing, "not_finite"),
    "centred by batch": (Centred, "batch_dependent"),
    "first row special": (FirstIsSpecial, "batch_dependent"),
    "remembers": (Drifting, "not_deterministic"),
    "noisy": (Noisy, "not_deterministic"),
    "returns bfloat16": (Half, "wrong_dtype_or_shape"),
    "rounds to bfloat16": (HalfAndBack, "rounded"),
    "negative codes": (Signed, "wrong_sign"),
    "clips": (Clipped, "decode_not_affine"),
    "hides NaN": (Cleaned, "nan_hidden"),
    "threshold of -1": (lambda: linear(threshold=-1.0), "uncalibrated_threshold"),
    "feature that writes nothing": (
        lambda: replace(linear(), W_dec=linear().W_dec * torch.tensor([0.0] + [1.0] * 15)[:, None]),
        "silent_features",
    ),
}


@pytest.mark.parametrize("sae", [linear(), linear(threshold=0.01), linear(2.0)], ids=["relu", "jumprelu", "scaled"])
def test_sound_saes_break_nothing(contract: Callable[..., Any], sae: Any) -> None:
    found = contract(sae)
    assert found.metrics["violations"].value == 0
    assert all(found.metrics[name].value == 0 for name in CLAUSES)
    assert found.notes == ()


def test_a_sound_topk_sae_breaks_nothing_although_features_tie(contract: Callable[..., Any]) -> None:
    sae = replace(linear(), activation=TopK(torch.zeros(2 * WIDTH), 4))
    assert contract(sae).verdict is Verdict.PASS


def test_codes_that_are_declared_to_be_signed_may_be_negative(contract: Callable[..., Any]) -> None:
    sae = replace(linear(), activation=AbsTopK(torch.zeros(2 * WIDTH), 4))
    assert bool((sae.encode(torch.randn(8, WIDTH)) < 0).any())
    assert contract(sae).metrics["wrong_sign"].value == 0


def test_an_object_that_cannot_be_saved_says_so_and_passes(contract: Callable[..., Any]) -> None:
    found = contract(Tied())
    assert found.verdict is Verdict.UNDEFINED
    assert "cannot be written" in found.metrics["changed_by_saving"].reason
    assert found.metrics["violations"].value == 0


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_breaks_its_clause(contract: Callable[..., Any], name: str) -> None:
    make, clause = DEFECTS[name]
    found = contract(make())
    assert found.verdict is Verdict.FAIL
    assert found.metrics[clause].value == 1
    assert any(note.startswith(f"{clause}: ") for note in found.notes)


def test_saving_that_loses_something_is_seen(contract: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_bench.sae import formats

    read = formats.read_folder
    monkeypatch.setattr(formats, "read_folder", lambda path: replace(read(path), pre_bias=torch.full((WIDTH,), 0.5)))
    assert contract(linear()).metrics["changed_by_saving"].value == 1


def test_counterexamples_are_shrunk_to_words(contract: Callable[..., Any]) -> None:
    assert contract(NaNOnZeros()).notes[0].endswith("for 1 token, zeros, float32")
    large = next(note for note in contract(Overflowing()).notes if note.startswith("not_finite"))
    assert "1 token, huge" in large


def test_the_same_seed_finds_the_same_counterexamples(contract: Callable[..., Any]) -> None:
    assert contract(Clipped()).notes == contract(Clipped()).notes
    assert contract(linear(), seed=7).verdict is Verdict.PASS


def test_the_failure_text_has_the_counterexample(activations: Tensor) -> None:
    from sae_bench.frontends.in_memory import Activations, ActivationsLoader, as_documents, corpus_of_activations
    from sae_bench.registry.spec import SAESpec
    from sae_bench.run.options import RunOptions
    from sae_bench.run.run import Run

    x, lengths = as_documents(activations)
    given = Activations(x, corpus_of_activations(x, lengths), is_matrix=True)
    run = Run(
        RunOptions(compare=False), make_loader=lambda settings, progress: ActivationsLoader(settings, progress, given)
    )
    failure = str(run.check(SAESpec(id="lab/x", load=NaNOnZeros), "contract").failure)
    assert failure.splitlines()[0].startswith("contract.violations of lab/x is 1.00 clauses")
    assert "not_finite: encode of finite activations holds 16 NaN" in failure
    assert "for 1 token, zeros, float32" in failure
