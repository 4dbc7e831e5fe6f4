"""Circularity of the means of ordered classes: unbiased power at frequency 1 and its permutation test. numpy only.

The class means of odd and of even documents are multiplied with each other, so that noise, which the two halves do not
share, adds nothing on average. With K[k, l] the product of class k's mean in odd and class l's in even documents,

    power at frequency f    P_f = sum_kl K[k, l] cos(2 pi f (k - l) / C)
    circular share          P_1 / (P_1 + P_2 + P_3); a third for classes in any order, 1 for a circle, .66 for seven
                            classes on a straight line
    roundness               smaller over larger axis of the frequency-1 part, squared; 1 for a circle, 0 for a line

Rotating or reflecting the order changes nothing, so C classes have (C - 1)! / 2 orders. The test uses all of them up to
`EXACT` classes (360 for seven) and draws them at random beyond. Where the order means nothing, each order is as likely
as any other to have the largest share, whatever the noise and the choice of vectors, as long as the choice did not
depend on the order.

Shapes: N tokens, S clusters of documents, C classes, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.measurement import Estimate, Exact, Influence, Ratio, Undefined
from sae_bench.measure.uncertainty import jackknife

FREQUENCIES = 3
"The share is that of frequency 1 among these."
EXACT = 8
"Most classes for which all orders are tested: 2,520 of them."
DRAWN = 4999
"Orders drawn for more classes."


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """Class, cluster and half of every token."""

    of_class: Ints
    "(N,)"
    cluster_of: Ints
    "(N,) index into all clusters that are measured."
    classes: int
    clusters: int

    @property
    def odd(self) -> Ints:
        """Return (N,) 1 in every second cluster."""
        return self.cluster_of % 2

    def counts(self) -> Floats:
        """Return (S, C) tokens."""
        flat = np.bincount(self.cluster_of * self.classes + self.of_class, minlength=self.clusters * self.classes)
        return np.asarray(flat.reshape(self.clusters, self.classes), dtype=np.float64)

    def undersampled_class(self) -> int | None:
        """Return a class in fewer than two clusters of a half; None without one.

        Leaving a cluster out might empty such a class.
        """
        present = self.counts() > 0
        fewest = np.minimum(present[::2].sum(0), present[1::2].sum(0))
        return int(fewest.argmin()) if fewest.min() < 2 else None


@dataclass(frozen=True, eq=False)
class Products:
    """Products of the halves' class means, with the sums that leaving a cluster out needs."""

    whole: Floats
    "(C, C): K."
    parts: Floats
    "(S, C, C) sums over a cluster's tokens of a class, times the other half's class means."
    counts: Floats
    "(S, C)"

    @classmethod
    def from_rows(cls, rows: Floats, labels: LabelledTokens) -> Products:
        """Return the products of vectors (N, d)."""
        means = class_means(rows, labels)  # (2, C, d)
        counts = labels.counts()
        parts = np.zeros((labels.clusters, labels.classes, labels.classes))
        for half in (0, 1):
            inside = np.flatnonzero(labels.odd == half)
            products = rows[inside] @ means[1 - half].T  # (n, C)
            np.add.at(parts, (labels.cluster_of[inside], labels.of_class[inside]), products)
        return cls(means[1] @ means[0].T, parts, counts)

    def without(self, cluster: int) -> Floats:
        """Return (C, C) K without one cluster."""
        half = self.counts[cluster % 2 :: 2].sum(0)  # (C,)
        left = half - self.counts[cluster]
        if cluster % 2:
            return np.asarray((half[:, None] * self.whole - self.parts[cluster]) / left[:, None])
        return np.asarray((half[None, :] * self.whole - self.parts[cluster].T) / left[None, :])


def class_means(rows: Floats, labels: LabelledTokens) -> Floats:
    """Return (2, C, d) class means of vectors (N, d), in even and in odd clusters."""
    sums = np.zeros((2, labels.classes, rows.shape[1]))
    np.add.at(sums, (labels.odd, labels.of_class), rows)
    count = np.bincount(labels.odd * labels.classes + labels.of_class, minlength=2 * labels.classes)
    return sums / count.reshape(2, labels.classes, 1)


