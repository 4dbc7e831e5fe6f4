"""KL gap by token type, with the noise of the types' means taken into account.

For every token type seen at least 50 times: the mean KL gap g (SAE minus isotropic noise of the error's norm), its
standard error over documents, and its distance from the mean gap of all tokens.

    gap                    mean of g over all kept tokens
    types                  token types that are read
    between_types_share    1 - mean of squared errors / mean of (g - gap)², the share of the spread that is not noise
    between_types_sd       spread of the types' true gaps: sqrt(mean of (g - gap)² - mean of squared errors), 0 at least
    largest_gap            largest gap after shrinking each towards `gap` by its error (empirical Bayes)
    frequency_correlation  Spearman over types of frequency and mean gap

Rare tokens top every list of raw means, because their means are noise: the variance of a mean falls with 1/n (Gurnee
2024, in the discussion of his post). Hence the minimum, the shrinkage, and the list of types whose gap differs from the
mean after Benjamini and Hochberg. Nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_bench.measure.measurement import Estimate, Exact, Influence, Measurement, Metric, Ratio, Series, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.shared.multiple_testing import benjamini_hochberg
from sae_bench.measure.shared.token_type_gaps import MINIMUM_OCCURRENCES, frequency_correlation, token_gap, type_sums

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats

FALSE_DISCOVERIES = 0.05
LISTED = 50
FEWEST_DOCUMENTS = 5
"Fewest documents with a type: a standard error over fewer means nothing."

METRICS = (
    Metric("gap", "nats", "reported", "mean KL of a token minus that of isotropic noise"),
    Metric("types", "types", "reported", f"token types that occur {MINIMUM_OCCURRENCES} times or more"),
    Metric("between_types_share", "share", "reported", "share of the spread of the types' gaps that is not noise"),
    Metric("between_types_sd", "nats", "reported", "spread of the types' gaps without sampling error"),
    Metric("largest_gap", "nats", "reported", "largest gap of a type, shrunk towards the mean by its error"),
    Metric("frequency_correlation", "", "reported", "Spearman over types of frequency and mean gap"),
)


@dataclass(frozen=True)
class TokenTypes:
    """Statistics of token types; all (types,)."""

    token: NDArray[np.int64]
    count: Floats
    gap: Floats
    error: Floats
    "Standard error of the difference between its gap and the mean."
    carriers: Floats
    "Effective number of clusters behind that error: (sum of squared influences)² over the sum of their fourth powers."
    mean: float

    @property
    def spread(self) -> float:
        """Return the mean squared distance of the gaps from the mean, noise included."""
        return float(np.mean((self.gap - self.mean) ** 2))

    @property
    def between(self) -> float:
        """Return the variance of the true gaps, at least 0."""
        return max(self.spread - float(np.mean(self.error**2)), 0.0)

    @property
    def shrunk(self) -> Floats:
        """Return the gaps, each moved towards the mean by the share of its distance that is noise."""
        weight = self.between / np.maximum(self.between + self.error**2, np.finfo(float).tiny)
        shrunk: Floats = self.mean + weight * (self.gap - self.mean)
        return shrunk

    def adjusted_p(self) -> Floats:
        """Return the Benjamini-Hochberg adjusted p of the difference from the mean, two-sided.

        By Student's t with the effective number of clusters less one as degrees of freedom. KL is skewed: with all
        clusters, the far tail from which types are listed has more than twice the probability that it should have.
        """
        from scipy.stats import t

        statistic = np.abs(self.gap - self.mean) / np.maximum(self.error, 1e-300)
        return benjamini_hochberg(2 * t.sf(statistic, np.maximum(self.carriers - 1, 1)))


def measure(bench: Bench) -> Measurement:
    """Measure the KL gap by token type."""
    gap = token_gap(bench)
    total, count = bench.per_cluster(gap), bench.per_cluster(bench.keep)
    sums, counts, ids = type_sums(bench, gap)
    frequent = (counts > 0).sum(0) >= FEWEST_DOCUMENTS
    estimates: dict[str, Estimate] = {
        "gap": Ratio(total, count),
        "types": Exact(float(frequent.sum())),
        "frequency_correlation": frequency_correlation(bench, gap),
    }
    if frequent.sum() < 2:
        undefined = Undefined(
            f"fewer than two token types occur {MINIMUM_OCCURRENCES} times in {FEWEST_DOCUMENTS} documents"
        )
        spread = dict.fromkeys(("between_types_share", "between_types_sd", "largest_gap"), undefined)
        return Measurement({**estimates, **spread}, bench.clusters)
    sums, counts, ids = sums[:, frequent], counts[:, frequent], ids[frequent]
    types = compare_types(total, count, sums, counts, ids)
    estimates |= _with_errors(total, count, sums, counts)
    adjusted_p = types.adjusted_p()
    differ = int((adjusted_p < FALSE_DISCOVERIES).sum())
    note = f"the gap of {differ} of {len(ids)} token types differs from the mean (false discoveries at 5%)"
    return Measurement(estimates, bench.clusters, {"token_types": _table(bench, types, adjusted_p)}, notes=(note,))


def compare_types(total: Floats, count: Floats, sums: Floats, counts: Floats, token: NDArray[np.int64]) -> TokenTypes:
    """Compare token types with the mean of all tokens.

    Args:
        total: (clusters,) sum of the gap.
        count: (clusters,) tokens.
        sums: (clusters, types) sum of the gap over a type's tokens.
        counts: (clusters, types) those tokens.
        token: (types,) ids.
    """
    clusters, n = len(total), counts.sum(0)
    mean, gap = float(total.sum() / count.sum()), sums.sum(0) / n
    # What each cluster adds to the difference of the two means.
    influence = (sums - gap * counts) / n - ((total - mean * count) / count.sum())[:, None]
    square = (influence**2).sum(0)
    carriers = square**2 / np.maximum((influence**4).sum(0), np.finfo(float).tiny)
    return TokenTypes(token, n, gap, np.sqrt(clusters / (clusters - 1) * square), carriers, mean)


def _with_errors(total: Floats, count: Floats, sums: Floats, counts: Floats) -> dict[str, Estimate]:
    """Return estimates that are fitted over all types, with influences by leaving one cluster out."""
    from sae_bench.measure.uncertainty import leave_one_out

    def fit(clusters: NDArray[np.bool_]) -> tuple[float, float, float]:
        occurs = counts[clusters].sum(0) > 0
        types = compare_types(
            total[clusters],
            count[clusters],
            sums[clusters][:, occurs],
            counts[clusters][:, occurs],
            np.flatnonzero(occurs),
        )
        share = 1 - float(np.mean(types.error**2)) / types.spread if types.spread > 0 else 0.0
        return share, float(np.sqrt(types.between)), float(types.shrunk.max())

    all_clusters = np.arange(len(total))
    full, without = fit(all_clusters >= 0), [fit(all_clusters != cluster) for cluster in all_clusters]
    names = ("between_types_share", "between_types_sd", "largest_gap")
    return {
        name: Influence(value, leave_one_out([each[row] for each in without], value))
        for row, (name, value) in enumerate(zip(names, full, strict=True))
    }


def _table(bench: Bench, types: TokenTypes, adjusted_p: Floats) -> Series:
    """Return the types that differ most from the mean, by their distance in standard errors."""
    distance = (types.gap - types.mean) / np.maximum(types.error, 1e-300)
    first = np.argsort(-np.abs(distance), kind="stable")[:LISTED]
    return Series(
        "table",
        {
            "token": [bench.token_text(int(types.token[row])) for row in first],
            "occurrences": types.count[first].tolist(),
            "gap": types.gap[first].tolist(),
            "shrunk": types.shrunk[first].tolist(),
            "se": types.error[first].tolist(),
            "q": adjusted_p[first].tolist(),
        },
        "Token types whose KL gap differs most from the mean",
        "nats",
    )


PROPERTY = Property(
    name="tokens",
    question="On which tokens does the model lose more than noise would cost, once chance is taken out?",
    primary_metric="between_types_share",
    metrics=METRICS,
    limits=(),
    measure=measure,
    marker="fidelity",
)
