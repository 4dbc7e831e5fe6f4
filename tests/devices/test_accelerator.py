"""The whole suite on a GPU, as far as can be asked without one: nothing is in the wrong place, no number moves.

`test_a_real_one` asks a real one, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from sae_bench import check_sae
from sae_bench.demo.paths import MODEL, SAES, SITE
from sae_bench.engine.bench import Bench
from sae_bench.engine.noise_floors import isotropic
from sae_bench.errors import UsageError
from sae_bench.frontends.testing import OPERATIONS
from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.measurement import Undefined
from sae_bench.measure.properties import load_property, property_names
from sae_bench.model.load import load_model
from sae_bench.registry.spec import CONTROL
from sae_bench.run.load import Loader
from sae_bench.run.noise import measured_noise
from sae_bench.run.speed import _finish, _prepared
from sae_bench.sae import decode_codes, encode_sparse
from sae_bench.sae.controls import CONTROLS, DEFECTS
from sae_bench.sae.formats import read_sae
from tests.devices.accelerator import CPU, GPU, PretendedGPU, place, pretended_gpu
from tests.sae.test_sparse_codes import SAES as ARCHITECTURES
from tests.support.all_inputs import SPEC, settings_for

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def gpu() -> Iterator[PretendedGPU]:
    """One for all tests of this file; each enters it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield pretended_gpu(monkeypatch)


@pytest.fixture(scope="module")
def loaders() -> Callable[[Any], Loader]:
    return cache(Loader)


def measured(name: str, bench: Bench) -> dict[str, float]:
    estimates = load_property(name).measure(bench).estimates
    return {metric: np.nan if isinstance(each, Undefined) else each.value for metric, each in estimates.items()}


