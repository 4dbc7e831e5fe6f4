"""Standard errors, intervals and changes against closed forms, invariances and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as reference

from sae_bench.errors import MeasurementError
from sae_bench.judge.paired_change import Change, paired_change, restrict
from sae_bench.measure.measurement import Exact, Influence, Ratio, Undefined
from sae_bench.measure.uncertainty import (
    detectable_change,
    documents_needed,
    interval,
    leave_one_out,
    standard_error,
    t_quantile,
)

sizes = st.integers(2, 40)


@st.composite
def ratios(draw: st.DrawFn) -> Ratio:
    size = draw(sizes)
    numerator = draw(arrays(np.float64, size, elements=st.floats(-50, 50, width=32)))
    denominator = draw(arrays(np.float64, size, elements=st.floats(1, 200, width=32)))
    return Ratio(numerator, denominator)


@given(st.floats(0.0001, 0.5), st.integers(1, 400))
def test_t_quantile_is_students(alpha: float, dof: int) -> None:
    assert t_quantile(alpha, dof) == pytest.approx(reference.t.isf(alpha, dof), rel=1e-8, abs=1e-12)


def test_mean_of_equal_documents_has_the_textbook_error() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    mean = Ratio(values * 10, np.full(4, 10.0))
    assert standard_error(mean) == pytest.approx(values.std(ddof=1) / 2)
    low, high = interval(mean, 0.05)
    expected = reference.t.interval(0.95, 3, values.mean(), values.std(ddof=1) / 2)
    assert (low, high) == pytest.approx(expected)
    assert interval(mean, 0.025, "upper") == (-math.inf, pytest.approx(high))
    assert interval(mean, 0.025, "lower") == (pytest.approx(low), math.inf)


@pytest.mark.parametrize("clusters", [0, 1])
def test_fewer_than_two_clusters_have_no_error(clusters: int) -> None:
    one = Ratio(np.ones(clusters), np.ones(clusters))
    assert standard_error(one) is None
    assert interval(one, 0.05) is None
    assert standard_error(Influence(1.0, np.zeros(clusters))) is None


def test_weights_and_undefined_values_have_no_error() -> None:
    assert standard_error(Exact(3.0)) is None
    assert interval(Exact(3.0), 0.05) == (3.0, 3.0)
    assert standard_error(Undefined("no floor")) is None
    assert interval(Undefined("no floor"), 0.05) is None


def test_two_clusterings_add_and_never_fall_below_either() -> None:
    first, second = np.array([0.3, -0.1, -0.2]), np.array([0.1, -0.1])
    parts = [standard_error(Influence(0.0, each)) for each in (first, second)]
    assert parts[0] is not None
    assert parts[1] is not None
    both = standard_error(Influence(0.0, first, second, overlap=0.01))
    assert both == pytest.approx(math.sqrt(parts[0] ** 2 + parts[1] ** 2 - 0.01))
    assert standard_error(Influence(0.0, first, second, overlap=99.0)) == pytest.approx(max(parts))


@given(ratios())
def test_leave_one_out_reproduces_the_jackknife(ratio: Ratio) -> None:
    size = len(ratio.numerator)
    without = np.array(
        [Ratio(np.delete(ratio.numerator, s), np.delete(ratio.denominator, s)).value for s in range(size)]
    )
    influence = leave_one_out(without, ratio.value)
    jackknife = math.sqrt((size - 1) / size * ((without - without.mean()) ** 2).sum())
    assert standard_error(Influence(ratio.value, influence)) == pytest.approx(jackknife, rel=1e-9, abs=1e-12)
    assert influence.sum() == pytest.approx(0, abs=1e-9 * (1 + np.abs(without).max()))
    by_function = leave_one_out(lambda s: float(without[s]), ratio.value, size)
    np.testing.assert_array_equal(by_function, influence)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([50, 200, 800]))
def test_closed_form_agrees_with_leave_one_out_to_first_order(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    ratio = Ratio(rng.gamma(2.0, 1.0, size), rng.uniform(60, 127, size))
    top, bottom = ratio.numerator.sum(), ratio.denominator.sum()
    without = (top - ratio.numerator) / (bottom - ratio.denominator)
    influence = leave_one_out(without, ratio.value)
    # Second order: a share 1 / size of the first.
    assert np.abs(influence - ratio.influence).max() <= 6 / size * np.abs(ratio.influence).max()
    assert standard_error(Influence(0.0, influence)) == pytest.approx(standard_error(ratio), rel=6 / size)


def test_leave_one_out_refuses_what_is_not_finite() -> None:
    with pytest.raises(MeasurementError, match="not finite"):
        leave_one_out([1.0, math.nan], 1.0)
    with pytest.raises(MeasurementError, match="not finite"):
        leave_one_out([1.0, 2.0], math.inf)


@given(ratios(), st.data())
def test_restriction_of_a_ratio_is_exact(ratio: Ratio, data: st.DataObject) -> None:
    clusters = [10 * row for row in range(len(ratio.numerator))]
    wanted = data.draw(st.lists(st.sampled_from(clusters), min_size=1, unique=True))
    rows = [cluster // 10 for cluster in wanted]
    found = restrict(ratio, clusters, wanted)
    assert isinstance(found, Ratio)
    assert found.value == Ratio(ratio.numerator[rows], ratio.denominator[rows]).value
    assert restrict(ratio, clusters, [*wanted, 7]) is None


def test_influences_are_kept_only_over_the_same_clusters() -> None:
    fitted = Influence(0.5, np.array([0.1, 0.2, -0.3]))
    turned = restrict(fitted, [1, 2, 3], [3, 1, 2])
    assert isinstance(turned, Influence)
    assert turned.influence.tolist() == [-0.3, 0.1, 0.2]
    assert restrict(fitted, [1, 2, 3], [1, 2]) is None


@given(ratios(), st.integers(0, 2**32 - 1))
def test_an_unchanged_ratio_changes_by_exactly_nothing(ratio: Ratio, seed: int) -> None:
    """Subset of the documents, another order, six significant digits, and the last bits of another batch size."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(ratio.numerator))[: max(2, len(ratio.numerator) // 2)]
    jitter = 1 + rng.uniform(-3e-6, 3e-6, len(order))
    now = Ratio(ratio.numerator[order] * jitter, ratio.denominator[order])
    stored = Ratio(
        np.array([float(f"{value:.6g}") for value in ratio.numerator]),
        np.array([float(f"{value:.6g}") for value in ratio.denominator]),
    )
    change = paired_change(now, stored, order.tolist(), range(len(ratio.numerator)))
    assert change is not None
    assert change.value == 0
    assert change.se == 0
    assert change.clusters == tuple(order)


