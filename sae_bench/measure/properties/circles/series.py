"""Tables and curves of `circles`.

cycles               table: per cycle and condition the circular share, its standard error, p and, at the site, p after
                     Holm's correction over cycles, roundness, circular power over the site's
spectrum_CYCLE       curve: share of the class means' spread at every frequency of the order, by condition
outline_CYCLE        curve: the class means from one to the next and back to the first, along the first two principal
                     components of the site's; outline_CYCLE_reconstruction is that of the reconstruction
planes               table: per cycle neighbouring principal components of the cluster's contribution, and the share
                     there
features             table: per cycle the cluster's features in the order in which backward elimination removes them,
                     the share of the circle in the remaining ones and their circular share; `needed` are those that
                     must stay
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate

from sae_bench.measure.measurement import Estimate, Series
from sae_bench.measure.properties.circles import circular_power
from sae_bench.measure.properties.circles.measured_cycle import CONDITIONS, MeasuredCycle
from sae_bench.measure.shared.multiple_testing import holm
from sae_bench.measure.tables import rounded_cell, table_of_rows
from sae_bench.measure.uncertainty import standard_error

SURE = 0.05
"Largest p, after Holm's correction over the declared cycles, of an order that is more than chance."
ROUND = 0.25
"Least roundness of a circle: its axes differ by a factor of two at most. Below it, the order is a line."

_SHARE = {
    "site": "circular_share",
    "reconstruction": "circular_share_reconstruction",
    "cluster": "circular_share_cluster",
    "residual": "circular_share_residual",
}
Estimates = Mapping[str, Mapping[str, Estimate]]
MeasuredCycles = Mapping[str, MeasuredCycle]


def circle_series(
    cycles: MeasuredCycles, estimates: Estimates, corrected: Mapping[str, float], seed: int
) -> dict[str, Series]:
    """Return the tables and curves of one measurement; ``corrected`` is the result of `corrected_site_p`."""
    return {
        "cycles": _cycle_table(cycles, estimates, corrected, seed),
        **{f"spectrum_{name}": _spectrum(name, cycle) for name, cycle in cycles.items()},
        **{key: each for name, cycle in cycles.items() for key, each in _outlines(name, cycle).items()},
        "planes": _plane_table(cycles, seed),
        "features": _feature_table(cycles, estimates),
    }


def corrected_site_p(cycles: MeasuredCycles, declared: int, seed: int) -> dict[str, float]:
    """Return p at the site by cycle, after Holm's correction for all declared cycles, undefined ones included."""
    p = [circular_power.permutation_p(cycle.products["site"].whole, seed) for cycle in cycles.values()]
    return dict(zip(cycles, holm([*p, *[1.0] * (declared - len(p))]), strict=False))


def cycle_notes(cycles: MeasuredCycles, estimates: Estimates, corrected: Mapping[str, float]) -> list[str]:
    """Return sentences about each cycle: its shape at the site, and how much of it the SAE keeps."""
    notes = []
    for name, cycle in cycles.items():
        cycle_estimates, p = estimates[name], corrected[name]
        value = {metric: estimate.value for metric, estimate in cycle_estimates.items()}
        strongest = int(circular_power.powers(cycle.products["site"].whole).argmax()) + 1
        other_frequency = f", most power at frequency {strongest}" if strongest > 1 else ""
        notes.append(
            f"{name}: at the site {_shape_name(p, value['roundness'])} (circular share {value['circular_share']:.2f}, "
            f"p {p:.3g} after Holm{other_frequency}; {cycle.tokens} tokens)"
        )
        if math.isfinite(value["kept"]):
            notes[-1] += (
                f"; the reconstruction keeps {value['kept']:.0%} of its frequency 1, and the residual has "
                f"{value['residual_power']:.1%} of its power"
            )
        if cycle.features and math.isfinite(value["cluster_kept"]):
            needed = sum(_needed_features(cycle, cycle_estimates["cluster_kept"]))
            notes.append(
                f"{name}: {len(cycle.features)} features, chosen by {cycle.selection}, hold "
                f"{value['cluster_kept']:.0%} of it; {needed} of them are needed for that"
            )
    return notes