@pytest.mark.parametrize("name", property_names())
def test_every_property(name: str, gpu: PretendedGPU, loaders: Callable[[Any], Loader]) -> None:
    here = measured(name, loaders(settings_for(name)).bench(SPEC))
    with gpu:
        bench = loaders(settings_for(name, "cuda")).bench(SPEC)
        assert place(bench.batch((0,)).x) == GPU
        there = measured(name, bench)
    assert not all(np.isnan(list(here.values())))
    assert there == pytest.approx(here, rel=1e-3, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", ["batchtopk", "jumprelu", "matryoshka", "standard", "topk"])
def test_saes_that_are_read_from_files(name: str, gpu: PretendedGPU, loaders: Callable[[Any], Loader]) -> None:
    spec = replace(SPEC, id=f"demo/{name}", path=str(SAES[name]), next_layers=(), family=(), partner=None, site=None)
    properties = ("sparsity", "contract")
    here = [measured(each, loaders(settings_for(each)).bench(spec)) for each in properties]
    with gpu:
        there = [measured(each, loaders(settings_for(each, "cuda")).bench(spec)) for each in properties]
    for one, other in zip(here, there, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, gpu: PretendedGPU) -> None:
    sae, x = ARCHITECTURES[name], torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    due = sae.encode(x), decode_codes(sae, encode_sparse(sae, x), x)
    with gpu:
        there, y = sae.to("cuda"), x.to("cuda")
        codes = encode_sparse(there, y)
        found = codes.dense(), decode_codes(there, codes, y)
        assert all(place(each) == GPU for each in found)
    for one, other in zip(due, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control(name: str, gpu: PretendedGPU, loaders: Callable[[Any], Loader]) -> None:
    spec = replace(SPEC, id=f"demo/gated-{name}", control=name, tags=(CONTROL,))
    here = measured("reconstruction", loaders(settings_for("")).bench(spec))
    with gpu:
        there = measured("reconstruction", loaders(settings_for("", "cuda")).bench(spec))
    assert there == pytest.approx(here, rel=1e-3, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect(name: str, gpu: PretendedGPU) -> None:
    sae = read_sae(str(SAES["topk"]))
    with gpu:
        broken = DEFECTS[name](sae.to("cuda"), torch.Generator().manual_seed(0))
        x = torch.zeros(3, broken.d_in).to("cuda")
        broken.decode(broken.encode(x.to(broken.W_dec.dtype)), like=x)
        assert all(place(each) == GPU for each in broken.tensors().values())


def test_timing_and_repeating(gpu: PretendedGPU, loaders: Callable[[Any], Loader]) -> None:
    with gpu:
        bench = loaders(settings_for("", "cuda")).bench(SPEC)
        for operation in OPERATIONS:
            for work in _prepared(bench, operation)[:2]:
                _finish(work, "cuda")
        declared = load_property("kl_gap")
        assert measured_noise(declared, bench, declared.measure(bench))


def test_an_arm_hardly_makes_the_cpu_wait(gpu: PretendedGPU, loaders: Callable[[Any], Loader]) -> None:
    """Noise is drawn and sent while the GPU is at work; a run is waited for when it is done, not block by block."""
    with gpu:
        bench = loaders(settings_for("", "cuda")).bench(SPEC)
        batch = bench.batch((0, 1))
        bench.intervene(batch, None)
        pool = bench.noise_pool()
        gpu.waits.clear()
        value = isotropic(batch.x, batch.x, pool, bench.draw(batch, "isotropic", 0))
        assert gpu.waits.total() == 0
        bench.intervene(batch, value)
        assert gpu.waits.total() <= 7


def test_what_is_at_hand_is_measured_where_it_is(gpu: PretendedGPU) -> None:
    """A model in memory says where; activations do, where there is no model."""
    said = {"tokens": [[0, *range(2, 40)]] * 4, "properties": ["kl_gap", "sparsity"], "site": SITE}
    with gpu:
        sae = read_sae(str(SAES["topk"])).to("cuda")
        model = load_model(str(MODEL), device="cuda").bridge
        report = check_sae(sae, model=model, **said)
        assert not [each for each in report.saes["sae"].properties.values() if each.verdict is Verdict.ERROR]
        with pytest.raises(UsageError, match="the model given is on cuda:0: leave out device='cpu'"):
            check_sae(sae, model=model, device="cpu", **said)
        x = torch.randn(512, sae.d_in, generator=torch.Generator().manual_seed(0)).to("cuda")
        report = check_sae(sae, activations=x, properties=["sparsity", "orthogonality"])
        assert not [each for each in report.saes["sae"].properties.values() if each.verdict is Verdict.ERROR]


def test_the_pretended_one_is_as_strict_as_a_real_one(gpu: PretendedGPU) -> None:
    with gpu:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="tensors on cpu and on cuda:0"):
            here + there
        with pytest.raises(RuntimeError, match="indices should be on the CPU"):
            here[torch.tensor([0], device="cuda")]
        with pytest.raises(RuntimeError, match="are put into a tensor on cuda:0"):
            there[torch.tensor([0])] = torch.zeros(1)
        with pytest.raises(TypeError, match="copy it to the CPU first"):
            there.numpy()
        with pytest.raises(RuntimeError, match="cannot draw"):
            torch.randn(3, generator=torch.Generator(), device="cuda")
        assert (there * torch.tensor(2.0)).device == GPU
        assert there.cpu().device == CPU
        moved = here.to("cuda")
        moved.zero_()
        assert here.sum() == 3
        gpu.waits.clear()
        assert bool((there > 0).all())
        assert there[there > 0].sum().item() == 3
        assert gpu.waits.total() == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", property_names())
def test_a_real_one(name: str, loaders: Callable[[Any], Loader]) -> None:
    """As `test_every_property`. Products are rounded otherwise there, which may tip a feature over its threshold."""
    here, there = (measured(name, loaders(settings_for(name, device)).bench(SPEC)) for device in ("cpu", "cuda"))
    assert there == pytest.approx(here, rel=1e-2, abs=1e-3, nan_ok=True)
