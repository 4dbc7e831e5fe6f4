"""Charts that compare conditions, and charts that a series asks for: what is marked, joined, named and left out."""

from __future__ import annotations

from typing import Any

import pytest

from sae_bench.measure.measurement import Series
from sae_bench.show.charts import condition_charts, history, property_charts, token_charts
from sae_bench.show.charts.series_charts import picture


def of(family: str, condition: str, factor: str = "") -> dict[str, str]:
    return {"family": family, "condition": condition, "factor": factor}


def test_a_family_of_a_property_that_no_renderer_knows_has_its_chart(make: Any) -> None:
    metrics = {name: make.reported(1.0, **of("Something new", name)) for name in ("one", "two")}
    figures, _ = property_charts.pictures(make.prop("lab_property", metrics), None)
    assert [figure.title for figure in figures] == ["Something new"]


def test_charts_have_the_order_that_their_series_declare(make: Any) -> None:
    bins = {"edges": [0.0, 1.0, 2.0], "tokens": [1, 2]}
    series = {name: Series("histogram", bins, name, order=order) for name, order in {"a": 30, "b": 10, "c": 20}.items()}
    figures, _ = property_charts.pictures(make.prop("lab_property", {}, series=series), None)
    assert [figure.title for figure in figures] == ["b", "c", "a"]


def test_the_sae_stands_out_among_its_floors_with_intervals_and_its_limit(make: Any) -> None:
    metrics = {
        "kl_sae": make.metric(0.04, limit="10%", accepted=0.04, value_interval=(0.03, 0.06), **of("KL", "sae")),
        "kl_isotropic": make.reported(0.01, value_interval=None, **of("KL", "isotropic")),
        "kl_zero_ablation": make.reported(4.0, value_interval=(3.5, 4.5), **of("KL", "zero_ablation")),
        "kl_level": make.metric(0.1, unit="ratio"),
    }
    figure = condition_charts.family_charts(make.prop("kl_gap", metrics, confidence=0.98))["KL"]
    points = figure.data[0]
    assert points["y"] == ["isotropic", "sae", "zero_ablation"]
    assert points["error_x"]["array"] == pytest.approx([0, 0.02, 0.5])
    assert points["error_x"]["arrayminus"] == pytest.approx([0, 0.01, 0.5])
    assert len(set(points["marker"]["symbol"])) == 2
    assert [shape["x0"] for shape in figure.layout["shapes"]] == pytest.approx([0.044])
    assert figure.layout["xaxis"]["type"] == "log"
    assert figure.caption == "Bars: 98% intervals."


def test_variance_has_a_bar_per_factor_and_condition(make: Any) -> None:
    metrics = {
        "variance_explained_wording": make.reported(
            0.1, "share", value_interval=(0.0, 0.3), **of("Variance", "feature", "wording")
        ),
        "variance_explained_wording_mean_difference": make.reported(
            0.5, "share", **of("Variance", "mean_difference", "wording")
        ),
        "variance_explained_answer_position": make.reported(
            0.2, "share", **of("Variance", "feature", "answer_position")
        ),
        "variance_explained_answer_position_mean_difference": make.metric(
            None, **of("Variance", "mean_difference", "answer_position")
        ),
    }
    figure = condition_charts.family_charts(make.prop("contrast", metrics))["Variance"]
    feature, difference = figure.data
    assert (feature["name"], feature["x"], feature["y"]) == ("feature", ["answer_position", "wording"], [0.2, 0.1])
    assert (difference["name"], difference["x"], difference["y"]) == ("mean_difference", ["wording"], [0.5])
    assert feature["error_y"]["array"][1] == pytest.approx(0.2)
    assert feature["marker"]["pattern"] != difference["marker"]["pattern"]


def test_directions_are_compared_with_features(make: Any) -> None:
    metrics = {"anti_share": make.reported(0.02, "share", **of("Share", "feature")),
               "anti_share_random_direction": make.reported(0.5, "share", **of("Share", "random_direction")),
               "anti_share_gap": make.metric(-0.48, unit="share")}  # fmt: skip
    figure = condition_charts.family_charts(make.prop("steering", metrics))["Share"]
    assert figure.data[0]["y"] == ["feature", "random_direction"]
    assert figure.layout["xaxis"].get("type") != "log", "a share of 0 belongs on the axis"


