"""Choosing features, targets and directions; slopes, errors and tests on numbers whose answers are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.errors import MeasurementError
from sae_bench.measure.measurement import Influence, Undefined
from sae_bench.measure.properties.steering.condition_slopes import ConditionSlopes, effect_slopes
from sae_bench.measure.properties.steering.directions import covariance_directions, other_features
from sae_bench.measure.properties.steering.significance import compare_with_controls, exceedance
from sae_bench.measure.properties.steering.steered_features import choose_features
from sae_bench.measure.properties.steering.target_tokens import build_target_sets, find_targets
from sae_bench.measure.shared.document_halves import document_halves
from sae_bench.measure.shared.keyed_random import keyed_order, random_directions
from sae_bench.measure.shared.two_way_clusters import Grid, two_way_mean, two_way_ratio
from sae_bench.measure.uncertainty import interval, standard_error

K = (-2, -1, 0, 1, 2)


def condition(slope: np.ndarray, noise: np.ndarray | float = 0.0) -> ConditionSlopes:
    rows, prompts = slope.shape
    effect = slope[..., None] * np.array(K) + noise
    flat = np.zeros_like(effect)
    return ConditionSlopes(effect, flat, flat, Grid(np.arange(prompts), np.arange(rows)), K)


def test_halves_never_split_a_text() -> None:
    cluster = [4, 4, 9, 2, 2, 2, 7, 9]
    even, odd = document_halves(cluster)
    assert sorted((*even, *odd)) == list(range(8))
    assert {cluster[document] for document in even}.isdisjoint(cluster[document] for document in odd)
    assert document_halves([0, 1, 2, 3]) == ((0, 2), (1, 3))


def test_features_are_alive_and_neither_rare_nor_dense() -> None:
    count = torch.tensor([0, 1, 50, 400, 2000, 10, 10_000, 700])
    norms = torch.ones(8)
    norms[7] = 0
    choice = choose_features(count, 10_000, norms, seed=0)
    assert sorted(choice.order) == [2, 3, 5]
    assert choice.alive == (1, 2, 3, 4, 5, 6)


def test_the_first_features_come_from_every_stratum_of_density() -> None:
    count = torch.arange(10, 170)
    choice = choose_features(count, 10_000, torch.ones(160), seed=3)
    assert sorted(feature // 20 for feature in choice.order[:8]) == list(range(8))
    assert sorted(choice.order) == list(range(160))
    assert choose_features(count, 10_000, torch.ones(160), seed=4).order != choice.order


def test_a_feature_more_or_less_leaves_the_others_chosen() -> None:
    """What rounding weights to half precision does to the rule's border must not choose other features."""
    count = torch.arange(10, 170)
    fewer = count.clone()
    fewer[[0, 77, 101]] = 0
    whole, without = (choose_features(each, 10_000, torch.ones(160), seed=3).order for each in (count, fewer))
    assert len(set(whole[:32]) & set(without[:32])) >= 28
    alive = set(range(160)) - {0, 77, 101}
    first, second = (other_features(tuple(each), (5, 9), 40, 3) for each in (range(160), sorted(alive)))
    assert len(set(first) & set(second)) >= 37


def test_the_drawn_order_belongs_to_its_key_and_to_each_index() -> None:
    order = keyed_order(range(100), 0, "features")
    assert sorted(order) == list(range(100))
    assert keyed_order(range(200), 0, "features") != keyed_order(range(200), 1, "features")
    assert keyed_order(range(200), 0, "features") != keyed_order(range(200), 0, "other")
    assert [each for each in keyed_order(range(200), 0, "features") if each < 100] == order
    assert keyed_order([], 0) == []


@pytest.mark.parametrize(
    ("count", "norms", "named"),
    [
        ([5, 5], [0, 0], "0 with a decoder direction"),
        ([0, 0], [1, 1], "0 that fire on the selection half"),
        ([1, 1], [1, 1], "0 of a density of at least 0.001"),
        ([9000, 8000], [1, 1], "0 of a density of at most 0.1"),
    ],
)
def test_an_empty_choice_says_which_filter_emptied_it(count: list[int], norms: list[float], named: str) -> None:
    with pytest.raises(MeasurementError, match=named):
        choose_features(torch.tensor(count), 10_000, torch.tensor(norms), seed=0)


def test_target_sets_hold_no_special_token() -> None:
    rise = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).double()
    rise[:, :5] += 100
    special = torch.arange(40) < 5
    targets = build_target_sets(rise, special)
    assert all(token >= 5 for each in targets.tokens for token in each)
    assert [list(each) for each in targets.tokens] == (rise[:, 5:].topk(10).indices + 5).tolist()
    flat = torch.zeros(1, 40)
    torch.testing.assert_close(targets.effect(flat), torch.zeros(1, 3))