def _shape_name(p: float, roundness: float) -> str:
    if not p <= SURE:
        return "not more circular than in a random order"
    return "circular" if roundness >= ROUND else "ordered, but along a line and not a circle"


def _needed_features(cycle: MeasuredCycle, cluster_kept: Estimate) -> list[bool]:
    """Return for each step of the elimination whether its feature must stay.

    Features must stay from the first step on that leaves less than the cluster's share minus one standard error.
    """
    least = cluster_kept.value - (standard_error(cluster_kept) or 0.0)
    short = [not step.retained >= least for step in cycle.steps]
    return list(accumulate(short, lambda before, now: before or now))


def _cycle_table(cycles: MeasuredCycles, estimates: Estimates, corrected: Mapping[str, float], seed: int) -> Series:
    rows: list[dict[str, object]] = []
    for name, cycle in cycles.items():
        for condition in (condition for condition in CONDITIONS if condition in cycle.products):
            share, products = estimates[name][_SHARE[condition]], cycle.products[condition].whole
            error, site = standard_error(share), cycle.products["site"].whole
            rows.append({
                "cycle": name,
                "condition": condition,
                "circular_share": rounded_cell(share.value),
                "se": rounded_cell(error),
                "p": rounded_cell(circular_power.permutation_p(products, seed)),
                "p_holm": rounded_cell(corrected[name]) if condition == "site" else None,
                "roundness": rounded_cell(circular_power.roundness(products)),
                "power_of_site": rounded_cell(circular_power.share_of_site_power(products, site)),
            })  # fmt: skip
    return table_of_rows(rows, "Circularity of the class means, by cycle and condition")


def _spectrum(name: str, cycle: MeasuredCycle) -> Series:
    classes = len(cycle.classes)
    columns: dict[str, list[float | None]] = {"x": [float(f) for f in range(1, classes // 2 + 1)]}
    for condition in (condition for condition in CONDITIONS if condition in cycle.products):
        power = circular_power.powers(cycle.products[condition].whole)
        # The last frequency of an even number of classes is a single wave, the others are two: a sine and a cosine.
        spread = [float(each) * (1 if 2 * f == classes else 2) for f, each in enumerate(power, 1)]
        total = sum(spread)
        columns[condition] = [rounded_cell(each / total) if total > 0 else None for each in spread]
    return Series("curve", columns, f"{name}: spread of the class means by frequency of the order", "frequency")


def _outlines(name: str, cycle: MeasuredCycle) -> dict[str, Series]:
    curves = {}
    for condition, means in cycle.outline.items():
        closed = [[rounded_cell(each) for each in (*column, column[0])] for column in means.T]
        title = f"{name}, {condition}: class means from {cycle.classes[0]} round to {cycle.classes[0]}"
        columns = {"x": closed[0], "component 2": closed[1]}
        key = f"outline_{name}" if condition == "site" else f"outline_{name}_{condition}"
        curves[key] = Series("curve", columns, title, "component 1")
    return curves


def _plane_table(cycles: MeasuredCycles, seed: int) -> Series:
    rows: list[dict[str, object]] = [
        {
            "cycle": name,
            "components": f"{plane.first} and {plane.first + 1}",
            "variance": rounded_cell(plane.variance),
            "circular_share": rounded_cell(circular_power.circular_share(plane.products)),
            "p": rounded_cell(circular_power.permutation_p(plane.products, seed)),
        }
        for name, cycle in cycles.items()
        for plane in cycle.planes
    ]
    return table_of_rows(rows, "Principal components of the cluster's contribution")


def _feature_table(cycles: MeasuredCycles, estimates: Estimates) -> Series:
    rows: list[dict[str, object]] = []
    for name, cycle in cycles.items():
        needed = _needed_features(cycle, estimates[name]["cluster_kept"])
        for rank, (step, must) in enumerate(zip(cycle.steps, needed, strict=True)):
            rows.append({
                "cycle": name,
                "feature": cycle.features[step.removed],
                "left": len(cycle.steps) - rank - 1,
                "kept": rounded_cell(step.retained),
                "share_left": rounded_cell(circular_power.circular_share(step.products)),
                "needed": must,
                "selection": cycle.selection,
            })  # fmt: skip
    return table_of_rows(rows, "Features of the cluster, the least needed first")
