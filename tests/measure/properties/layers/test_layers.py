"""`layers`: what is planted in a stream of known later layers is found, and what is not there is at its floor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_bench.demo.paths import CORPUS, MODEL, SAES
from sae_bench.engine.batch import RelatedInputs, RelatedSAE
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import load_corpus
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.errors import MeasurementError
from sae_bench.measure.measurement import Estimate, Influence, Measurement, Ratio, Undefined
from sae_bench.measure.properties.layers import METRICS, PROPERTY
from sae_bench.measure.properties.layers.direct_effects import Effects, FeatureWrites, _estimates
from sae_bench.measure.properties.layers.persistence import mean_correlation
from sae_bench.measure.properties.layers.tuned_lens import _training, tuned_lens
from sae_bench.measure.shared.document_halves import document_halves
from sae_bench.measure.uncertainty import interval, standard_error
from sae_bench.model.load import load_model
from sae_bench.registry.site import Site, parse_site
from sae_bench.sae import controls
from sae_bench.sae.formats import as_sae, read_sae
from tests.support.streams import POS, D, V, companion, normal, tied

Make = Callable[..., Bench]
HALF = D // 2


@pytest.fixture(scope="module")
def demo_bench() -> Callable[..., Bench]:
    """``demo_bench(name, site)``: an SAE of the demo on the corpus's first documents."""
    model, corpus, settings = load_model(str(MODEL)), load_corpus(CORPUS).take(24), Settings()

    def get(name: str, at: str) -> Bench:
        site = parse_site(at)
        return Bench(read_sae(str(SAES[name])), model, corpus, capture_site(model, site, corpus, settings), settings)

    return get


class Silent:
    """Encodes and decodes, and shows no matrix that could be read: rows depend on the sum of all codes."""

    d_in = D

    def __init__(self, sae: Any) -> None:
        self.sae = sae

    def encode(self, x: Tensor) -> Tensor:
        return self.sae.encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        return self.sae.decode(codes) * (1 + codes.sum(-1, keepdim=True).tanh() / 10)


def value(found: Measurement, name: str) -> float:
    estimate = found.estimates[name]
    assert not isinstance(estimate, Undefined), f"{name}: {estimate.reason}"
    assert math.isfinite(estimate.value)
    return estimate.value


def halved(n: int = 16, upper: bool = False) -> Tensor:
    """(n, D) unit rows in the first half of the space, or in the second."""
    rows = torch.nn.functional.normalize(normal(n, HALF, seed=3), dim=1)
    zeros = torch.zeros(n, HALF)
    return torch.cat([zeros, rows] if upper else [rows, zeros], dim=1)


