"""Any series has a picture by its kind; what is known by name has its own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.measurement import Series
from sae_bench.show.charts import pareto, property_charts, token_charts
from sae_bench.show.charts.bullet_chart import bullet
from sae_bench.show.charts.figure import bounds, shorten, token
from sae_bench.show.charts.series_charts import marked, picture

NUMBER = st.one_of(st.none(), st.floats(), st.integers(-5, 5))
CELL = st.one_of(NUMBER, st.text(max_size=4))


def histogram(**columns: list[float]) -> Series:
    return Series("histogram", {"edges": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], **columns}, "title", "unit")


def test_a_histogram_shows_shares_of_each_distribution_and_no_empty_ends() -> None:
    figure = picture("h", histogram(sae=[0, 0, 3, 1, 0], noise=[0, 0, 100, 300, 0]))
    assert figure is not None
    assert [trace["y"] for trace in figure.data] == [[0.0, 0.75, 0.25, 0.0, 0.0], [0.0, 0.25, 0.75, 0.0, 0.0]]
    assert figure.data[0]["x"] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert figure.data[0]["line"]["dash"] != figure.data[1]["line"]["dash"]


def test_a_histogram_of_a_metric_has_its_value_and_its_limits(make: Any) -> None:
    metric = make.metric(3.0, accepted=2.0, limit="10%; max:4.5", better="lower")
    figure = marked(picture("h", histogram(sae=[1, 1, 1, 1, 1])), metric, log=False)
    assert sorted(shape["x0"] for shape in figure.layout["shapes"]) == pytest.approx([2.0, 2.2, 3.0, 4.5])


def test_quantiles_and_curves_have_a_line_a_column() -> None:
    quantiles = picture("q", Series("quantiles", {"q": [0.5, 0.99], "a": [1.0, 2.0], "b": [3.0, 4.0]}))
    curve = picture("c", Series("curve", {"x": [1, 2], "a": [1.0, 2.0], "a_se": [0.1, 0.2]}))
    assert quantiles is not None
    assert curve is not None
    assert quantiles.layout["xaxis"]["ticktext"] == ["50%", "99%"]
    assert [trace["name"] for trace in quantiles.data] == ["a", "b"]
    assert [trace["name"] for trace in curve.data] == ["a"]
    assert curve.data[0]["error_y"]["array"] == [0.196, 0.392]


def test_wide_ranges_are_logarithmic_also_where_a_value_is_zero() -> None:
    for column, log in (([1e-6, 1e-3, 1.0, 2.0, 3.0], True), ([1.0, 1.1, 1.2, 1.3, 1.4], False),
                        ([0.0, 0.0, 0.0, 1.0, 100.0], False), ([-1.0, 1e-3, 1.0, 2.0, 3.0], False)):  # fmt: skip
        figure = picture("c", Series("curve", {"x": [0, 1, 2, 3, 4], "a": column}))
        assert figure is not None
        assert (figure.layout["yaxis"].get("type") == "log") is log
    figure = picture("c", Series("curve", {"x": list(range(6)), "a": [0.0, 1e-6, 1e-3, 1.0, 2.0, 3.0]}))
    assert figure is not None
    assert figure.layout["yaxis"]["type"] == "log"
    assert figure.caption == "Values of 0 are not shown."


def test_many_curves_are_thin_and_have_their_mean() -> None:
    series = Series("curve", {"x": [0, 1], **{f"s{row}": [float(row), 2.0 * row] for row in range(20)}})
    figure = picture("c", series)
    assert figure is not None
    assert figure.data[-1]["name"] == "mean"
    assert figure.data[-1]["y"] == [9.5, 19.0]
    assert figure.data[0]["name"] == "each of 20"


@pytest.mark.parametrize(
    "series",
    [
        histogram(sae=[0, 0, 0, 0, 0]),
        histogram(),
        Series("histogram", {}),
        Series("quantiles", {"q": []}),
        Series("curve", {"x": [1, 2], "a": [None, None]}),
        Series("table", {}),
        Series("table", {"name": ["a", "b"]}),
        Series("table", {"x": [], "y": []}),
    ],
)
def test_what_holds_nothing_has_no_picture(series: Series) -> None:
    assert picture("s", series) is None


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["histogram", "quantiles", "curve", "table"]),
    columns=st.dictionaries(
        st.sampled_from(["edges", "x", "q", "a", "b", "a_se", "se", "feature"]), st.lists(CELL, max_size=5), max_size=5
    ),
    log=st.booleans(),
)
def test_any_series_gives_strict_json_or_nothing(kind: Any, columns: dict[str, list[Any]], log: bool) -> None:
    if kind == "histogram" and not all(isinstance(each, int | float) for row in columns.values() for each in row):
        return
    if any(isinstance(each, float) and not np.isfinite(each) for row in columns.values() for each in row):
        return
    if kind == "quantiles" and not all(isinstance(each, int | float) for each in columns.get("q", [])):
        return
    figure = picture("s", Series(kind, columns, log_x=log))
    if figure is not None:
        assert figure.data
        json.dumps(figure.spec, allow_nan=False)


def test_the_largest_float_is_no_infinity_when_it_is_rounded() -> None:
    assert shorten(1.7976e308) is None
    assert shorten(float("nan")) is None
    assert shorten(0.123456) == 0.1235


def test_a_stored_report_which_sorts_its_columns_gives_the_same_pictures(make: Any) -> None:
    for result in make.full(1).saes["demo/l1-0"].properties.values():
        for name, series in result.series.items():
            turned = Series(series.kind, dict(sorted(series.columns.items())), series.title, series.x, series.log_x)
            assert picture(name, turned) == picture(name, series)
    conditions = Series("curve", {"x": [0, 1], "covariance": [1.0, 2.0], "sae": [3.0, 4.0]})
    figure = picture("c", conditions)
    assert figure is not None
    assert [trace["name"] for trace in figure.data] == ["sae", "covariance"]


def test_a_table_for_programs_has_no_picture() -> None:
    assert picture("alive", Series("table", {"n": [1, 2], "alive": [1, 2], "mask": ["A" * 201, ""]})) is None


def test_text_of_a_report_is_no_markup_in_a_label() -> None:
    assert token(" a<b>\n") == "␣a&lt;b&gt;⏎"
    assert token("  ") == "␣␣"
    figure = picture("t", Series("table", {"n": ["<b>x</b>", "y"], "v": [1.0, 2.0]}))
    assert figure is not None
    assert figure.data[0]["x"] == ["&lt;b&gt;x&lt;/b&gt;", "y"]


def test_documents_then_and_now_are_paired_by_their_ids(make: Any) -> None:
    def held(values: dict[int, float], **more: Any) -> Any:
        parts = known_parts(list(values.values()))
        metric = make.metric(float(np.mean(list(values.values()))), per_cluster=parts, **more)
        return make.prop("kl_gap", {"kl_sae": metric}, clusters=tuple(values))

    now, before = held({1: 0.1, 2: 0.2, 3: 0.9, 7: 5.0}), held({3: 0.3, 2: 0.2, 1: 0.2, 9: 1.0})
    figure = property_charts.documents(now, before)
    assert figure is not None
    dots = [pair for trace in figure.data[:2] for pair in zip(trace["x"], trace["y"], strict=True)]
    points = sorted(dots)
    assert points == [(0.2, 0.1), (0.2, 0.2), (0.3, 0.9)]
    assert "1 of 3 documents are worse, 1 better" in figure.caption
    assert [document for document, _ in property_charts.document_changes(now, before)] == [3, 1]
    assert property_charts.documents(now, None) is None


def known_parts(values: list[float]) -> Any:
    from sae_bench.report.records import PerCluster

    return PerCluster(numerator=tuple(10 * each for each in values), denominator=(10.0,) * len(values))


def test_the_front_holds_what_nothing_beats_in_both(make: Any) -> None:
    places = {"a": (10, 0.5), "b": (20, 0.3), "c": (20, 0.4), "d": (30, 0.35), "e": (40, 0.1)}
    report = make.report({name: {
        "sparsity": make.prop("sparsity", {"l0": make.metric(l0, better="target")}),
        "kl_gap": make.prop("kl_gap", {"kl_sae": make.metric(kl)})} for name, (l0, kl) in places.items()})  # fmt: skip
    (figure,) = pareto.pareto(report)
    front = figure.data[-1]
    assert list(zip(front["x"], front["y"], strict=True)) == [(10, 0.5), (20, 0.3), (40, 0.1)]


def test_pareto_needs_both_numbers(make: Any) -> None:
    report = make.report({"a": {"kl_gap": make.prop("kl_gap", {"kl_sae": make.metric()})}})
    assert pareto.pareto(report) == []


def test_sae_kinds_are_told_apart_by_colour_and_shape(make: Any) -> None:
    figure = pareto.pareto(make.full(6))[0]
    looks = {(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in figure.data if "marker" in trace}
    assert len(looks) == 6
    assert len({symbol for _, symbol in looks}) == 6


def test_the_funnel_is_narrow_where_types_are_frequent(make: Any) -> None:
    series = make.full(1).saes["demo/l1-0"].properties["kl_gap"].series["kl_types"]
    figure = token_charts.funnel(series)
    assert figure is not None
    low, high = figure.data[1], figure.data[2]
    width = [b - a for a, b in zip(low["x"], high["x"], strict=True)]
    assert width[0] > width[-1] > 0
    assert low["y"][0] < low["y"][-1]


def test_limits_lie_where_the_metric_says(make: Any) -> None:
    assert bounds(make.metric(1.0, accepted=2.0, limit="10%", better="lower")) == pytest.approx([2.2])
    assert bounds(make.metric(1.0, accepted=2.0, limit="10%", better="higher")) == pytest.approx([1.8])
    assert bounds(make.metric(1.0, accepted=2.0, limit="10%", better="target")) == pytest.approx([1.8, 2.2])
    assert bounds(make.metric(1.0, accepted=2.0, limit="2se")) == []
    assert bounds(make.metric(1.0, accepted=None, limit="min:0.5")) == [0.5]


@settings(max_examples=50, deadline=None)
@given(
    value=st.floats(-1e6, 1e6),
    accepted=st.one_of(st.none(), st.floats(-1e6, 1e6)),
    limit=st.sampled_from(["5%", "0.1", "max:1", "min:-1", "max:1; min:0", "2se", ""]),
    better=st.sampled_from(["lower", "higher", "target", "reported"]),
)
def test_a_bullet_stays_within_its_frame(make: Any, value: float, accepted: Any, limit: str, better: str) -> None:
    metric = make.metric(value, Verdict.PASS, accepted=accepted, change=0.0, limit=limit, better=better)
    drawn = bullet(metric)
    if drawn is None:
        assert not bounds(metric)
        return
    starts = [drawn.value, *drawn.limits, *(start for start, _ in drawn.forbidden)]
    ends = [start + width for start, width in (*drawn.forbidden, *([drawn.interval] if drawn.interval else []))]
    for place in (*starts, *ends, *([drawn.accepted] if drawn.accepted is not None else [])):
        assert 0 <= place <= drawn.width


def test_documents_are_ranked_by_a_column_of_any_name(make: Any) -> None:
    series = Series("table", {"text": [0, 1, 2], "loss": [0.3, 0.1, 0.2]}, "Loss", "text", chart="ranked_documents")
    figures, empty = property_charts.pictures(
        make.prop("own", {"loss": make.metric(0.2)}, series={"own": series}), None
    )
    assert [list(figure.data[0]["y"]) for figure in figures] == [[0.1, 0.2, 0.3]]
    assert empty == []