def test_target_sets_that_are_empty_or_all_special_are_errors() -> None:
    rise = torch.randn(2, 20).double()
    with pytest.raises(MeasurementError, match="has 10 that are not special"):
        build_target_sets(rise, torch.arange(20) < 10)
    with pytest.raises(MeasurementError, match="empty target set"):
        build_target_sets(torch.zeros(2, 20).double(), torch.zeros(20, dtype=torch.bool))


def test_targets_are_what_the_clean_model_favours_not_where_the_direction_points(planted: Any) -> None:
    sae = planted.sae()
    turned = planted.bench(type(sae)(**{**vars(sae), "W_dec": sae.W_dec.roll(1, 0)}))
    documents = range(0, 128, 2)
    assert find_targets(turned, documents, [1, 2]).tokens == find_targets(planted.bench(), documents, [1, 2]).tokens


def test_directions_have_norm_one_and_belong_to_their_rank() -> None:
    root = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    for few, many in (
        (random_directions(3, 12, 0), random_directions(9, 12, 0)),
        (covariance_directions(3, root, 0), covariance_directions(9, root, 0)),
    ):
        torch.testing.assert_close(few, many[:3])
        torch.testing.assert_close(many.norm(dim=1), torch.ones(9))
    assert not torch.equal(random_directions(3, 12, 0), random_directions(3, 12, 1))


@given(st.integers(2, 40), st.integers(0, 5))
def test_a_permuted_decoder_leaves_no_row_in_its_place(size: int, seed: int) -> None:
    alive = tuple(range(10, 10 + size))
    moved = other_features(alive, alive, size, seed)
    assert sorted(moved) == sorted(alive)
    assert all(one != other for one, other in zip(alive, moved, strict=True))


def test_other_features_begin_with_the_permuted_ones_and_hold_none_twice() -> None:
    alive, wanted = tuple(range(50)), (3, 4, 9)
    few, many = (other_features(alive, wanted, count, 0) for count in (3, 20))
    assert many[:3] == few
    assert len(set(many)) == 20
    assert all(one != other for one, other in zip(wanted, few, strict=True))
    assert sorted(other_features(alive, wanted, 400, 0)) == list(alive)


@settings(max_examples=50)
@given(st.floats(-50, 50), st.floats(-50, 50))
def test_the_slope_of_a_noiseless_line_is_exact(slope: float, offset: float) -> None:
    line = slope * np.array(K, dtype=float) + offset
    assert effect_slopes(line, K) == pytest.approx(slope, rel=1e-12, abs=1e-12)
    assert float(np.square([-1.5, -1, -0.5, 0.5, 1, 1.5]).sum()) == 7.0


@pytest.mark.parametrize("ratio", [-0.5, 0.0, 0.5, 1.0, 2.0])
def test_anti_share_of_normal_slopes_is_their_normal_tail(ratio: float) -> None:
    generator = np.random.default_rng(int(10 * ratio) + 50)
    found = condition(generator.normal(ratio, 1.0, (64, 64)))
    low, high = interval(two_way_mean(found.backwards, found.grid), 0.01) or (math.nan, math.nan)
    assert low < 0.5 * math.erfc(ratio / math.sqrt(2)) < high


def test_no_slope_at_all_counts_as_backwards() -> None:
    values = np.array([[1.0, -1.0, 0.0, 1e-9]])
    np.testing.assert_array_equal(condition(values).backwards, [[0, 1, 1, 1]])


def test_counting_opposites_makes_a_symmetric_arm_exact() -> None:
    generator = np.random.default_rng(0)
    both = condition(generator.normal(size=(5, 7)), generator.normal(size=(5, 7, 5))).both_ways()
    assert two_way_mean(both.backwards, both.grid).value == 0.5
    assert two_way_mean(both.slopes, both.grid).value == pytest.approx(0, abs=1e-12)
    assert both.grid.features == 5


def test_linearity_and_saturation_of_known_curves() -> None:
    straight = condition(np.full((4, 6), 2.0))
    assert straight.linearity().value == pytest.approx(1)
    assert straight.saturation().value == pytest.approx(0)
    effect = np.broadcast_to(np.array([-1.5, -1.0, 0.0, 1.0, 1.5]), (4, 6, 5))
    bent = ConditionSlopes(effect, effect * 0, effect * 0, straight.grid, K)
    assert bent.saturation().value == pytest.approx(0.5)
    assert bent.linearity().value < 1


def test_spread_is_within_a_direction() -> None:
    generator = np.random.default_rng(1)
    slope = generator.normal(0, 3.0, (40, 1)) + generator.normal(0, 0.5, (40, 30))
    spread = condition(slope).spread()
    assert spread.value == pytest.approx(0.5, abs=0.05)
    assert isinstance(condition(np.ones((3, 3))).spread(), Undefined)