def reading_half() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Later layers that carry the second half into the first, and an unembedding that sees the first half only."""
    carry = 2 * normal(HALF, HALF, seed=4)

    def later(x: Tensor) -> Tensor:
        moved = x.clone()
        moved[..., :HALF] += x[..., HALF:] @ carry
        return moved

    return later, torch.cat([normal(HALF, V, seed=5), torch.zeros(HALF, V)])


class TestEffects:
    def test_a_feature_that_writes_to_the_logits_and_nothing_else(self, make_bench: Make) -> None:
        later, W_U = reading_half()
        found = PROPERTY.measure(make_bench(tied(halved()), later=later, W_U=W_U))
        assert value(found, "direct_cosine") == pytest.approx(1, abs=1e-5)
        assert value(found, "direct_share") == pytest.approx(1, abs=1e-5)
        # Half of a random direction is read by the later layers, which write four times as much.
        assert value(found, "direct_cosine_random") < 0.7
        assert value(found, "direct_share_random") < 0.5

    def test_a_feature_that_only_later_layers_read(self, make_bench: Make) -> None:
        later, W_U = reading_half()
        found = PROPERTY.measure(make_bench(tied(halved(upper=True)), later=later, W_U=W_U))
        assert value(found, "direct_cosine") == pytest.approx(0, abs=1e-6)
        assert value(found, "direct_share") == pytest.approx(0, abs=1e-6)

    def test_a_feature_that_is_doubled_later_is_half_direct(self, make_bench: Make) -> None:
        found = PROPERTY.measure(make_bench(tied(halved()), later=lambda x: 2 * x))
        assert value(found, "direct_cosine") == pytest.approx(1, abs=1e-5)
        assert value(found, "direct_share") == pytest.approx(0.5, abs=1e-5)

    def test_a_feature_that_is_turned_round_later(self, make_bench: Make) -> None:
        found = PROPERTY.measure(make_bench(tied(halved()), later=lambda x: -x))
        assert value(found, "direct_cosine") == pytest.approx(-1, abs=1e-5)
        assert value(found, "direct_share") == pytest.approx(-1, abs=1e-5)

    def test_an_unrelated_effect_is_at_zero(self, make_bench: Make) -> None:
        turn = normal(D, D, seed=6)
        found = PROPERTY.measure(make_bench(tied(normal(40, D, seed=7)), later=lambda x: x @ turn))
        estimate = found.estimates["direct_cosine"]
        assert abs(estimate.value) < 0.15
        span = interval(estimate, 0.01)
        assert span is not None
        assert span[0] < 0 < span[1]

    def test_behind_the_last_block_only_the_norms_scale_is_left(self, demo_bench: Callable[..., Bench]) -> None:
        """Nothing runs between the site and the final norm: what differs is that T has the norm's own scale."""
        found = PROPERTY.measure(demo_bench("topk-layer4", "blocks.3.hook_resid_post"))
        assert value(found, "direct_cosine") > 0.95
        assert value(found, "direct_share") == pytest.approx(1, abs=0.1)
        assert value(found, "lens_kl") == pytest.approx(0, abs=1e-5)
        before = PROPERTY.measure(demo_bench("topk", "blocks.2.hook_resid_pre"))
        assert value(before, "direct_share") < 0.5
        assert value(before, "lens_kl") > 5 * value(before, "tuned_lens_kl")

    def test_numbers_depend_on_no_batch_size(self, make_bench: Make) -> None:
        later, W_U = reading_half()
        sizes = [
            PROPERTY.measure(
                make_bench(tied(normal(30, D, seed=7)), later=later, W_U=W_U, settings=Settings(batch_size=size))
            )
            for size in (1, 7)
        ]
        for metric in METRICS:
            one, other = (found.estimates[metric.name] for found in sizes)
            if not isinstance(one, Undefined):
                assert one.value == pytest.approx(other.value, abs=1e-5), metric.name

    def test_intervals_cover_when_features_and_documents_differ(self) -> None:
        rng = np.random.default_rng(0)
        features, documents = 20, 24
        bench: Any = SimpleNamespace(clusters=tuple(range(documents)), cluster_of=np.arange(documents))
        hits = {"direct_cosine": 0, "direct_share": 0}
        for _ in range(400):
            effect = 0.1 * rng.normal(size=(features, 1)) + 0.1 * rng.normal(size=(1, documents))
            cosine = 0.4 + effect + 0.1 * rng.normal(size=(features, documents))
            square = rng.lognormal(0, 0.3, size=(features, documents))
            cells = [(feature, document) for feature in range(features) for document in range(documents)]
            writings = [FeatureWrites(*cell, *[torch.empty(0)] * 4) for cell in cells]
            effects = [
                Effects(np.array([cosine[cell]]), np.array([(0.3 + effect[cell]) * square[cell]]), square[cell][None])
                for cell in cells
            ]
            for name, estimate in _estimates(bench, writings, effects).items():
                span = interval(estimate, 0.05)
                assert span is not None
                hits[name] += span[0] <= {"direct_cosine": 0.4, "direct_share": 0.3}[name] <= span[1]
        assert all(0.92 <= count / 400 <= 0.985 for count in hits.values()), hits


