"""What circles look like: per cycle and arm the share and its p, the spectrum, planes, and features that can go.

cycles               table: per cycle and arm the circular share, its standard error, p and, at the site, p by Holm over
                     cycles, roundness, circular power over the site's
spectrum_CYCLE       curve: share of the class means' spread at every frequency of the order, by arm
outline_CYCLE[_ARM]  curve: the class means from one to the next and back to the first, along the first two principal
                     components of the site's; of the site and of the reconstruction
planes               table: per cycle neighbouring principal components of what the cluster writes, and the share there
features             table: per cycle the cluster's features in the order in which backward elimination drops them, what
                     the others keep of the circle and their circular share; `needed` are those that must stay
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate

from sae_bench.measure.measurement import Estimate, Series
from sae_bench.measure.properties.circles import circular_power
from sae_bench.measure.properties.circles.measured_cycle import CONDITIONS, MeasuredCycle
from sae_bench.measure.shared.multiple_testing import holm
from sae_bench.measure.uncertainty import standard_error

SURE = 0.05
"p, after Holm's correction over the declared cycles, up to which an order is more than chance."
ROUND = 0.25
"Roundness from which an order is a circle and no line: the axes differ by a factor of two at most."

_SHARE = {
    "site": "circular_share",
    "reconstruction": "circular_share_reconstruction",
    "cluster": "circular_share_cluster",
    "residual": "circular_share_residual",
}
Estimates = Mapping[str, Mapping[str, Estimate]]
Cycles = Mapping[str, MeasuredCycle]


def circle_series(found: Cycles, estimates: Estimates, corrected: Mapping[str, float], seed: int) -> dict[str, Series]:
    """Tables of one measurement; ``corrected`` as `corrected_site_p` gives it."""
    return {
        "cycles": _cycles(found, estimates, corrected, seed),
        **{f"spectrum_{name}": _spectrum(name, held) for name, held in found.items()},
        **{key: each for name, held in found.items() for key, each in _outlines(name, held).items()},
        "planes": _planes(found, seed),
        "features": _features(found, estimates),
    }


def corrected_site_p(found: Cycles, declared: int, seed: int) -> dict[str, float]:
    """By cycle, p at the site after Holm's correction for all declared ones, those without a value included."""
    each = [circular_power.permutation_p(held.products["site"].whole, seed) for held in found.values()]
    return dict(zip(found, holm([*each, *[1.0] * (declared - len(each))]), strict=False))


def cycle_notes(found: Cycles, estimates: Estimates, corrected: Mapping[str, float]) -> list[str]:
    """What was found of each cycle, in words."""
    told = []
    for name, held in found.items():
        of, p = estimates[name], corrected[name]
        value = {metric: each.value for metric, each in of.items()}
        strongest = int(circular_power.powers(held.products["site"].whole).argmax()) + 1
        elsewhere = f", most power at frequency {strongest}" if strongest > 1 else ""
        told.append(
            f"{name}: at the site {_called(p, value['roundness'])} (circular share {value['circular_share']:.2f}, "
            f"p {p:.3g} after Holm{elsewhere}; {held.tokens} tokens)"
        )
        if math.isfinite(value["kept"]):
            told[-1] += (
                f"; the reconstruction keeps {value['kept']:.0%} of its frequency 1, and the residual has "
                f"{value['residual_power']:.1%} of its power"
            )
        if held.features and math.isfinite(value["cluster_kept"]):
            needed = sum(_needed(held, of["cluster_kept"]))
            told.append(
                f"{name}: {len(held.features)} features, found by {held.found_by}, hold {value['cluster_kept']:.0%} of "
                f"it; {needed} of them are needed for that"
            )
    return told


def _called(p: float, roundness: float) -> str:
    if not p <= SURE:
        return "no more circular than in any order"
    return "circular" if roundness >= ROUND else "in order, but on a line rather than a circle"