def test_a_change_above_the_numeric_floor_is_seen() -> None:
    old = Ratio(np.array([1.0, 2.0, 3.0]), np.ones(3))
    change = paired_change(Ratio(old.numerator * 1.0001, old.denominator), old, [0, 1, 2], [0, 1, 2])
    assert change is not None
    assert change.value == pytest.approx(2e-4)


def test_changes_pair_by_cluster_id_not_by_place() -> None:
    old = Ratio(np.array([1.0, 5.0, 9.0]), np.ones(3))
    new = Ratio(np.array([9.0, 1.0, 5.0]), np.ones(3))
    change = paired_change(new, old, [2, 0, 1], [0, 1, 2])
    assert change is not None
    assert (change.value, change.se) == (0, 0)
    wrong = paired_change(new, old, [0, 1, 2], [0, 1, 2])
    assert wrong is not None
    assert wrong.se is not None
    assert wrong.se > 1


@pytest.mark.parametrize(
    ("now", "accepted", "ours", "theirs"),
    [
        (Ratio(np.ones(2), np.ones(2)), Ratio(np.ones(2), np.ones(2)), [0, 1], [2, 3]),
        (Influence(1.0, np.zeros(2)), Influence(1.0, np.zeros(3)), [0, 1], [0, 1, 2]),
        (Ratio(np.ones(2), np.ones(2)), Influence(1.0, np.zeros(2)), [0, 1], [0, 1]),
        (Exact(1.0), Ratio(np.ones(2), np.ones(2)), [], [0, 1]),
        (Influence(1.0, np.zeros(2), np.zeros(3)), Influence(1.0, np.zeros(2)), [0, 1], [0, 1]),
    ],
)
def test_what_cannot_be_paired_is_none(now: Ratio, accepted: Ratio, ours: list[int], theirs: list[int]) -> None:
    assert paired_change(now, accepted, ours, theirs) is None