@cache
def _waves(classes: int) -> Floats:
    """Return (frequencies from 1, C, C) cos(2 pi f (k - l) / C); the last frequency is half the number of classes."""
    step = np.arange(classes)[:, None] - np.arange(classes)[None, :]
    return np.stack([np.cos(2 * np.pi * f * step / classes) for f in range(1, classes // 2 + 1)])


def powers(products: Floats) -> Floats:
    """Return (frequencies from 1,) powers of K (C, C)."""
    return np.asarray(np.einsum("kl,fkl->f", products, _waves(len(products))))


def class_power(products: Floats) -> float:
    """Return the spread of the class means over all frequencies; it does not depend on their order."""
    return float(np.trace(products) - products.sum() / len(products))


def circular_share(products: Floats) -> float:
    """Return P_1 over the sum of the first powers; NaN where they have no power together."""
    first = powers(products)[:FREQUENCIES]
    return float(first[0] / first.sum()) if first.sum() > 0 else np.nan


def roundness(products: Floats) -> float:
    """Return the roundness of K (C, C); NaN where frequency 1 has no power."""
    angle = 2 * np.pi * np.arange(len(products)) / len(products)
    axes = np.stack([np.cos(angle), np.sin(angle)])
    form = axes @ products @ axes.T
    small, large = np.linalg.eigvalsh((form + form.T) / 2)
    return float(max(small, 0.0) / large) if large > 0 else np.nan


@cache
def orders(classes: int, seed: int) -> Ints:
    """Return (orders, C) all orders up to rotation and reflection, or a sample; the first is the given one.

    All of them up to `EXACT` classes.
    """
    if classes <= EXACT:
        rest = permutations(range(1, classes))
        return np.array([(0, *order) for order in rest if order[0] < order[-1]])
    generator = np.random.default_rng(seed)
    drawn = np.tile(np.arange(classes), (DRAWN + 1, 1))
    return np.concatenate([drawn[:1], generator.permuted(drawn[1:], axis=1)])


def permutation_p(products: Floats, seed: int = 0) -> float:
    """Return the share of orders with at least the circular share of the given one, itself among them."""
    candidates = orders(len(products), seed)
    waves = _waves(len(products))[:FREQUENCIES]
    flat = products[candidates[:, :, None], candidates[:, None, :]].reshape(len(candidates), -1)
    first = flat @ waves.reshape(len(waves), -1).T  # (orders, frequencies)
    total = first.sum(1)
    # An order without power has no share and is taken for the least circular: any fixed rule keeps the test exact.
    share = np.where(total > 0, first[:, 0] / np.where(total > 0, total, 1.0), -np.inf)
    if not np.isfinite(share[0]):
        return 1.0
    return float((share >= share[0] - 1e-9 * abs(share[0])).mean())


def jackknife_products(parts: Sequence[Products], value: Callable[..., float], reason: str) -> Estimate:
    """Return a value of several K with influences from leaving a cluster out; Undefined for ``reason``.

    A cluster without a token of the classes changes nothing.
    """
    full = value(*(products.whole for products in parts))
    without = [
        value(*(products.without(cluster) for products in parts)) if parts[0].counts[cluster].any() else full
        for cluster in range(len(parts[0].counts))
    ]
    return jackknife(full, without, reason)


def share_of_site_power(products: Floats, site: Floats) -> float:
    """Return the circular power of one K over that of the site, in any plane; NaN where the site has none."""
    power = powers(site)[0]
    return float(powers(products)[0] / power) if power > 0 else np.nan


def retained_circle(part: Floats, rest: Floats, site: Floats) -> float:
    """Return the share of the site's circle in a part of x: 1 for all of it, 0 for a circle in another plane.

    ``part`` and ``rest`` are K of the part and of x without it: their products with each other are half of what the
    site's K without both.
    """
    return share_of_site_power((site + part - rest) / 2, site)


def retained_class_spread(part: Floats, rest: Floats, site: Floats) -> float:
    """Return the share of the class means' whole spread in a part of x, in any order of the classes."""
    power = class_power(site)
    return class_power((site + part - rest) / 2) / power if power > 0 else np.nan


def mean_retained_circle(*each: Floats) -> float:
    """Return the mean of `retained_circle` over parts of x: K of each part and of x without it, site last."""
    return float(
        np.mean([retained_circle(part, rest, each[-1]) for part, rest in zip(each[:-1:2], each[1::2], strict=True)])
    )


def mean_over_cycles(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over cycles of the estimates with a value; the first one's reason where none has one."""
    defined = [each for each in estimates if not isinstance(each, Undefined)]
    if not defined:
        return estimates[0]
    value = float(np.mean([each.value for each in defined]))
    influence = [each.influence for each in defined if isinstance(each, Ratio | Influence)]
    return Influence(value, np.mean(influence, axis=0)) if influence else Exact(value)


@dataclass(frozen=True)
class EliminationStep:
    """Step of backward elimination: the features that remain when one is removed."""

    removed: int
    "Index of the feature."
    retained: float
    "Share of the site's circle in the remaining features."
    products: Floats
    "(C, C) K of their contributions."


def eliminate_features(means: Floats, directions: Floats, site: Floats) -> list[EliminationStep]:
    """Remove features from a cluster one by one, first the one with the least of the site's circle.

    The features' shares of the circle add up, so each one's own share decides when it is removed.

    Args:
        means: (2, C, m) class means of the codes, in even and in odd documents.
        directions: (m, d) what each writes.
        site: (2, C, d) class means at the site.
    """
    gram, along = directions @ directions.T, directions @ np.swapaxes(site, 1, 2)  # (m, m), (2, m, C)
    # (m, C, C): the products of what each feature writes with the site, the halves crossed both ways.
    crossed = (np.einsum("km,ml->mkl", means[1], along[0]) + np.einsum("km,ml->mkl", means[0], along[1])) / 2
    whole = site[1] @ site[0].T
    parts = [share_of_site_power(each, whole) for each in crossed]
    remaining, steps = sorted(range(len(parts)), key=lambda index: parts[index]), []
    while remaining:
        removed, *remaining = remaining
        products = means[1][:, remaining] @ gram[np.ix_(remaining, remaining)] @ means[0][:, remaining].T
        steps.append(EliminationStep(removed, float(sum(parts[index] for index in remaining)), products))
    return steps