def _needed(held: MeasuredCycle, whole: Estimate) -> list[bool]:
    """Of each step of the elimination, whether its feature must stay: from the first on that leaves too little."""
    least = whole.value - (standard_error(whole) or 0.0)
    short = [not step.kept >= least for step in held.steps]
    return list(accumulate(short, lambda before, now: before or now))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _table(rows: list[dict[str, object]], title: str) -> Series:
    titles = dict.fromkeys(key for row in rows for key in row)
    return Series("table", {key: [row.get(key) for row in rows] for key in titles}, title=title)


def _cycles(found: Cycles, estimates: Estimates, corrected: Mapping[str, float], seed: int) -> Series:
    rows: list[dict[str, object]] = []
    for name, held in found.items():
        for condition in (condition for condition in CONDITIONS if condition in held.products):
            share, products = estimates[name][_SHARE[condition]], held.products[condition].whole
            error = standard_error(share)
            rows.append({
                "cycle": name,
                "arm": condition,
                "circular_share": _rounded(share.value),
                "se": _rounded(error),
                "p": _rounded(circular_power.permutation_p(products, seed)),
                "p_holm": _rounded(corrected[name]) if condition == "site" else None,
                "roundness": _rounded(circular_power.roundness(products)),
                "power_of_site": _rounded(circular_power.share_of_site_power(products, held.products["site"].whole)),
            })  # fmt: skip
    return _table(rows, "Cycles: how circular the class means are in their order")


def _spectrum(name: str, held: MeasuredCycle) -> Series:
    classes = len(held.classes)
    columns: dict[str, list[float | None]] = {"x": [float(f) for f in range(1, classes // 2 + 1)]}
    for condition in (condition for condition in CONDITIONS if condition in held.products):
        power = circular_power.powers(held.products[condition].whole)
        # The last frequency of an even number of classes is a single wave, the others are two: a sine and a cosine.
        spread = [float(each) * (1 if 2 * f == classes else 2) for f, each in enumerate(power, 1)]
        total = sum(spread)
        columns[condition] = [_rounded(each / total) if total > 0 else None for each in spread]
    return Series("curve", columns, f"{name}: spread of the class means by frequency of the order", "frequency")


def _outlines(name: str, held: MeasuredCycle) -> dict[str, Series]:
    found = {}
    for condition, means in held.outline.items():
        closed = [[_rounded(each) for each in (*column, column[0])] for column in means.T]
        title = f"{name}, {condition}: class means from {held.classes[0]} round to {held.classes[0]}"
        columns = {"x": closed[0], "component 2": closed[1]}
        key = f"outline_{name}" if condition == "site" else f"outline_{name}_{condition}"
        found[key] = Series("curve", columns, title, "component 1")
    return found


def _planes(found: Cycles, seed: int) -> Series:
    rows: list[dict[str, object]] = [
        {
            "cycle": name,
            "components": f"{plane.first} and {plane.first + 1}",
            "variance": _rounded(plane.variance),
            "circular_share": _rounded(circular_power.circular_share(plane.products)),
            "p": _rounded(circular_power.permutation_p(plane.products, seed)),
        }
        for name, held in found.items()
        for plane in held.planes
    ]
    return _table(rows, "Principal components of what the cluster writes")


def _features(found: Cycles, estimates: Estimates) -> Series:
    rows: list[dict[str, object]] = []
    for name, held in found.items():
        needed = _needed(held, estimates[name]["cluster_kept"])
        for at, (step, must) in enumerate(zip(held.steps, needed, strict=True)):
            rows.append({
                "cycle": name,
                "feature": held.features[step.gone],
                "left": len(held.steps) - at - 1,
                "kept": _rounded(step.kept),
                "share_left": _rounded(circular_power.circular_share(step.products)),
                "needed": must,
                "found_by": held.found_by,
            })  # fmt: skip
    return _table(rows, "Features of the cluster, the least needed first")