def test_cost_per_effect_is_a_ratio_of_sums() -> None:
    slope = np.full((3, 4), 2.0)
    base = condition(slope)
    costly = ConditionSlopes(base.effect, np.broadcast_to(np.square(K) * 1.0, base.effect.shape), base.ce, base.grid, K)
    found = costly.per_effect(costly.kl, lambda k: k != 0)
    assert found.value == pytest.approx((4 + 1 + 1 + 4) / (2 * (2 + 1 + 1 + 2)))


def test_split_half_follows_features_not_noise() -> None:
    generator = np.random.default_rng(2)
    steady = condition(generator.normal(0, 1, (30, 1)) + generator.normal(0, 0.2, (30, 20))).split_half()
    noise = condition(generator.normal(0, 1, (30, 20))).split_half()
    assert steady.value > 0.9
    assert isinstance(noise, Influence)
    low, high = interval(noise, 0.01) or (math.nan, math.nan)
    assert low < 0 < high


def test_errors_cluster_both_ways() -> None:
    """Means of tables with feature and prompt effects spread as their standard error says."""
    generator = np.random.default_rng(3)
    grid = Grid(np.arange(24), np.arange(20))
    values, errors = [], []
    for _ in range(400):
        table = generator.normal(size=(20, 1)) + generator.normal(size=(1, 24)) + generator.normal(size=(20, 24))
        found = two_way_mean(table, grid)
        values.append(found.value)
        errors.append(standard_error(found))
    assert np.std(values) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.15)


def test_prompts_of_one_text_count_once() -> None:
    table = np.random.default_rng(4).normal(size=(6, 8))
    doubled = np.repeat(table, 2, axis=1)
    once = two_way_ratio(table, np.ones_like(table), Grid(np.arange(8), np.arange(6)))
    twice = two_way_ratio(doubled, np.ones_like(doubled), Grid(np.repeat(np.arange(8), 2), np.arange(6)))
    assert standard_error(twice) == pytest.approx(standard_error(once))


def null_rows(generator: np.random.Generator, kind: str, rows: int) -> np.ndarray:
    """(rows, 32) slopes of directions without meaning on 32 target sets of very different sizes."""
    if kind == "normal":
        effect_slopes = generator.normal(size=(rows, 32))
    elif kind == "heavy":
        effect_slopes = generator.standard_t(4, size=(rows, 32)) / math.sqrt(2)
    else:  # a component common to the decoder
        effect_slopes = 0.9 * generator.normal(size=(rows, 32)) + 0.5
    return effect_slopes * np.exp(np.random.default_rng(9).normal(size=32))


@pytest.mark.parametrize("kind", ["normal", "heavy", "shifted"])
def test_directions_without_meaning_are_found_at_the_rate_of_false_discoveries(kind: str) -> None:
    generator = np.random.default_rng(5)
    everything = np.ones((128, 32), dtype=bool)
    found = []
    for _ in range(300):
        drawn = null_rows(generator, kind, 1)[0], null_rows(generator, kind, 128)
        # Their size is 1.4 times that of random directions, as that of decoder rows is: it must not make them steer.
        random = null_rows(generator, "normal", 64) / 1.4
        found.append(compare_with_controls(drawn[0], random, drawn[1], everything).significant.mean())
    assert np.mean(np.array(found) > 0) < 0.15
    assert np.mean(np.array(found) > 0.1) < 0.01


def test_strong_directions_are_found() -> None:
    generator = np.random.default_rng(6)
    random, others = (generator.normal(size=(rows, 32)) for rows in (64, 128))
    strong = np.where(np.arange(32) < 16, 5.0, 0.0)
    everything = np.ones_like(others, dtype=bool)
    found = compare_with_controls(strong, random, others, everything).significant
    assert found[:16].all()
    assert found[16:].mean() < 0.1
    # Either floor alone can stop a feature.
    assert not compare_with_controls(strong, 10 * random, others, everything).significant.any()
    assert not compare_with_controls(strong, random, 10 * others, everything).significant.any()
    assert not compare_with_controls(np.zeros(32), 0 * random, 0 * others, everything).significant.any()


def test_exceedance_counts_by_hand_and_leaves_a_feature_out_of_its_own_floor() -> None:
    null = np.array([[3.0, 1.0], [-4.0, 1.0], [100.0, 2.0]])
    counted = np.array([[True, True], [True, True], [False, True]])
    statistic, p = exceedance(np.array([5.0, 3.0]), null, counted)
    size = np.sqrt([(9 + 16) / 2, (1 + 1 + 4) / 3])
    np.testing.assert_allclose(statistic, np.array([5.0, 3.0]) / size)
    # In units of their size the five others are .85, -1.13, .71, .71 and 1.41; both features lie at 1.41 or beyond.
    np.testing.assert_allclose(p, [(1 + 1) / 6, 1 / 6])
