"""What contrast steering looks like: propensity curves of single questions, slopes, candidates, declared factors.

propensity_lines[_ARM]  curve: ``x`` holds the multipliers, 0 among them, and every column ``line N`` the propensity
                        (nats) of the question in line N of the dataset under each of them; at most 100 questions,
                        every combination of factor levels equally often. The bare name is arm `feature`'s; of
                        random directions the first one is drawn.
variance_by_factor      table: ``factor`` and a column per arm, omega squared of each declared factor alone; the row
                        `unexplained` is what the additive model of all of them leaves
slopes                  histogram of slopes by arm, over questions and the arm's directions' mean
candidates              table of the features that were tried
factors                 table: per declared factor and level of arm `feature`, see `_factor_table`
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.measurement import Series
from sae_bench.measure.properties.contrast.conditions import CONDITIONS, ContrastConditions
from sae_bench.measure.shared.factor_variance import omega_squared, permutation_p
from sae_bench.measure.shared.multiple_testing import holm

LINES = 100
"Questions whose propensity curves are kept, at most."


def contrast_series(found: ContrastConditions, factors: Mapping[str, Ints], seed: int) -> dict[str, Series]:
    """Tables and curves of one measurement; ``factors`` are the declared ones with two levels."""
    series = {**_lines(found), "slopes": _slopes(found), "candidates": _candidates(found)}
    if factors:
        series["variance_by_factor"] = _variance(found, factors)
    feature = found.of_arm("feature")
    if feature is not None and factors:
        series["factors"] = _factor_table(feature[0], found, factors, seed)
    return series


def _lines(found: ContrastConditions) -> dict[str, Series]:
    from sae_bench.measure.datasets.balanced_sampling import sample_cells
    from sae_bench.measure.properties.contrast.propensity import MULTIPLIERS

    shown = sample_cells(found.pairs, LINES)[:LINES]
    place = {pair.line: index for index, pair in enumerate(found.pairs)}
    series = {}
    for condition in (condition for condition in CONDITIONS if condition in found.rows):
        curves = found.propensity[found.rows[condition]][0]  # (N, K)
        series["propensity_lines" if condition == "feature" else f"propensity_lines_{condition}"] = Series(
            "curve",
            {"x": list(MULTIPLIERS), **{f"line {pair.line}": curves[place[pair.line]].tolist() for pair in shown}},
            title=f"Propensity of single questions, arm {condition}",
            x="multiplier of the unit strength",
        )
    return series


def _slopes(found: ContrastConditions) -> Series:
    slopes = {condition: found.slopes[rows].mean(0) for condition, rows in found.rows.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(slopes.values())), bins=30)
    counts = {condition: np.histogram(each, edges)[0].tolist() for condition, each in slopes.items()}
    return Series(
        "histogram",
        {"edges": edges.tolist(), **counts},
        title="Slopes over questions",
        x="slope, nats per unit strength",
    )


def _candidates(found: ContrastConditions) -> Series:
    return Series(
        "table",
        {
            "feature": list(found.candidates),
            "sign": list(found.signs),
            "reliability_choosing_half": found.choosing.tolist(),
            "chosen": [feature == found.chosen for feature in found.candidates],
        },
        title="Candidates: features whose activation tells the answers apart, then those whose direction does",
    )


def _variance(found: ContrastConditions, factors: Mapping[str, Ints]) -> Series:
    columns: dict[str, list[object]] = {"factor": [*factors, "unexplained"]}
    for condition in (condition for condition in CONDITIONS if condition in found.rows):
        slopes = found.slopes[found.rows[condition]]
        alone = [omega_squared(slopes, [level])[0].mean() for level in factors.values()]
        together = omega_squared(slopes, list(factors.values())).sum(0).mean()
        columns[condition] = [float(each) if math.isfinite(each) else None for each in (*alone, 1 - together)]
    return Series("table", columns, title="Variance of slopes between questions, explained by declared factors")


def _factor_table(slopes: Floats, found: ContrastConditions, factors: Mapping[str, Ints], seed: int) -> Series:
    """Per declared factor and level: omega squared, permutation p (within templates), mean slope, rising slopes."""
    strata = factors.get("template", np.zeros(len(slopes), dtype=np.int64))
    p = [
        float(permutation_p(slopes[None], level, np.zeros_like(level) if name == "template" else strata, seed)[0])
        for name, level in factors.items()
    ]
    rows = []
    for (name, level), corrected in zip(factors.items(), holm(p), strict=True):
        names = sorted({pair.factors[name] for pair in found.pairs})
        share = float(omega_squared(slopes[None], [level])[0, 0])
        for index, text in enumerate(names):
            these = slopes[level == index]
            cell = (name, text, len(these), float(these.mean()), float((these > 0).mean()))
            rows.append((*cell, share if math.isfinite(share) else None, corrected))
    titles = ("factor", "level", "questions", "steerability", "rising", "omega_squared", "p_holm")
    columns = {title: [row[index] for row in rows] for index, title in enumerate(titles)}
    return Series("table", columns, title="Declared factors, arm feature")
