"""Tables and curves of `contrast`.

propensity_lines    curve: ``x`` holds the multipliers, 0 among them, and every column ``line N`` the propensity (nats)
                    of the question in line N of the dataset under each of them; at most 100 questions, every
                    combination of factor levels equally often. This is condition `feature`; the series of the others
                    are called propensity_lines_CONDITION, with the first one of the random directions.
variance_by_factor  table: ``factor`` and a column per condition, omega squared of each declared factor alone; the row
                    `unexplained` is the share that the additive model of all of them leaves
slopes              histogram of slopes over questions by condition, means over the condition's directions
candidates          table of the features that were tried
factors             table: per declared factor and level of condition `feature`, see `_factor_table`
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.measurement import Series
from sae_bench.measure.properties.contrast.conditions import CONDITIONS, ContrastConditions
from sae_bench.measure.shared.factor_variance import omega_squared, permutation_p
from sae_bench.measure.shared.multiple_testing import holm
from sae_bench.measure.tables import finite_cell, histogram_columns, table_of_rows

LINES = 100
"Most questions whose propensity curves are in the report."


def contrast_series(result: ContrastConditions, factors: Mapping[str, Ints], seed: int) -> dict[str, Series]:
    """Return the tables and curves of one measurement; ``factors`` are the declared ones with two levels."""
    series = {**_propensity_lines(result), "slopes": _slope_histogram(result), "candidates": _candidate_table(result)}
    if factors:
        series["variance_by_factor"] = _variance_table(result, factors)
    feature = result.slopes_of("feature")
    if feature is not None and factors:
        series["factors"] = _factor_table(feature[0], result, factors, seed)
    return series


def _propensity_lines(result: ContrastConditions) -> dict[str, Series]:
    from sae_bench.measure.datasets.balanced_sampling import sample_cells
    from sae_bench.measure.properties.contrast.propensity import MULTIPLIERS

    shown = sample_cells(result.pairs, LINES)[:LINES]
    place = {pair.line: index for index, pair in enumerate(result.pairs)}
    series = {}
    for condition in (condition for condition in CONDITIONS if condition in result.rows):
        curves = result.propensity[result.rows[condition]][0]  # (N, K)
        series["propensity_lines" if condition == "feature" else f"propensity_lines_{condition}"] = Series(
            "curve",
            {"x": list(MULTIPLIERS), **{f"line {pair.line}": curves[place[pair.line]].tolist() for pair in shown}},
            title=f"Propensity of single questions, condition {condition}",
            x="multiplier of the unit strength",
            order=20,
        )
    return series


def _slope_histogram(result: ContrastConditions) -> Series:
    slopes = {condition: result.slopes[rows].mean(0) for condition, rows in result.rows.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(slopes.values())), bins=30)
    return Series(
        "histogram",
        histogram_columns(edges, slopes),
        title="Slopes over questions",
        order=10,
        x="slope, nats per unit strength",
    )


def _candidate_table(result: ContrastConditions) -> Series:
    return Series(
        "table",
        {
            "feature": list(result.candidates),
            "sign": list(result.signs),
            "reliability_choosing_half": result.choosing.tolist(),
            "chosen": [feature == result.chosen for feature in result.candidates],
        },
        title="Candidates: features whose activation tells the answers apart, then those whose direction does",
    )


def _variance_table(result: ContrastConditions, factors: Mapping[str, Ints]) -> Series:
    columns: dict[str, list[object]] = {"factor": [*factors, "unexplained"]}
    for condition in (condition for condition in CONDITIONS if condition in result.rows):
        slopes = result.slopes[result.rows[condition]]
        alone = [omega_squared(slopes, [level])[0].mean() for level in factors.values()]
        together = omega_squared(slopes, list(factors.values())).sum(0).mean()
        columns[condition] = [finite_cell(share) for share in (*alone, 1 - together)]
    return Series("table", columns, title="Variance of slopes between questions, explained by declared factors")


def _factor_table(slopes: Floats, result: ContrastConditions, factors: Mapping[str, Ints], seed: int) -> Series:
    """Return per declared factor and level: omega squared, permutation p, mean slope and rising slopes."""
    strata = factors.get("template", np.zeros(len(slopes), dtype=np.int64))
    p = [
        float(permutation_p(slopes[None], level, np.zeros_like(level) if name == "template" else strata, seed)[0])
        for name, level in factors.items()
    ]
    rows: list[dict[str, object]] = []
    for (name, level), corrected_p in zip(factors.items(), holm(p), strict=True):
        share = finite_cell(float(omega_squared(slopes[None], [level])[0, 0]))
        for index, text in enumerate(sorted({pair.factors[name] for pair in result.pairs})):
            level_slopes = slopes[level == index]
            rows.append({
                "factor": name,
                "level": text,
                "questions": len(level_slopes),
                "steerability": float(level_slopes.mean()),
                "rising": float((level_slopes > 0).mean()),
                "omega_squared": share,
                "p_holm": corrected_p,
            })  # fmt: skip
    return table_of_rows(rows, "Declared factors, condition feature")
