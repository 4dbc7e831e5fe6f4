"""`width`: a family that gets better with size is seen to, a flat one is not, and other sparsities do not count."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from sae_bench.demo.paths import CORPUS, MODEL, SAES, SITE
from sae_bench.engine.batch import RelatedInputs, RelatedSAE
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import load_corpus
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.errors import MeasurementError
from sae_bench.judge.judge import judge
from sae_bench.judge.limits import parse_rule
from sae_bench.measure.measurement import Estimate, Exact, Influence, Measurement, Ratio, Undefined
from sae_bench.measure.properties.width import METRICS, PROPERTY, estimate_trends, monotonicity
from sae_bench.measure.properties.width.family import FamilyMember
from sae_bench.measure.uncertainty import interval
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site
from sae_bench.sae import LinearDecoderSAE, weights_sha256
from sae_bench.sae.formats import read_sae

DOCUMENTS = 24


def simulated(
    rng: np.random.Generator, kl: Sequence[float], sizes: Sequence[int] = (96, 192, 384, 768, 1536), documents: int = 64
) -> list[FamilyMember]:
    """A family of true mean KLs ``kl``; documents are harder or easier for all of its SAEs alike."""
    tokens = rng.integers(40, 128, documents).astype(float)
    shared = rng.lognormal(-0.08, 0.4, documents)

    def ratio(mean: float) -> Ratio:
        own = rng.lognormal(-0.005, 0.1, documents)
        return Ratio(mean * shared * own * tokens, tokens)

    return [
        FamilyMember(f"{n}", n, ratio(16), ratio(true), ratio(1 - true), ratio(1 - true / 2))
        for n, true in zip(sizes, kl, strict=True)
    ]


def p_of(found: dict[str, Estimate]) -> float:
    estimate = found["monotone_kl_p"]
    assert isinstance(estimate, Exact)
    return estimate.value


def decided(found: Mapping[str, Estimate]) -> str:
    """The verdict on simulated estimates, whose clusters are the documents of their KLs."""
    size = next((len(each.influence) for each in found.values() if isinstance(each, Influence)), 0)
    return verdict(Measurement(found, tuple(range(size))))


def verdict(found: Measurement) -> str:
    rules = [parse_rule(f"width.{limit}") for limit in PROPERTY.limits]
    judged = judge("width", METRICS, PROPERTY.primary_metric, found, None, sae="x", rules=rules, context={})
    return judged.verdict.value


class TestOrder:
    def test_p_is_exact(self) -> None:
        sizes = np.array([1.0, 2, 3, 4, 5])
        for quality in ([1.0, 2, 3, 4, 5], [1.0, 2, 4, 3, 5], [2.0, 1, 4, 3, 5], [5.0, 4, 3, 2, 1], [1.0, 1, 2, 2, 3]):
            found, p = monotonicity(sizes, np.array(quality))
            every = [spearmanr(sizes, order).statistic for order in permutations(quality)]
            assert found == pytest.approx(spearmanr(sizes, quality).statistic)
            assert p == pytest.approx(np.mean(np.array(every) >= found - 1e-9))

    def test_how_much_order_is_beyond_chance(self) -> None:
        """At 5%: four sizes only in perfect order; five with one pair of neighbours swapped, not with two."""
        four, five = np.arange(4.0), np.arange(5.0)
        assert monotonicity(four, four)[1] == pytest.approx(1 / 24)
        assert monotonicity(four, np.array([0.0, 1, 3, 2]))[1] > 0.05
        assert monotonicity(five, five)[1] == pytest.approx(1 / 120)
        assert monotonicity(five, np.array([0.0, 1, 3, 2, 4]))[1] == pytest.approx(5 / 120)
        assert monotonicity(five, np.array([1.0, 0, 3, 2, 4]))[1] > 0.05

    def test_equal_values_are_no_order(self) -> None:
        assert monotonicity(np.arange(5.0), np.ones(5)) == (0.0, 1.0)

    def test_many_sizes_are_drawn_from(self) -> None:
        sizes = np.arange(12.0)
        assert monotonicity(sizes, sizes)[1] <= 2e-5
        assert monotonicity(sizes, sizes[::-1])[1] > 0.99


class TestSimulatedFamilies:
    def test_a_family_that_gets_better(self) -> None:
        found = estimate_trends(simulated(np.random.default_rng(0), [0.5, 0.4, 0.32, 0.256, 0.2048]))
        assert found["monotone_kl"].value == found["monotone_explained_variance"].value == 1
        assert p_of(found) == pytest.approx(1 / 120)
        assert found["kl_per_doubling"].value == pytest.approx(math.log(0.8), abs=0.02)
        assert found["ce_recovered_per_doubling"].value > 0

    def test_a_family_that_gets_worse(self) -> None:
        found = estimate_trends(simulated(np.random.default_rng(0), [0.2, 0.25, 0.3, 0.35, 0.4]))
        assert decided(found) == "FAIL"
        assert found["monotone_kl"].value == -1
        assert p_of(found) == 1

    def test_a_flat_family_is_called_monotone_in_one_of_twenty_at_most(self) -> None:
        rng = np.random.default_rng(1)
        hits = [p_of(estimate_trends(simulated(rng, [0.3] * 5))) <= 0.05 for _ in range(400)]
        # Exactly 5 of 120 orders; the standard deviation of 400 is 1%.
        assert 0.01 <= np.mean(hits) <= 0.075

    def test_a_family_that_is_almost_flat_is_decided_by_documents(self) -> None:
        """KL falls by 2% a doubling: more than is asked for, and more than few documents can show."""
        kl = list(0.3 * 0.98 ** np.arange(5))
        few, many = (simulated(np.random.default_rng(5), kl, documents=count) for count in (8, 4000))
        assert decided(estimate_trends(few)) == "INCONCLUSIVE"
        assert decided(estimate_trends(many)) == "PASS"

    def test_flat_families_rarely_pass_and_sound_ones_rarely_fail(self) -> None:
        rng = np.random.default_rng(6)
        flat = [decided(estimate_trends(simulated(rng, [0.3] * 5))) for _ in range(300)]
        sound = [decided(estimate_trends(simulated(rng, list(0.3 * 0.8 ** np.arange(5))))) for _ in range(300)]
        assert flat.count("PASS") <= 6
        assert sound.count("PASS") >= 299

    def test_slopes_cover_at_their_nominal_rate(self) -> None:
        rng = np.random.default_rng(2)
        true = 0.5 * 0.8 ** np.arange(5)
        # Straight-line slopes of the true curves, whether these are straight or not.
        expected = {"kl": np.log(0.8), "explained_variance": -np.polyfit(np.arange(5), true, 1)[0]}
        hits = dict.fromkeys(expected, 0)
        for _ in range(500):
            found = estimate_trends(simulated(rng, list(true)))
            for name in expected:
                estimate = found[f"{name}_per_doubling"]
                assert isinstance(estimate, Influence)
                span = interval(estimate, 0.05)
                assert span is not None
                hits[name] += span[0] <= expected[name] <= span[1]
        assert all(0.92 <= count / 500 <= 0.98 for count in hits.values()), hits

    def test_three_sizes_have_no_order_to_test(self) -> None:
        family = simulated(np.random.default_rng(3), [0.4, 0.3, 0.2], sizes=(96, 192, 384))
        found = estimate_trends([*family, replace(family[0], name="another seed")])
        assert found["sizes"] == Exact(3.0)
        assert found["monotone_kl_p"] == Undefined(
            "the family has fewer than 4 sizes at matched L0, which have no order to test", "it has 3"
        )
        assert {name for name, each in found.items() if not isinstance(each, Undefined)} == {"sizes"}

    def test_an_sae_without_error_has_no_slope(self) -> None:
        found = estimate_trends(simulated(np.random.default_rng(4), [0.4, 0.3, 0.2, 0.0], sizes=(1, 2, 4, 8)))
        assert isinstance(found["kl_per_doubling"], Undefined)
        assert p_of(found) == pytest.approx(1 / 24)


@pytest.fixture(scope="module")
def demo() -> Callable[..., Bench]:
    """``demo(family)``: the demo's TopK SAE beside SAEs made of it, as ``{features: decoder scale}``, or given ones."""
    model, corpus, site = load_model(str(MODEL)), load_corpus(CORPUS), parse_site(SITE)
    settings = Settings(tier=TIERS["smoke"], documents=DOCUMENTS)
    data = capture_site(model, site, corpus, settings)

    def get(family: dict[int, float], others: Sequence[Any] = (), own: float = 1.0) -> Bench:
        sae = read_sae(str(SAES["topk"]))
        made = [padded(sae, features, scale) for features, scale in family.items()]
        named = [*((f"{each.d_sae}", each) for each in made), *((f"other {n}", each) for n, each in enumerate(others))]
        beside = [RelatedSAE(name, each, site, weights_sha256(each)) for name, each in named]
        return Bench(padded(sae, 768, own), model, corpus, data, settings, related=RelatedInputs(family=tuple(beside)))

    return get


