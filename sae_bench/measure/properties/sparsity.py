"""Number, strength and frequency of active features, and the dense ones among them.

    l0        mean number of features that fire on a token (codes other than 0)
    l1        mean sum of |codes|, decoder norms folded in
    density   share of tokens on which a feature fires
    dense     density above `DENSE`; dense features whose firing correlates above `TOGETHER` form a group

Alive and dead speak of the whole pinned corpus and say how many tokens that is: "dead" is a statement about a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_bench.measure.measurement import Estimate, Exact, Influence, Measurement, Metric, Ratio, Series, Undefined
from sae_bench.measure.properties import NO_MODEL, Property
from sae_bench.measure.uncertainty import ratio_or_undefined

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats

DENSE = 0.1
"Density above which a feature counts as dense."
UNSEEN = 0.01
"Least share of all features, as estimated, that are dead for lack of tokens alone, for a note to say so."
TOGETHER = 0.5
"Correlation of firing above which two dense features belong to one group."
LEVELS = {"l0_p5": 0.05, "l0_p50": 0.5, "l0_p95": 0.95}

METRICS = (
    Metric("l0", "features", "target", "features that fire on a token", noise_free=True),
    Metric("l0_sd", "features", "reported", "standard deviation of L0 over tokens", noise_free=True),
    *(Metric(name, "features", "reported", f"{q:.0%} quantile of L0", noise_free=True) for name, q in LEVELS.items()),
    Metric("l1", "", "reported", "sum of |codes| with decoder norms folded in", noise_free=True),
    Metric("alive", "features", "reported", "features that fire on a token of the corpus", noise_free=True),
    Metric("dead", "features", "reported", "features that fire on no token of the corpus", noise_free=True),
    Metric("alive_share", "share", "reported", "alive features as a share of all", noise_free=True),
    Metric("alive_tokens", "tokens", "reported", "tokens on which alive and dead are counted", noise_free=True),
    Metric("dense_share", "share", "reported", "share of features with a density above 0.1", noise_free=True),
    Metric("dense_groups", "groups", "reported", "groups of dense features that fire together", noise_free=True),
    Metric("dense_activity_share", "share", "reported", "share of the activity in dense features", noise_free=True),
    *(
        Metric(name, "nats", "reported", meaning, noise_free=True, family="KL by decoded features", condition=condition)
        for name, condition, meaning in (
            ("kl_dense_only", "dense only", "KL when only dense features are decoded"),
            ("kl_without_dense", "without dense", "KL when all but the dense features are decoded"),
        )
    ),
)


def measure(bench: Bench) -> Measurement:
    """Measure counts, strengths and densities of the codes, and KL with dense features only and without them."""
    firing = bench.firing
    tokens = float(firing.tokens)
    density = firing.density.numpy()  # (n,)
    dense = density > DENSE
    tables = bench.collect(lambda batch: _tokens(bench, batch, dense), "sparsity")
    sums = {name: bench.per_cluster(table) for name, table in tables.items()}
    count = bench.per_cluster(bench.keep)
    alive = float((density > 0).sum())
    estimates: dict[str, Estimate] = {
        "l0": Ratio(sums["l0"], count),
        "l1": Ratio(sums["l1"], count),
        **_spread(bench, tables["l0"]),
        "alive": Exact(alive),
        "dead": Exact(len(density) - alive),
        "alive_share": Exact(alive / len(density)),
        "alive_tokens": Exact(tokens),
        "dense_share": Exact(float(dense.mean())),
        "dense_groups": Exact(float(_groups(bench, dense))),
        "dense_activity_share": ratio_or_undefined(
            sums["dense"], sums["l1"], "no feature fires on the documents measured"
        ),
    }
    for name in ("kl_dense_only", "kl_without_dense"):
        reason = NO_MODEL if dense.any() else "no feature is dense"
        estimates[name] = Ratio(sums[name], count) if name in sums else Undefined(reason)
    return Measurement(
        estimates,
        bench.clusters,
        _series(bench, tables["l0"], density),
        notes=_notes(firing.count.numpy(), firing.tokens),
    )


def _notes(count: NDArray[np.int64], tokens: int) -> tuple[str, ...]:
    """Return a note when features may count as dead for lack of tokens; ``count`` (n,) is on how many each fires.

    Formula: Chao 1984, bias-corrected: f1 (f1 - 1) / (2 (f2 + 1)) are unseen when f1 were seen once and f2 twice.
    """
    dead, once, twice = (int((count == times).sum()) for times in (0, 1, 2))
    unseen = min(dead, round(once * (once - 1) / (2 * (twice + 1))))
    if unseen < max(1, UNSEEN * len(count)):
        return ()
    return (
        f"dead and alive rest on {tokens} tokens: {once} features fire on one of them only, so about {unseen} of the "
        f"{dead} that never fire would do so on more tokens",
    )


def _tokens(bench: Bench, batch: Batch, dense: NDArray[np.bool_]) -> dict[str, Tensor]:
    """Return (docs, pos) tables of one batch; the two KL conditions run only when there are dense features."""
    norms = bench.decoder_norms  # (n,)
    mask = norms.new_tensor(dense)
    tables = {
        "l0": bench.l0_per_token(batch),
        "l1": bench.weighted_l1(batch, norms),
        "dense": bench.weighted_l1(batch, norms * mask),
    }
    if dense.any() and bench.has_model:
        codes = bench.codes(batch)  # (docs, pos, n)
        for name, selected in {"kl_dense_only": mask, "kl_without_dense": 1 - mask}.items():
            tables[name] = bench.intervene(batch, bench.decode(batch, codes * selected)).kl
    return tables


def _spread(bench: Bench, l0: Tensor) -> dict[str, Estimate]:
    """Return standard deviation and quantiles of L0 over tokens, with influences by leaving one cluster out."""
    from sae_bench.measure.uncertainty import leave_one_out

    keep = bench.keep.cpu().numpy()
    values = l0.cpu().numpy()[keep].astype(np.int64)
    cluster = np.broadcast_to(np.asarray(bench.cluster_of)[:, None], keep.shape)[keep]
    levels = int(values.max(initial=0)) + 1
    table = np.bincount(cluster * levels + values, minlength=len(bench.clusters) * levels)
    counts = table.reshape(len(bench.clusters), levels).astype(np.float64)  # (clusters, levels)
    total = counts.sum(0)

    def spread(name: str, histogram: Floats) -> float:
        """Return a statistic of L0 from its histogram, which is exact because L0 is a whole number."""
        if name in LEVELS:
            cumulative = np.cumsum(histogram)
            return float(np.searchsorted(cumulative, LEVELS[name] * cumulative[-1]))
        level = np.arange(levels)
        mean = histogram @ level / histogram.sum()
        return float(np.sqrt(histogram @ (level - mean) ** 2 / histogram.sum()))

    estimates: dict[str, Estimate] = {}
    for name in ("l0_sd", *LEVELS):
        value = spread(name, total)
        without = [spread(name, total - row) if (total - row).sum() else value for row in counts]
        estimates[name] = Influence(value, leave_one_out(np.array(without), value))
    return estimates


def _groups(bench: Bench, dense: NDArray[np.bool_]) -> int:
    """Return the number of groups of dense features joined by correlations of firing above `TOGETHER`."""
    from scipy.sparse.csgraph import connected_components

    if dense.sum() < 2:
        return 0
    columns = np.flatnonzero(dense)
    tokens, joint, single = 0, np.zeros((len(columns), len(columns))), np.zeros(len(columns))
    for batch in bench.batches():
        codes = bench.codes(batch)[batch.keep]  # (tokens, n)
        firing = (codes[:, columns] != 0).double().cpu().numpy()  # (tokens, dense)
        tokens, joint, single = tokens + len(firing), joint + firing.T @ firing, single + firing.sum(0)
    mean = single / tokens
    covariance = joint / tokens - np.outer(mean, mean)
    sd = np.sqrt(np.diag(covariance)).clip(1e-12)
    _, label = connected_components(covariance / np.outer(sd, sd) > TOGETHER, directed=False)
    return int((np.bincount(label) >= 2).sum())


def _series(bench: Bench, l0: Tensor, density: Floats) -> dict[str, Series]:
    values = l0.cpu().numpy()[bench.keep.cpu().numpy()]
    highest = int(values.max(initial=1))
    edges = np.linspace(-0.5, highest + 0.5, min(64, highest + 2))
    densities = np.geomspace(1e-6, 1, 49)
    tokens, _ = np.histogram(values, edges)
    features, _ = np.histogram(density[density > 0].clip(densities[0]), densities)
    return {
        "l0": Series("histogram", {"edges": edges.tolist(), "tokens": tokens.tolist()}, "L0 of a token", "features"),
        "density": Series(
            "histogram",
            {"edges": densities.tolist(), "features": features.tolist()},
            "Share of tokens on which a feature fires",
            "density",
            log_x=True,
        ),
    }


PROPERTY = Property(
    name="sparsity",
    question="How many features fire, how often, and are some of them always on?",
    primary_metric="l0",
    metrics=METRICS,
    limits=("l0:5%",),
    measure=measure,
    marker="fidelity",
    needs_model=False,
)
