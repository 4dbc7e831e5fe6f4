"""Tables and curves of `shrinkage`: scales by density and by strength of the features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Series

if TYPE_CHECKING:
    from sae_bench.measure.shared.scales import Scales

SHOWN, HISTOGRAM_BINS = (0.005, 0.995), 48
"Quantiles of the fitted features at the ends of the histogram's axis; its last bins count the rest."
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 10
"Bins of equally many features."


def shrinkage_series(scales: Scales) -> dict[str, Series]:
    """Return quantiles of the scales, and scales by density and by strength as tables and as curves of t*."""
    t, refit = scales.per_feature.numpy(), scales.refit.numpy()
    free, fires = scales.free.numpy(), scales.firings.numpy() > 0
    series = {
        "scales": Series(
            "quantiles",
            {
                "q": list(QUANTILES),
                "all": _quantiles(t),
                **({"fitted": _quantiles(t[free])} if free.any() else {}),
                "alone": _quantiles(refit[fires]),
            },
            "Best scales: t* of all features, of the fitted ones, and each feature's with the others left as they are",
            "share of features",
        )
    }
    if free.any():
        series["t_star"] = _histogram(t[free])
    density = scales.firings.numpy() / scales.tokens
    for name, values in {"density": density, "strength": scales.strength.numpy()}.items():
        series[f"suppression_{name}"] = _table(name, values, scales)
        if free.any():
            series[f"suppression_{name}_curve"] = _curve(name, values[free], t[free])
    return series


def shrinkage_notes(scales: Scales | None, *, has_bias: bool) -> tuple[str, ...]:
    """Return notes on the data of the fit, and on whether rare or weak features are the suppressed ones."""
    notes = []
    if not has_bias:
        notes.append(
            "zero codes decode to zero: without a decoder bias, gamma_centred equals gamma and includes the mean"
        )
    if scales is None:
        return (*notes, "the SAE shows no decoder, so no scales were fitted")
    free = scales.free.numpy()
    notes.append(
        f"scales rest on {scales.tokens} tokens of the corpus's even documents; {int(free.sum())} of {len(free)} "
        f"features fire often enough for one of their own, the others stay at s*"
    )
    if free.sum() > 2:
        t = scales.per_feature.numpy()[free]
        by_density = _rank_correlation(scales.firings.numpy()[free], t)
        by_strength = _rank_correlation(scales.strength.numpy()[free], t)
        notes.append(
            f"rank correlation of t* over the fitted features: {by_density:+.2f} with density, {by_strength:+.2f} with "
            f"strength (negative: rare or weak features are suppressed)"
        )
    return tuple(notes)


def _quantiles(values: Floats) -> list[float]:
    return [float(value) for value in np.quantile(values, QUANTILES)]


def _histogram(t: Floats) -> Series:
    low, high = np.quantile(t, SHOWN)
    # A dictionary without shrinkage has all its scales very close to 1.
    room = max(0.01 - (high - low), 0.0) / 2
    edges = np.linspace(low - room, high + room, HISTOGRAM_BINS + 1)
    counts = np.histogram(t.clip(edges[0], edges[-1]), edges)[0]
    columns = {"edges": edges.tolist(), "features": counts.tolist()}
    return Series("histogram", columns, "Best scale t* of the fitted features", "t*", marks="uniform_scale", order=0)


def _bins(values: Floats) -> list[np.ndarray]:
    """Return indices of up to `BINS` groups of equally many features, by rising value."""
    return [group for group in np.array_split(np.argsort(values, kind="stable"), BINS) if len(group)]


def _table(name: str, values: Floats, scales: Scales) -> Series:
    """Return features that fire, in bins; a bin without fitted features has no t*."""
    alive = np.flatnonzero(scales.firings.numpy() > 0)
    t, refit, free = scales.per_feature.numpy(), scales.refit.numpy(), scales.free.numpy()
    rows = []
    for group in _bins(values[alive]):
        members = alive[group]
        fitted = members[free[members]]
        rows.append(
            {
                f"{name}_from": float(values[members].min()),
                f"{name}_to": float(values[members].max()),
                "features": len(members),
                "fitted": len(fitted),
                "scale_p50": float(np.median(t[fitted])) if len(fitted) else None,
                "alone_p25": float(np.quantile(refit[members], 0.25)),
                "alone_p50": float(np.median(refit[members])),
                "alone_p75": float(np.quantile(refit[members], 0.75)),
            }
        )
    columns = {column: [row[column] for row in rows] for column in rows[0]} if rows else {}
    return Series("table", columns, f"Best scale of a feature, by its {name}", name, log_x=True)


def _curve(name: str, values: Floats, t: Floats) -> Series:
    groups = _bins(values)
    quartiles = {f"p{q}": [float(np.quantile(t[group], q / 100)) for group in groups] for q in (25, 50, 75)}
    x = [float(np.median(values[group])) for group in groups]
    return Series("curve", {"x": x, **quartiles}, f"t* of the fitted features, by {name}", name, log_x=True, order=40)


def _rank_correlation(one: Floats, other: Floats) -> float:
    from scipy.stats import spearmanr

    # Equal values have no order to correlate.
    return float(spearmanr(one, other).statistic) if np.ptp(one) > 0 and np.ptp(other) > 0 else 0.0
