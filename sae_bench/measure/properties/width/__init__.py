"""Trend of the loss over the dictionary sizes of one family.

Over the SAEs of one family (``family=[...]`` and the SAE itself) whose L0 lies within 10% of this SAE's, on the same
documents:

    kl_per_doubling        least-squares slope of log KL on log2 of the dictionary's size, nats of the logarithm
    explained_variance_per_doubling, ce_recovered_per_doubling    slopes of shares on log2 of the size
    monotone_kl            Spearman correlation of size and -KL: 1 when every larger dictionary loses less
    monotone_kl_p          exact one-sided permutation p of it: the share of all orders that are as monotone
    monotone_explained_variance, monotone_ce_recovered    Spearman correlations of size and these shares, and their p

CE recovered is (CE_ablated - CE_sae) / (CE_ablated - CE_clean) with the site at its mean. The judged metric is the
trend, ``kl_per_doubling`` of at most -0.01, one per cent less KL per doubling: it has an interval by documents, while
ranks change with the noise of a small tier (the demo's p is .008 on 512 documents and .12 on 64). The p adds whether as
good an order comes about when sizes differ only by the luck of training. The trend is in KL and not in CE recovered,
because that saturates. Sizes of another L0 are listed and left out: more active features lose less by themselves. A
slope near 0 means that the additional features are dead, or copies of others: the large dictionaries are trained too
little, or the site has no more features to learn. The curve is that of Bricken et al., Towards Monosemanticity
(2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.arrays import slope_weights
from sae_bench.measure.measurement import Estimate, Exact, Influence, Measurement, Metric, Ratio, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.properties.width.family import QUANTITIES, FamilyMember, family_table, kl_curve, measure_family

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats

MATCHED = 0.1
"Largest relative difference of L0 between SAEs that are compared."
LEAST_SIZES = 4
"Of three sizes every sixth order is monotone by chance, and a line through them has one point to spare."
ORDERS = 99_999
"Most orders that are tested: all of them up to eight sizes, a seeded draw for more."
_MEANINGS = {
    "kl": "KL from the clean model",
    "explained_variance": "explained variance",
    "ce_recovered": "loss recovered from mean ablation",
}

METRICS = (
    Metric("sizes", "", "reported", "sizes of the family at matched L0, this one included", noise_free=True),
    *(
        Metric(
            f"monotone_{name}", "", "reported", f"Spearman of dictionary size and how good its {of} is", noise_free=True
        )
        for name, of in _MEANINGS.items()
    ),
    *(
        Metric(
            f"monotone_{name}_p",
            "",
            "reported",
            f"exact one-sided permutation p of monotone_{name}",
            noise_free=True,
        )
        for name in QUANTITIES
    ),
    Metric("kl_per_doubling", "", "lower", "slope of log KL per doubling of the dictionary", noise_free=True),
    *(
        Metric(f"{name}_per_doubling", "share", "reported", f"slope of {_MEANINGS[name]} per doubling", noise_free=True)
        for name in QUANTITIES[1:]
    ),
)


def measure(bench: Bench) -> Measurement:
    """Measure KL, explained variance and loss recovered of every SAE of the family, and their trends with size."""
    if not bench.related.family:
        undefined = Undefined("no SAEs of other sizes are registered: family=[...]")
        return Measurement({metric.name: undefined for metric in METRICS}, bench.clusters)
    sizes = measure_family(bench)
    own = sizes[0].l0.value
    matched = [size for size in sizes if own > 0 and abs(size.l0.value / own - 1) <= MATCHED]
    excluded = [size for size in sizes if size not in matched]
    notes = [f"L0 {own:.4g} of this SAE; {len(matched)} SAEs of the family lie within {MATCHED:.0%} of it"]
    notes += [f"left out: {size.name} of {size.features} features, L0 {size.l0.value:.4g}" for size in excluded]
    return Measurement(
        estimate_trends(matched),
        bench.clusters,
        {"family": family_table(sizes, matched), "kl_by_size": kl_curve(matched)},
        settings={
            "include_bos": bench.include_bos,
            "matched": MATCHED,
            "family": sorted(related.sha256 for related in bench.related.family),
        },
        notes=tuple(notes),
    )


def estimate_trends(matched: Sequence[FamilyMember]) -> dict[str, Estimate]:
    """Return every metric, from the SAEs at matched L0."""
    features = np.array([size.features for size in matched], dtype=np.float64)
    count = len(set(features))
    estimates: dict[str, Estimate] = {"sizes": Exact(float(count))}
    if count < LEAST_SIZES:
        undefined = Undefined(
            f"the family has fewer than {LEAST_SIZES} sizes at matched L0, which have no order to test",
            f"it has {count}",
        )
        return estimates | {metric.name: undefined for metric in METRICS if metric.name not in estimates}
    for name in QUANTITIES:
        values = np.array([size.of(name).value for size in matched])
        if not np.isfinite(values).all():
            undefined = Undefined("ablating the site to its mean changes no loss, so there is nothing to recover")
            estimates |= dict.fromkeys((f"monotone_{name}", f"monotone_{name}_p", f"{name}_per_doubling"), undefined)
            continue
        correlation, p = monotonicity(features, -values if name == "kl" else values)
        estimates |= {f"monotone_{name}": Exact(correlation), f"monotone_{name}_p": Exact(p)}
        estimates[f"{name}_per_doubling"] = slope_per_doubling(
            np.log2(features), [size.of(name) for size in matched], name == "kl"
        )
    return estimates


def monotonicity(features: Floats, quality: Floats) -> tuple[float, float]:
    """Return Spearman's correlation of sizes and quality (sizes,), 0 without variance, and its permutation p."""
    from scipy.stats import permutation_test, rankdata

    size, rank = (ranks - ranks.mean() for ranks in (rankdata(features), rankdata(quality)))
    scale = float(np.sqrt((size**2).sum() * (rank**2).sum()))
    if scale == 0:
        return 0.0, 1.0

    def correlation(order: Floats, axis: int) -> Floats:
        values: Floats = (order * size).sum(axis=axis) / scale
        return values

    test = permutation_test(
        (rank,),
        correlation,
        permutation_type="pairings",
        vectorized=True,
        alternative="greater",
        n_resamples=ORDERS,
        random_state=0,
    )
    return float(test.statistic), float(test.pvalue)


def slope_per_doubling(doublings: Floats, values: Sequence[Ratio], logarithm: bool) -> Estimate:
    """Return the least-squares slope of values, or of their logarithms, on ``doublings`` (sizes,)."""
    y = np.array([ratio.value for ratio in values])
    influence = np.stack([ratio.influence for ratio in values])  # (sizes, clusters)
    if logarithm:
        if not (y > 0).all():
            return Undefined("a reconstruction without error has no logarithm of its KL")
        y, influence = np.log(y), influence / y[:, None]
    weight = slope_weights(doublings)
    return Influence(float(weight @ y), weight @ influence)


PROPERTY = Property(
    name="width",
    question="Does a larger dictionary of the same recipe and sparsity lose less?",
    primary_metric="kl_per_doubling",
    metrics=METRICS,
    limits=("kl_per_doubling:max:-0.01",),
    measure=measure,
    marker="fidelity",
)
