"""The steering property on models whose answers are known, and on a real one."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_bench.engine.batch import RelatedInputs
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.errors import MeasurementError
from sae_bench.judge.judge import judge
from sae_bench.judge.limits import parse_rule
from sae_bench.judge.verdicts import PropertyVerdict, Verdict
from sae_bench.measure.measurement import Influence, Measurement, Undefined
from sae_bench.measure.properties.steering import METRICS, PROPERTY, measure
from sae_bench.measure.properties.steering.responses import STRENGTHS, measure_responses
from sae_bench.measure.properties.steering.target_tokens import find_targets
from sae_bench.measure.shared.last_position import LastPositionRunner
from sae_bench.measure.shared.unit_strength import unit_strength
from sae_bench.measure.uncertainty import interval
from sae_bench.sae import ReLU, controls


def judged(found: Measurement) -> PropertyVerdict:
    rules = [parse_rule(f"steering.{limit}", "property") for limit in PROPERTY.limits]
    return judge("steering", METRICS, PROPERTY.primary_metric, found, None, sae="x", rules=rules, context={})


def random_decoder(sae: Any, seed: int = 5) -> Any:
    rows = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(sae, W_dec=torch.nn.functional.normalize(rows, dim=1))


def value(found: Measurement, name: str) -> float:
    return found.estimates[name].value


def test_features_that_cause_their_targets_steer(planted: Any) -> None:
    found = measure(planted.bench())
    assert value(found, "anti_share") <= 0.05
    assert value(found, "steer_share") >= 0.9
    assert not judged(found).fails
    named = found.series["features"].columns
    for feature, targets in zip(named["feature"], named["targets"], strict=True):
        words = [int(word[1:]) for word in targets.split()]
        assert {int(planted.word_class[word]) for word in words} == {feature}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", ["permuted", "random"])
def test_directions_without_meaning_turn_it_red(planted: Any, damage: str, seed: int) -> None:
    sae = planted.sae()
    if damage == "permuted":
        sae = controls.permuted(sae, torch.Generator().manual_seed(seed))
    else:
        sae = random_decoder(sae, seed)
    found = measure(planted.bench(sae))
    low, high = interval(found.estimates["anti_share_gap"], 0.02) or (np.nan, np.nan)
    assert low < 0 < high
    assert value(found, "steer_share") <= 0.1
    verdict = judged(found)
    assert verdict.fails
    assert verdict.judgements["steer_share"].verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)
    assert verdict.judgements["anti_share_gap"].verdict is not Verdict.PASS


def test_slopes_on_a_linear_model_have_their_closed_form(planted: Any) -> None:
    bench = planted.bench()
    features = [3, 7, 11]
    targets = find_targets(bench, range(0, 128, 2), features)
    directions = planted.directions[features]
    runner = LastPositionRunner(planted.model, bench.site, bench.settings.memory_bytes)
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1)]
    found = measure_responses(bench, runner, [1, 3, 5], directions, pairs, [0, 1, 2], targets)
    wanted = planted.unembedding.double() @ targets.weights.double() - planted.unembedding.double().mean(1)[:, None]
    closed = unit_strength(bench) * directions.double() @ wanted  # (directions, sets)
    np.testing.assert_allclose(found.slopes, np.repeat(closed.numpy()[:, None], 3, axis=1), atol=1e-5)
    own = np.array([closed[pair] for pair in pairs])
    slopes = found.effect @ np.array(STRENGTHS) / 10
    np.testing.assert_allclose(slopes, np.repeat(own[:, None], 3, axis=1), atol=1e-5)


def test_kl_and_loss_are_those_of_the_steered_distribution(planted: Any) -> None:
    bench = planted.bench()
    targets = find_targets(bench, range(0, 128, 2), [3])
    runner = LastPositionRunner(planted.model, bench.site, bench.settings.memory_bytes)
    found = measure_responses(bench, runner, [1], planted.directions[[3]], [(0, 0)], [], targets)
    tokens = bench.corpus.tokens[1]
    at = len(tokens) - 2
    x = planted.embedding[tokens[at]].double()
    clean = torch.log_softmax(x @ planted.unembedding.double(), 0)
    for index, k in enumerate(STRENGTHS):
        moved = x + k * unit_strength(bench) * planted.directions[3].double()
        log_probs = torch.log_softmax(moved @ planted.unembedding.double(), 0)
        assert found.ce[0, 0, index] == pytest.approx(float(-log_probs[tokens[at + 1]]), abs=1e-4)
        assert found.kl[0, 0, index] == pytest.approx(float((clean.exp() * (clean - log_probs)).sum()), abs=1e-4)


def numbers(found: Measurement) -> dict[str, tuple[float, ...]]:
    return {
        name: (estimate.value, *(estimate.influence if isinstance(estimate, Influence) else ()))
        for name, estimate in found.estimates.items()
        if np.isfinite(estimate.value)
    }


def test_the_same_run_twice_is_identical_and_batches_do_not_matter(
    planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(tier=TIERS["smoke"])

    def run(settings: Settings) -> dict[str, tuple[float, ...]]:
        # Nothing captured before, or the second run would be handed the first one's clean log-probabilities.
        monkeypatch.setattr("sae_bench.engine.site_data._cache", OrderedDict())
        return numbers(measure(planted.bench(settings=settings)))

    first = run(settings)
    assert run(settings) == first
    for other in (
        dataclasses.replace(settings, batch_size=3),
        dataclasses.replace(settings, order_seed=4),
        dataclasses.replace(settings, memory_bytes=1 << 20),
    ):
        again = run(other)
        assert again.keys() == first.keys()
        for name, values in first.items():
            np.testing.assert_allclose(again[name], values, atol=1e-5, err_msg=name)


def test_an_sae_of_three_live_features_has_nothing_to_hold_a_feature_against(planted: Any) -> None:
    sae = planted.sae()
    silent = torch.where(torch.arange(sae.d_sae) < 3, -1.5, -1e3)
    found = measure(planted.bench(dataclasses.replace(sae, activation=ReLU(silent)))).estimates
    assert isinstance(found["steer_share"], Undefined)
    assert found["anti_share_gap"].value < -0.4


def test_another_seed_chooses_other_features(planted: Any) -> None:
    chosen = [
        measure(planted.bench(settings=Settings(tier=TIERS["smoke"], seed=seed))).series["features"].columns["feature"]
        for seed in (0, 1)
    ]
    assert chosen[0] != chosen[1]


def test_tiers_nest(planted: Any) -> None:
    small, large = (measure(planted.bench(settings=Settings(tier=TIERS[tier]))) for tier in ("smoke", "standard"))
    features = [found.series["features"].columns["feature"] for found in (small, large)]
    assert features[1][: len(features[0])] == features[0]
    assert large.clusters[: len(small.clusters)] == small.clusters
    assert all(cluster % 2 == 1 for cluster in large.clusters)


def test_every_declared_metric_is_measured_and_judged_once(planted: Any) -> None:
    found = measure(planted.bench(settings=Settings(tier=TIERS["smoke"])))
    assert set(found.estimates) == {metric.name for metric in METRICS}
    assert judged(found).verdict is not Verdict.ERROR


def test_a_site_that_reaches_nothing_is_an_error(planted: Any, solved: Any, bench_of: Any) -> None:
    deaf = solved(
        planted.model.embed,
        lambda x: torch.zeros(*x.shape[:-1], planted.model.d_vocab),
        planted.model.tokenizer.words,
        48,
    )
    with pytest.raises(MeasurementError, match=r"fires no token becomes more likely|changes nothing"):
        measure(bench_of(deaf, planted.corpus, planted.sae()))


def test_an_output_that_is_not_finite_names_the_prompt(planted: Any, solved: Any, bench_of: Any) -> None:
    def overflowing(x: torch.Tensor) -> torch.Tensor:
        logits = x @ planted.unembedding
        return torch.where(x.norm(dim=-1, keepdim=True) > 3.3, torch.nan, logits)

    model = solved(planted.model.embed, overflowing, planted.model.tokenizer.words, 48)
    calm = planted.corpus
    with pytest.raises(MeasurementError, match="NaN or infinite"):
        measure(bench_of(model, calm, planted.sae()))


def test_too_few_documents_are_an_error(planted: Any) -> None:
    with pytest.raises(MeasurementError, match="measure more documents"):
        measure(planted.bench(settings=Settings(documents=2)))


def test_a_real_model_orders_the_arms(real_assets: Path) -> None:
    from sae_bench.engine.bench import Bench
    from sae_bench.engine.corpus import load_corpus
    from sae_bench.engine.site_data import capture_site
    from sae_bench.model.load import load_model
    from sae_bench.registry.site import parse_site
    from sae_bench.sae.formats import read_sae

    model, corpus = load_model(str(real_assets / "model")), load_corpus(real_assets / "eval_tokens.safetensors")
    settings = Settings(tier=TIERS["standard"])
    data = capture_site(model, parse_site("blocks.3.hook_resid_pre"), corpus, settings)
    found = measure(Bench(read_sae(str(real_assets / "saes" / "topk-l3")), model, corpus, data, settings))
    shares = {name: value(found, f"anti_share{name}") for name in ("", "_permuted_decoder", "_random_direction")}
    assert shares[""] == pytest.approx(0.18, abs=0.08)
    assert shares["_permuted_decoder"] == pytest.approx(0.37, abs=0.1)
    assert shares["_random_direction"] == pytest.approx(0.5, abs=0.02)
    assert value(found, "anti_share_mean_difference") < shares[""]
    assert value(found, "linearity") > 0.9
    assert not judged(found).fails


@cache
def demo_model_and_corpus() -> tuple[Any, Any]:
    from sae_bench.demo import paths
    from sae_bench.engine.corpus import load_corpus
    from sae_bench.model.load import load_model

    return load_model(str(paths.MODEL)), load_corpus(paths.CORPUS)


def demo_bench(name: str, change: Callable[[Any], Any] = lambda sae: sae, tier: str = "smoke") -> Any:
    from sae_bench.demo import paths
    from sae_bench.engine.bench import Bench
    from sae_bench.engine.site_data import capture_site
    from sae_bench.registry.site import parse_site
    from sae_bench.sae.formats import read_sae

    model, corpus = demo_model_and_corpus()
    settings = Settings(tier=TIERS[tier])
    data = capture_site(model, parse_site(paths.SITE), corpus, settings)
    sae = change(read_sae(str(paths.SAES[name])))
    return Bench(sae, model, corpus, data, settings, related=RelatedInputs(contrast=str(paths.CONTRAST)))


def test_the_demo_has_a_feature_that_steers_its_persona_whatever_the_letter() -> None:
    from sae_bench.measure.properties.contrast import measure as measure_contrast

    found = measure_contrast(demo_bench("topk", tier="standard"))
    assert value(found, "anti_share") <= 0.2
    assert value(found, "worst_level_sign") >= 0.8
    assert value(found, "steerability_shifted") > 0
    # The mean difference steers by the letter: nothing at this site tells the answers apart by their meaning.
    assert value(found, "anti_share_mean_difference") > 0.3
    assert value(found, "variance_explained_answer_position_mean_difference") > 0.6
    # The floors stand beside it: random directions steer a fourth as much, and backwards in a third of the questions.
    assert value(found, "steerability") > 3 * value(found, "steerability_random_direction")
    assert value(found, "anti_share_random_direction") > 0.3
    conditions = {"feature", "mean_difference", "random_direction"}
    assert conditions <= set(found.series["slopes"].columns)
    assert conditions <= set(found.series["variance_by_factor"].columns)
    assert 90 <= len(found.series["propensity_lines"].columns) - 1 <= 100


@pytest.mark.parametrize("name", ["standard", "gated", "topk"])
def test_the_demo_is_green_and_without_meaning_in_its_decoder_red(name: str) -> None:
    sound = measure(demo_bench(name))
    assert value(sound, "anti_share") <= 0.2
    assert not judged(sound).fails
    for change in (lambda sae: controls.permuted(sae, torch.Generator().manual_seed(3)), random_decoder):
        found = measure(demo_bench(name, change))
        low, high = interval(found.estimates["anti_share_gap"], 0.02) or (np.nan, np.nan)
        assert low < 0 < high
        assert value(found, "steer_share") <= 1 / 32
        verdict = judged(found)
        assert verdict.fails
        assert (
            verdict.judgements["steer_share"].exceeds_limit or verdict.judgements["steer_share"].verdict is Verdict.FAIL
        )