def test_errors_stand_for_all_accepted_documents_and_are_never_narrowed() -> None:
    """Over calm documents the error is as much larger as the accepted values vary more over all of them."""
    rng = np.random.default_rng(2)
    old = np.concatenate([rng.uniform(0.9, 1.1, 60), rng.uniform(5, 15, 4)])
    now = old * rng.uniform(0.9, 1.3, 64)
    calm, wild, every = list(range(32)), list(range(48, 64)), list(range(64))

    def change(rows: list[int], accepted_rows: list[int]) -> Change:
        ours, theirs = (Ratio(v[r], np.ones(len(r))) for v, r in ((now, rows), (old, accepted_rows)))
        found = paired_change(ours, theirs, rows, accepted_rows)
        assert found is not None
        return found

    alone, among = change(calm, calm), change(calm, every)
    assert (alone.inflation, change(every, every).inflation, change(wild, every).inflation) == (1, 1, 1)
    assert among.inflation == pytest.approx(old.std(ddof=1) / old[calm].std(ddof=1))
    assert among.value == alone.value
    assert among.se == pytest.approx(among.inflation * alone.se)
    percent = alone.se_against(0.05, 0.0)
    assert percent is not None
    assert among.se_against(0.05, 0.0) == pytest.approx(among.inflation * percent)


@pytest.mark.parametrize("rows", [[0], [0, 1]])
def test_documents_that_do_not_vary_at_all_are_not_inflated(rows: list[int]) -> None:
    old = Ratio(np.array([1.0, 1.0, 7.0]), np.ones(3))
    change = paired_change(Ratio(np.full(len(rows), 1.5), np.ones(len(rows))), old, rows, [0, 1, 2])
    assert change is not None
    assert change.inflation == 1


def test_exact_values_are_compared_exactly_above_the_floor() -> None:
    same, moved = (paired_change(Exact(value), Exact(0.31), [], []) for value in (0.3100001, 0.3101))
    assert same is not None
    assert moved is not None
    assert (same.value, same.se, same.exact) == (0, None, True)
    assert moved.value == pytest.approx(1e-4)


def test_a_common_factor_has_no_error_in_percent() -> None:
    rng = np.random.default_rng(0)
    old = Ratio(rng.gamma(2, 1, 50), rng.uniform(50, 100, 50))
    change = paired_change(Ratio(old.numerator * 1.1, old.denominator), old, range(50), range(50))
    assert change is not None
    assert change.se is not None
    assert change.se > 1e-4
    assert change.se_against(0.05, 0.0) == pytest.approx(0, abs=1e-12)
    assert change.se_against(0.0, 0.01) == change.se


def test_documents_needed_shrink_the_error_to_the_gap() -> None:
    needed = documents_needed(gap=0.01, se=0.01, alpha=0.01, clusters=100)
    assert needed is not None
    assert t_quantile(0.01, 99) * 0.01 * math.sqrt(100 / needed) == pytest.approx(0.01, rel=0.01)
    assert documents_needed(0.0, 0.01, 0.01, 100) is None
    assert documents_needed(1e-9, 1.0, 0.01, 100) is None


def test_detectable_change_has_the_power_it_claims() -> None:
    rng = np.random.default_rng(1)
    size, alpha = 40, 0.01
    true = detectable_change(1 / math.sqrt(size), alpha, size - 1)
    draws = rng.normal(true, 1, (4000, size))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(size))
    power = (t > t_quantile(alpha, size - 1)).mean()
    assert power == pytest.approx(0.95, abs=0.02)