def padded(sae: Any, features: int, scale: float) -> LinearDecoderSAE:
    """The SAE with its decoder scaled, and with features added that never fire."""
    more = features - sae.d_sae
    enough = torch.zeros(sae.d_in, more)
    return replace(
        sae,
        info=replace(sae.info, d_sae=features),
        W_enc=torch.cat([sae.W_enc, enough], dim=1),
        W_dec=scale * torch.cat([sae.W_dec, torch.ones(more, sae.d_in)]),
        activation=replace(sae.activation, b_enc=torch.cat([sae.activation.b_enc, torch.full((more,), -1e9)])),
    )


class TestOnTheDemo:
    def test_a_planted_monotone_family_passes(self, demo: Callable[..., Bench]) -> None:
        found = PROPERTY.measure(demo({800: 0.6, 900: 0.8, 1000: 1.0}, own=0.4))
        assert set(found.estimates) == {metric.name for metric in METRICS}
        assert found.estimates["monotone_kl"].value == found.estimates["monotone_ce_recovered"].value == 1
        assert verdict(found) == "PASS"
        assert found.estimates["kl_per_doubling"].value < -0.5
        assert found.series["family"].columns["features"] == [768, 800, 900, 1000]
        assert found.series["kl_by_size"].columns["x"] == [768, 800, 900, 1000]

    def test_a_planted_flat_family_fails(self, demo: Callable[..., Bench]) -> None:
        found = PROPERTY.measure(demo({800: 1.0, 900: 1.0, 1000: 1.0}))
        assert found.estimates["monotone_kl"] == Exact(0.0)
        assert p_of(dict(found.estimates)) == 1
        assert verdict(found) == "FAIL"

    def test_numbers_are_those_of_the_properties_they_are_from(self, demo: Callable[..., Bench]) -> None:
        from sae_bench.measure.properties import kl_gap, reconstruction, sparsity

        bench = demo({800: 0.9})
        row = {name: column[0] for name, column in PROPERTY.measure(bench).series["family"].columns.items()}
        kl, fit = kl_gap.PROPERTY.measure(bench).estimates, reconstruction.PROPERTY.measure(bench).estimates
        assert row["kl"] == pytest.approx(kl["kl_sae"].value, rel=1e-5)
        assert row["ce_recovered"] == pytest.approx(kl["ce_recovered"].value, rel=1e-5)
        assert row["explained_variance"] == pytest.approx(fit["explained_variance"].value, rel=1e-6)
        assert row["l0"] == pytest.approx(sparsity.PROPERTY.measure(bench).estimates["l0"].value)

    def test_another_l0_is_listed_and_left_out(self, demo: Callable[..., Bench]) -> None:
        denser = read_sae(str(SAES["standard"]))
        found = PROPERTY.measure(demo({800: 1.0, 900: 1.0, 1000: 1.0}, others=[denser]))
        assert found.estimates["sizes"] == Exact(4.0)
        assert found.series["family"].columns["compared"][-1] == "no, of another L0"
        assert any("other 0 of 768 features, L0 19" in note for note in found.notes)

    def test_alone_it_says_how_to_name_a_family(self, demo: Callable[..., Bench]) -> None:
        found = PROPERTY.measure(demo({}))
        assert all(isinstance(each, Undefined) and "family=[...]" in each.reason for each in found.estimates.values())
        assert verdict(found) == "UNDEFINED"

    def test_a_member_of_other_activations_is_an_error(self, demo: Callable[..., Bench]) -> None:
        with pytest.raises(MeasurementError, match=r"'800' explains -\d"):
            PROPERTY.measure(demo({800: -3.0}))