class TestPersistence:
    def test_the_same_dictionary_behind_an_idle_layer(self, make_bench: Make) -> None:
        sae = tied(normal(40, D, seed=7))
        found = PROPERTY.measure(make_bench(sae, related=RelatedInputs(next_layers=(companion(sae),))))
        assert value(found, "persistence") == pytest.approx(1, abs=1e-6)
        assert value(found, "persistent_share") == 1
        assert value(found, "persistence_correlation") == pytest.approx(1, abs=1e-6)
        assert value(found, "persistence_floor") < 0.6
        assert abs(value(found, "persistence_correlation_floor")) < 0.1

    def test_random_dictionaries_are_at_the_floor(self, make_bench: Make) -> None:
        # One cosine less its expectation has a spread of a tenth; 300 of them in 24 dimensions are nearly independent.
        ours, theirs = tied(normal(300, D, seed=7)), tied(normal(300, D, seed=8))
        found = PROPERTY.measure(make_bench(ours, related=RelatedInputs(next_layers=(companion(theirs),))))
        assert value(found, "persistence") == pytest.approx(value(found, "persistence_floor"), abs=0.02)
        assert value(found, "persistent_share") == pytest.approx(value(found, "persistent_share_floor"), abs=0.05)

    def test_features_that_fire_at_other_tokens_do_not_correlate(self, make_bench: Make) -> None:
        """The same directions behind a layer that forgets what it was given."""
        sae = tied(normal(40, D, seed=7))
        found = PROPERTY.measure(
            make_bench(
                sae, later=lambda x: normal(*x.shape, seed=11), related=RelatedInputs(next_layers=(companion(sae),))
            )
        )
        assert value(found, "persistence") == pytest.approx(1, abs=1e-6)
        assert abs(value(found, "persistence_correlation")) < 0.05
        assert abs(value(found, "persistence_correlation_floor")) < 0.05

    def test_the_second_next_layer_has_numbers_of_its_own(self, make_bench: Make) -> None:
        sae, other = tied(normal(40, D, seed=7)), tied(normal(40, D, seed=8))
        found = PROPERTY.measure(
            make_bench(
                sae,
                related=RelatedInputs(
                    next_layers=(
                        companion(sae),
                        companion(other, "second"),
                    )
                ),
            )
        )
        assert value(found, "persistent_share") == 1
        assert value(found, "persistence_second") < 0.7
        assert set(found.series) == {"persistence", "persistence_second", "direct_cosine"}

    def test_an_sae_of_other_activations_is_an_error(self, make_bench: Make) -> None:
        wrong = replace(tied(normal(40, D, seed=7)), b_dec=torch.full((D,), 50.0))
        with pytest.raises(MeasurementError, match=r"'next' explains -\d.* of the variance at blocks\.2"):
            PROPERTY.measure(
                make_bench(tied(normal(40, D, seed=7)), related=RelatedInputs(next_layers=(companion(wrong),)))
            )


