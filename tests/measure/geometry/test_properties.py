"""orthogonality, superposition and stability on benches: complete, right where it is known, clear about bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.errors import MeasurementError
from sae_bench.measure.measurement import Exact, Measurement, Ratio, Undefined
from sae_bench.measure.properties import load_property
from sae_bench.sae import LinearDecoderSAE, controls

Make = Callable[..., Any]
N, D = 300, 24
NAMES = ("orthogonality", "superposition", "stability")


@pytest.fixture(scope="module")
def x() -> Tensor:
    """(12, 20, D) activations with a mean and a spectrum."""
    generator = torch.Generator().manual_seed(11)
    spread = torch.arange(1, D + 1).float() ** -0.3
    return torch.randn(12, 20, D, generator=generator) * spread + torch.randn(D, generator=generator)


@pytest.fixture(scope="module")
def sae(make_sae: Make, rows: Make) -> LinearDecoderSAE:
    found: LinearDecoderSAE = make_sae(rows(N, D), bias=-1.0)
    return found


def measure(name: str, bench: Bench) -> Measurement:
    return load_property(name).measure(bench)


def value(measurement: Measurement, name: str) -> float:
    estimate = measurement.estimates[name]
    assert not isinstance(estimate, Undefined), f"{name}: {estimate}"
    return estimate.value


def values(measurement: Measurement, suffix: str = "") -> dict[str, float]:
    """By name, those whose name ends so."""
    return {
        name: estimate.value
        for name, estimate in measurement.estimates.items()
        if name.endswith("_all") == (suffix == "_all")
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("second", [False, True])
def test_every_declared_metric_is_there_and_is_json(
    name: str, second: bool, make_bench: Make, sae: LinearDecoderSAE, x: Tensor
) -> None:
    partner = controls.random_like(sae, torch.Generator().manual_seed(3)) if second else None
    found = measure(name, make_bench(x, sae, partner))
    assert set(found.estimates) == {metric.name for metric in load_property(name).metrics}
    for estimate in found.estimates.values():
        assert isinstance(estimate, Undefined) or math.isfinite(estimate.value)
    for series in found.series.values():
        text = json.dumps(dict(series.columns), allow_nan=False)
        columns = json.loads(text)
        lengths = {len(column) for key, column in columns.items() if key != "edges"}
        assert len(lengths) == 1
        if series.kind == "histogram":
            assert len(columns["edges"]) == lengths.pop() + 1


def test_orthogonality_is_what_it_says(make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
    bench = make_bench(x, sae)
    found = measure("orthogonality", bench)
    alive = bench.firing.alive
    assert 101 < int(alive.sum()) < N, "the case is to have dead features"
    for suffix, chosen in (("", alive), ("_all", torch.ones_like(alive))):
        units = torch.nn.functional.normalize(sae.W_dec[chosen].double(), dim=1)
        n = len(units)
        products = (units @ units.T).fill_diagonal_(-2)
        ordered = products.sort(dim=1, descending=True).values
        for rank in (1, 10, 100):
            assert value(found, f"nn{rank}{suffix}") == pytest.approx(float(ordered[:, rank - 1].mean()), abs=1e-6)
        assert value(found, f"duplicates{suffix}") == float((ordered[:, 0] > 0.9).double().mean())
        degree = np.bincount(products.argmax(1).numpy(), minlength=n)
        assert value(found, f"modal_nn_share{suffix}") == pytest.approx(degree.max() / n)
        assert value(found, f"hub_max_indegree{suffix}") == degree.max()
        absolute = products.fill_diagonal_(0).abs()
        assert value(found, f"coherence{suffix}") == pytest.approx(float(absolute.max()), abs=1e-6)
        assert value(found, f"c_dec{suffix}") == pytest.approx(float(absolute.sum()) / n / (n - 1), abs=1e-6)
        encoder = torch.nn.functional.normalize(sae.W_enc.T[chosen].double(), dim=1)
        assert value(found, f"encoder_decoder_cosine{suffix}") == pytest.approx(float((encoder * units).sum(1).mean()))
        excess = value(found, f"nn10{suffix}") - value(found, f"floor_isotropic_nn10{suffix}")
        assert value(found, f"excess_nn10{suffix}") == pytest.approx(excess)
    assert sum(found.series["nn1"].columns["features"]) == pytest.approx(int(alive.sum()))
    assert sum(found.series["nn1"].columns["covariance"]) == pytest.approx(int(alive.sum()), abs=0.1)


def test_the_mask_can_be_read_again(make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
    import base64
    import zlib

    bench = make_bench(x, sae)
    columns = measure("orthogonality", bench).series["alive"].columns
    bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(columns["mask"][0])), dtype=np.uint8))
    assert bits[: columns["features"][0]].astype(bool).tolist() == bench.firing.alive.tolist()


def test_dead_features_change_only_what_counts_all(make_bench: Make, make_sae: Make, rows: Make, x: Tensor) -> None:
    W_dec, more = rows(150, D), rows(40, D, seed=1)
    more[:20] = more[20:]
    alone = measure("orthogonality", make_bench(x, make_sae(W_dec)))
    bias = torch.cat([torch.zeros(150), torch.full((40,), -torch.inf)])
    both = measure("orthogonality", make_bench(x, make_sae(torch.cat([W_dec, more]), bias)))
    assert values(both) == pytest.approx(values(alone), abs=1e-6, nan_ok=True)
    assert value(both, "duplicates_all") == pytest.approx(40 / 190)
    assert value(both, "duplicates") == 0


def test_order_lengths_and_rotations_do_not_matter(make_bench: Make, make_sae: Make, rows: Make, x: Tensor) -> None:
    W_dec = rows(150, D)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q.float()
    changed = (W_dec * (0.1 + torch.rand(150, 1, generator=generator)))[torch.randperm(150, generator=generator)]
    plain = measure("orthogonality", make_bench(x, make_sae(W_dec)))
    other = measure("orthogonality", make_bench(x @ turn, make_sae(changed @ turn)))
    for name, estimate in plain.estimates.items():
        if "covariance" not in name:
            assert value(other, name) == pytest.approx(estimate.value, abs=3e-6), name


def test_near_copies_are_beyond_the_limit(make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
    damaged = controls.duplicate_features(sae, 0.05, torch.Generator().manual_seed(0))
    sound, found = (measure("orthogonality", make_bench(x, each)) for each in (sae, damaged))
    assert value(sound, "duplicates_all") <= 0.02 < value(found, "duplicates_all") == pytest.approx(0.1)
    assert value(found, "duplicates") > 0.02
    assert value(found, "modal_nn_share") <= 0.05
    assert value(found, "composed_share") <= value(sound, "composed_share") + 0.05
    assert found.series["peaks"].columns["cosine"][-1] == pytest.approx(1, abs=0.02)


class TestControls:
    def test_identity(self, make_bench: Make, x: Tensor) -> None:
        bench = make_bench(x, controls.identity(D))
        found = measure("orthogonality", bench)
        for name in ("nn1", "nn10", "duplicates", "composed_share"):
            assert value(found, name) == pytest.approx(0, abs=1e-6), name
        assert value(found, "frame_potential_excess_all") == pytest.approx(0, abs=1e-6)
        assert value(found, "modal_nn_share") <= 0.05
        assert value(found, "encoder_decoder_cosine") == pytest.approx(1)
        found = measure("superposition", bench)
        assert value(found, "scale_equivariance") == pytest.approx(1)
        assert value(found, "interference_excess") == 0
        assert isinstance(found.estimates["active_capacity"], Undefined)

    def test_random_is_its_floor(self, make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
        random = controls.random_like(sae, torch.Generator().manual_seed(1))
        found = measure("orthogonality", make_bench(x, random))
        for rank in (1, 10, 100):
            assert value(found, f"excess_nn{rank}_all") == pytest.approx(0, abs=0.015)

    def test_permuted_keeps_the_dictionary(self, make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
        found = measure("orthogonality", make_bench(x, controls.permuted(sae, torch.Generator().manual_seed(1))))
        sound = measure("orthogonality", make_bench(x, sae))
        for name in ("nn1_all", "nn10_all", "nn100_all", "coherence_all"):
            assert value(found, name) == pytest.approx(value(sound, name), abs=1e-6)
        assert abs(value(found, "encoder_decoder_cosine")) < 0.1

    def test_pca(self, make_bench: Make, x: Tensor) -> None:
        found = measure("orthogonality", make_bench(x, controls.pca(x.reshape(-1, D), 10)))
        assert value(found, "nn1") == pytest.approx(0, abs=1e-6)
        assert isinstance(found.estimates["nn100"], Undefined)


class TestBadInput:
    @pytest.mark.parametrize("name", NAMES)
    def test_all_dead(self, name: str, make_bench: Make, make_sae: Make, rows: Make, sae: Any, x: Tensor) -> None:
        dead = make_sae(rows(50, D), -torch.inf)
        with pytest.raises(MeasurementError, match=r"all 50 features of this SAE are dead.*228 kept tokens"):
            measure(name, make_bench(x, dead, sae))

    def test_a_dead_partner(self, make_bench: Make, make_sae: Make, rows: Make, sae: Any, x: Tensor) -> None:
        with pytest.raises(MeasurementError, match="all 50 features of the second SAE are dead"):
            measure("stability", make_bench(x, sae, make_sae(rows(50, D), -torch.inf)))

    @pytest.mark.parametrize("n", [1, 2, 10, 11, 100, 101])
    def test_few_features(self, n: int, make_bench: Make, make_sae: Make, rows: Make, x: Tensor) -> None:
        bench = make_bench(x, make_sae(rows(n, D), bias=10.0))
        found = measure("orthogonality", bench)
        for rank in (1, 10, 100):
            estimate = found.estimates[f"nn{rank}"]
            assert isinstance(estimate, Exact if n > rank else Undefined), rank
            if isinstance(estimate, Undefined) and n > 1:
                assert estimate.reason == f"a nearest direction no. {rank} takes at least {rank + 1} features"
                assert estimate.detail == f"there are {n}"
        assert set(measure("superposition", bench).estimates)

    def test_rows_of_zeros_are_named_and_left_out(
        self, make_bench: Make, make_sae: Make, rows: Make, x: Tensor
    ) -> None:
        W_dec = rows(130, D)
        full = measure("orthogonality", make_bench(x, make_sae(W_dec[2:])))
        sae = make_sae(W_dec)
        W_dec[[0, 1]] = 0
        found = measure("orthogonality", make_bench(x, replace(sae, W_dec=W_dec)))
        assert values(found, "_all") == pytest.approx(values(full, "_all"), abs=1e-6, nan_ok=True)
        assert found.notes[-1] == ("2 decoder rows are zero and have no direction, so they are left out: features 0, 1")

    @pytest.mark.parametrize("name", NAMES)
    def test_nan(self, name: str, make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
        damaged = controls.nan_weight(sae, torch.Generator().manual_seed(0))
        with pytest.raises(MeasurementError, match="hold NaN or infinity"):
            measure(name, make_bench(x, damaged, sae))


class TestSuperposition:
    def test_crosstalk_is_the_naive_sum(self, make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
        bench = make_bench(x, sae)
        found = measure("superposition", bench)
        codes = (sae.encode(x[:, 1:].reshape(-1, D)) * sae.W_dec.norm(dim=1)).double()
        products = torch.nn.functional.normalize(sae.W_dec.double(), dim=1)
        squares = (products @ products.T).square().fill_diagonal_(0)
        active = (codes != 0).double()
        read = torch.einsum("ti,ij,tj->", active, squares, codes.square())
        random = ((active.sum(1) - 1).clamp_min(0) * codes.square().sum(1)).sum() / D
        assert value(found, "interference_excess") == pytest.approx(float(read / random), rel=1e-5)
        assert value(found, "active_capacity") == pytest.approx(float(D * random / read), rel=1e-5)
        assert isinstance(found.estimates["interference_excess"], Ratio)

    def test_weights(self, make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
        found = measure("superposition", make_bench(x, sae))
        same = measure("orthogonality", make_bench(x, sae))
        assert value(found, "rms_cosine_floor") == pytest.approx(D**-0.5)
        assert value(found, "rms_cosine") == pytest.approx(D**-0.5, rel=0.05)
        for name in ("coherence", "welch_bound"):
            assert value(found, name) == value(same, name)

    def test_scaling(self, make_bench: Make, make_sae: Make, rows: Make, x: Tensor) -> None:
        linear = measure("superposition", make_bench(x, make_sae(rows(60, D))))
        assert value(linear, "scale_equivariance") == pytest.approx(1, abs=1e-6)
        biased = make_sae(rows(60, D), bias=-1.0)
        found = measure("superposition", make_bench(x, biased))
        kept, norms = x[:, 1:].reshape(-1, D), biased.W_dec.norm(dim=1)
        codes = (biased.encode(kept) * norms).double()
        each = [
            1 - float((biased.encode(a * kept) * norms / a - codes).square().sum() / codes.square().sum())
            for a in (0.5, 0.75, 1.25, 1.5, 2.0)
        ]
        assert found.series["scale_equivariance"].columns["equivariance"] == pytest.approx(each, rel=1e-5)
        assert value(found, "scale_equivariance") == pytest.approx(sum(each) / 5, rel=1e-5)
        assert value(found, "scale_equivariance") < 0.95

    def test_batches_do_not_matter(self, make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
        one = measure("superposition", make_bench(x, sae, batch_size=12))
        other = measure("superposition", make_bench(x, sae, batch_size=5, order_seed=3))
        assert values(one) == pytest.approx(values(other), rel=1e-9)

    def test_a_dense_dictionary_is_read_in_part(self, make_bench: Make, sae: Any, x: Tensor, monkeypatch: Any) -> None:
        from sae_bench.measure.properties import superposition

        every = measure("superposition", make_bench(x, sae))
        monkeypatch.setattr(superposition, "_WORK", 1e7)
        some = measure("superposition", make_bench(x, sae))
        assert any("position" in note for note in some.notes)
        assert value(some, "interference_excess") == pytest.approx(value(every, "interference_excess"), rel=0.1)
        assert value(some, "interference_excess") != value(every, "interference_excess")

    def test_nothing_active_at_once(self, make_bench: Make, make_sae: Make, x: Tensor) -> None:
        one = torch.zeros(1, D)
        one[0, 0] = 1
        found = measure("superposition", make_bench(x, make_sae(one, bias=10.0)))
        assert isinstance(found.estimates["interference_excess"], Undefined)


class TestStability:
    def test_alone(self, make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
        found = measure("stability", make_bench(x, sae))
        assert all(e == Undefined("no second SAE registered: partner=...") for e in found.estimates.values())

    def test_the_same_features_in_another_order(self, make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
        order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
        shuffled = replace(
            sae,
            W_enc=sae.W_enc[:, order],
            W_dec=2 * sae.W_dec[order],
            activation=sae.activation.map(lambda tensor: tensor[order]),
        )
        found = measure("stability", make_bench(x, sae, shuffled))
        for name in ("mmcs", "mmcs_reverse", "matched_share", "matched_encoder_share"):
            assert value(found, name) == pytest.approx(1, abs=1e-6), name

    def test_half_of_them(self, make_bench: Make, make_sae: Make, rows: Make, x: Tensor) -> None:
        mine = rows(60, 64, seed=1)
        theirs = torch.cat([mine[:30], rows(50, 64, seed=2)])
        wide = torch.randn(12, 20, 64, generator=torch.Generator().manual_seed(0))
        found = measure("stability", make_bench(wide, make_sae(mine), make_sae(theirs)))
        assert value(found, "matched_share") == pytest.approx(0.5)
        units = [torch.nn.functional.normalize(each.double(), dim=1) for each in (mine, theirs)]
        products = units[0] @ units[1].T
        assert value(found, "mmcs") == pytest.approx(float(products.amax(1).mean()), abs=1e-6)
        assert value(found, "mmcs_reverse") == pytest.approx(float(products.amax(0).mean()), abs=1e-6)

    def test_random_partners_are_at_the_floor(self, make_bench: Make, make_sae: Make, rows: Make, x: Tensor) -> None:
        found = measure("stability", make_bench(x, make_sae(rows(200, D)), make_sae(rows(N, D, seed=9))))
        assert value(found, "mmcs") == pytest.approx(value(found, "floor_mmcs"), abs=0.02)
        assert value(found, "mmcs_reverse") == pytest.approx(value(found, "floor_mmcs_reverse"), abs=0.02)
        assert value(found, "floor_mmcs") > value(found, "floor_mmcs_reverse")
        assert value(found, "matched_share") <= value(found, "floor_matched_share") + 0.05

    def test_decoders_alone_do_not_match_encoders(self, make_bench: Make, sae: LinearDecoderSAE, x: Tensor) -> None:
        found = measure("stability", make_bench(x, sae, replace(sae, W_enc=sae.W_enc.flip(1))))
        assert value(found, "matched_share") > 0.5
        assert value(found, "matched_encoder_share") < 0.2

    def test_a_partner_of_another_width(
        self, make_bench: Make, make_sae: Make, rows: Make, sae: Any, x: Tensor
    ) -> None:
        with pytest.raises(MeasurementError, match="reads 8 and writes 8 numbers, this one 24 and 24"):
            measure("stability", make_bench(x, sae, make_sae(rows(20, 8))))


@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka"])
def test_real_numbers(name: str, real_assets: Any) -> None:
    from sae_bench.engine.corpus import load_corpus
    from sae_bench.engine.settings import Settings
    from sae_bench.engine.site_data import capture_site
    from sae_bench.model.load import load_model
    from sae_bench.registry.site import parse_site
    from sae_bench.sae.formats import read_sae

    model = load_model(str(real_assets / "model"))
    corpus = load_corpus(real_assets / "eval_tokens.safetensors").take(128)
    data = capture_site(model, parse_site("blocks.3.hook_resid_pre"), corpus, Settings())
    bench = Bench(read_sae(str(real_assets / "saes" / f"{name}-l3")), model, corpus, data, Settings())
    found = measure("orthogonality", bench)
    rows = json.loads((real_assets / "golden_reference.json").read_text())
    golden = next(row for row in rows if row["sae"] == f"{name}-l3")
    assert int(bench.firing.alive.sum()) == golden["alive"]
    metrics = ("nn1", "nn10", "nn100", "coherence", "duplicates", "modal_nn_share", "frame_potential_excess")
    for metric in (f"{each}{suffix}" for each in metrics for suffix in ("", "_all")):
        assert value(found, metric) == pytest.approx(golden[metric], abs=1e-6), metric