def test_near_directions_have_a_colour_per_rank_and_a_dash_per_floor() -> None:
    columns = {"q": [0.5, 0.9], "nn1": [0.5, 0.6], "nn10": [0.3, 0.4], "isotropic_nn1": [0.2, 0.3]}
    figure = condition_charts.near_directions(Series("quantiles", columns))
    assert figure is not None
    looks = {trace["name"]: (trace["line"]["color"], trace["line"]["dash"]) for trace in figure.data}
    assert looks["features nn1"][0] == looks["isotropic nn1"][0] != looks["features nn10"][0]
    assert looks["features nn1"][1] == looks["features nn10"][1] != looks["isotropic nn1"][1]


def test_tokens_at_the_end_of_the_axis_are_counted_beside_it() -> None:
    series = Series(
        "histogram", {"edges": [1e-6, 1e-3, 1.0, 10.0], "sae": [90, 6, 4], "noise": [50, 25, 25]}, log_x=True
    )
    figure = token_charts.token_histogram(series)
    assert figure is not None
    assert figure.layout["yaxis"]["range"] == pytest.approx([0, 0.275])
    assert "sae 90%, noise 50%" in figure.caption
    inside = Series("histogram", {"edges": [1e-6, 1e-3, 1.0, 10.0], "sae": [0, 6, 4]}, log_x=True)
    assert "range" not in token_charts.token_histogram(inside).layout["yaxis"]  # type: ignore[union-attr]


def test_token_types_outside_the_funnel_are_named() -> None:
    columns = {"token": ["a", " b", "c"], "n": [100, 100, 100], "gap": [0.33, 1.0, 0.34], "se": [0.2, 0.2, 0.2]}
    figure = token_charts.funnel(Series("table", columns, "title"))
    assert figure is not None
    assert figure.data[0]["text"] == ["", "␣b", ""], "|0.33 - mean| and |0.34 - mean| are below 1.96 * 0.2"
    assert figure.data[0]["customdata"] == ["a", "␣b", "c"]


def test_the_histogram_of_scales_has_the_one_scale_for_all_in_it(make: Any) -> None:
    series = {
        "t_star": Series("histogram", {"edges": [0.9, 1.0, 1.1], "features": [3, 4]}, "t*", "t*", marks="uniform_scale")
    }
    metrics = {"gamma_centred": make.metric(0.95), "uniform_scale": make.reported(1.05, "ratio")}
    figures, _ = property_charts.pictures(make.prop("shrinkage", metrics, series=series), None)
    (figure,) = [each for each in figures if each.title == "t*"]
    assert [shape["x0"] for shape in figure.layout["shapes"]] == [1.05]
    assert any(trace["name"] == "uniform_scale" for trace in figure.data)


def test_intervals_on_a_logarithmic_axis_end_above_zero() -> None:
    columns = {"x": [1, 2, 3], "sae": [0.001, 0.1, 1.0], "sae_se": [0.002, 0.01, 0.1], "noise": [0.01, 0.1, 1.0]}
    figure = picture("kl_position", Series("curve", columns))
    assert figure is not None
    bars = figure.data[0]["error_y"]
    assert figure.layout["yaxis"]["type"] == "log"
    assert all(0 < down < value for down, value in zip(bars["arrayminus"], [0.001, 0.1, 1.0], strict=True))
    assert bars["array"][2] == pytest.approx(0.2165, rel=1e-3)
    assert figure.caption == "Bars: 95% intervals of sae."


def test_history_draws_the_hard_limits_of_the_last_accepted_files(make: Any) -> None:
    before, last = (make.metric(0.9, se=0.01, limit="min:0.7"), make.metric(0.8, se=None, limit="2%; min:0.5"))
    dates = ["one", "two", "three"]
    figure = history.history("another.metric", dates, {"a": [before, last, None]})
    assert figure is not None
    assert [shape["y0"] for shape in figure.layout["shapes"]] == [0.5]
    assert "≥ 0.5" in figure.caption
    assert figure.data[0]["error_y"]["array"] == [pytest.approx(0.0196), None, None]
    two = history.history("another.metric", dates, {"a": [before, last, None], "b": [None, None, before]})
    assert two is not None
    assert {shape["y0"] for shape in two.layout["shapes"]} == {0.5, 0.7}
    # Files that were accepted before they kept limits.
    bare = history.history("reconstruction.explained_variance", dates, {"a": [make.metric(0.9, limit="")] * 3})
    assert bare is not None
    assert bare.layout["shapes"] == []