class TestMeanCorrelation:
    @staticmethod
    def sums(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
        """Of (S, tokens, k) activations."""
        n = np.full(len(a), float(a.shape[1]))
        return [n, *(each.sum(1) for each in (a, b, a * a, b * b, a * b))]

    def test_is_pearsons(self) -> None:
        rng = np.random.default_rng(1)
        a = rng.normal(size=(5, 20, 3))
        b = 0.5 * a + rng.normal(size=a.shape) + 4
        b[..., 2] = 1.0
        rows = [each.reshape(-1, 3) for each in (a, b)]
        expected = np.mean([np.corrcoef(rows[0][:, pair], rows[1][:, pair])[0, 1] for pair in (0, 1)])
        found = mean_correlation(*self.sums(a, b))
        assert isinstance(found, Influence)
        assert found.value == pytest.approx(expected)
        assert found.influence.sum() == pytest.approx(0, abs=1e-12)

    def test_intervals_cover(self) -> None:
        rng = np.random.default_rng(2)
        hits = 0
        for _ in range(400):
            shared = rng.normal(size=(40, 30, 6)) + 0.7 * rng.normal(size=(40, 1, 6))
            a, b = (shared + rng.normal(size=shared.shape) for _ in range(2))
            found = mean_correlation(*self.sums(a, b))
            assert isinstance(found, Influence)
            span = interval(found, 0.05)
            assert span is not None
            hits += span[0] <= 1.49 / 2.49 <= span[1]
        assert 0.92 <= hits / 400 <= 0.98


class TestLenses:
    def test_a_known_affine_map_is_undone_by_the_tuned_lens_only(self, make_bench: Make) -> None:
        turn = 0.4 * normal(D, D, seed=6)
        bench = make_bench(controls.identity(D), x=normal(60, POS, D), later=lambda x: x @ turn + 1, W_U=normal(D, V))
        found = PROPERTY.measure(bench)
        assert value(found, "lens_kl") > 1
        assert value(found, "tuned_lens_kl") < 0.02
        assert value(found, "lens_kl_change") == 0
        assert value(found, "tuned_lens_kl_change") == 0

    def test_a_finished_stream_is_read_as_it_is(self, make_bench: Make) -> None:
        found = PROPERTY.measure(make_bench(controls.identity(D)))
        assert value(found, "lens_kl") == pytest.approx(0, abs=1e-6)

    def test_a_stream_that_tells_nothing_is_no_better_than_the_mean(self, make_bench: Make) -> None:
        """The last residual has nothing to do with x: the best lens says the mean distribution at every token."""
        bench = make_bench(
            controls.identity(D), x=normal(60, POS, D), later=lambda x: normal(*x.shape, seed=int(x.numel()))
        )
        logp = bench.model.final_logits(normal(40_000, D, seed=1)).log_softmax(-1)
        mean = logp.exp().mean(0).log()
        best = float((logp.exp() * (logp - mean)).sum(-1).mean())
        assert value(PROPERTY.measure(bench), "tuned_lens_kl") > 0.95 * best

    def test_a_reconstruction_that_forgets_is_seen_by_both(self, make_bench: Make) -> None:
        found = PROPERTY.measure(make_bench(tied(halved()), x=normal(60, POS, D)))
        for name in ("lens_kl_change", "tuned_lens_kl_change"):
            estimate = found.estimates[name]
            error = standard_error(estimate)
            assert error is not None
            assert estimate.value > 10 * error

    def test_it_is_fitted_on_clusters_that_it_is_not_scored_on(self, make_bench: Make) -> None:
        bench = make_bench(controls.identity(D))
        even, odd = document_halves(bench.corpus.cluster)
        assert len(_training(bench)[0]) == int(bench.site_data.keep[list(even)].sum())
        scored = PROPERTY.measure(bench).estimates["tuned_lens_kl"]
        assert isinstance(scored, Ratio)
        assert set(np.flatnonzero(scored.denominator)) == set(odd)

    def test_all_saes_of_a_site_are_read_through_one_lens(self, make_bench: Make) -> None:
        bench = make_bench(controls.identity(D))
        other = Bench(tied(halved()), bench.model, bench.corpus, bench.site_data, bench.settings)
        assert tuned_lens(bench) is tuned_lens(other)


def test_every_declared_metric_is_there_and_series_are_small_json(make_bench: Make) -> None:
    sae = tied(normal(40, D, seed=7))
    for rest in ({}, {"related": RelatedInputs(next_layers=(companion(sae), companion(sae, "second")))}):
        found = PROPERTY.measure(make_bench(sae, **rest))
        assert set(found.estimates) == {metric.name for metric in METRICS}
        size = sum(len(json.dumps(dict(series.columns), allow_nan=False)) for series in found.series.values())
        assert size < 10_000


def test_without_next_layers_the_reason_says_how_to_name_them(make_bench: Make) -> None:
    found = PROPERTY.measure(make_bench(tied(halved())))
    missing: list[Estimate] = [found.estimates[metric.name] for metric in METRICS if metric.name.startswith("persist")]
    assert len(missing) == 12
    assert all(isinstance(each, Undefined) and "next_layers=[...]" in each.reason for each in missing)


def test_an_object_that_shows_no_decoder_still_has_effects(make_bench: Make) -> None:
    sae, silent = tied(normal(40, D, seed=7)), as_sae(Silent(tied(normal(40, D, seed=7))))
    for measured, behind, named in ((silent, sae, "the SAE"), (sae, silent, "SAE 'next'")):
        beside = [RelatedSAE("next", behind, Site(2, "hook_resid_pre"), "sha")]
        found = PROPERTY.measure(make_bench(measured, related=RelatedInputs(next_layers=tuple(beside))))
        estimate = found.estimates["persistence"]
        assert isinstance(estimate, Undefined)
        assert estimate.reason.startswith(f"{named} shows no decoder")
        assert value(found, "direct_cosine") > 0.9


def test_a_site_that_is_not_in_the_stream_has_neither_effects_nor_lenses(make_bench: Make) -> None:
    found = PROPERTY.measure(make_bench(tied(halved()), site=Site(1, "mlp.hook_post")))
    for name in ("direct_cosine", "direct_share_random", "lens_kl", "tuned_lens_kl_change"):
        estimate = found.estimates[name]
        assert isinstance(estimate, Undefined)
        assert "residual stream" in estimate.reason
