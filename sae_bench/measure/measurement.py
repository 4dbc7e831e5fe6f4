"""Result of measuring a property: values, the evidence behind their uncertainty, and distributions for reports.

Every value comes with one of four kinds of evidence, or is a summary read from a file:

* `Ratio`: numerator and denominator per cluster; its value on any subset of clusters is exact.
* `Influence`: a value and one influence per cluster (fitted scales, correlations, quantiles), by leaving a cluster out.
* `Exact`: a property of weights alone; no interval.
* `Undefined`: no value by definition, with the reason.
* `Summary`: value and error read from a file without values per cluster; no property returns it.

A measurement states no opinion and knows no threshold. numpy only: judging runs without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from sae_bench.errors import MeasurementError
from sae_bench.measure.arrays import Floats

Better: TypeAlias = Literal["lower", "higher", "target", "reported"]
Kind: TypeAlias = Literal["histogram", "quantiles", "curve", "table"]
Chart: TypeAlias = Literal[
    "", "token_histogram", "token_funnel", "ranked_documents", "near_directions", "feature_slopes"
]
"""Charts that a series can ask for, and what they read of its columns. '' is the chart of the series' kind.

* ``token_histogram``: a histogram whose lowest bin also counts everything smaller.
* ``token_funnel``: a table of token types with ``token``, ``n`` (occurrences), ``gap`` and its error ``se``.
* ``ranked_documents``: a table whose first column that is not `Series.x` is drawn in its own order.
* ``near_directions``: quantiles of cosines named ``RANK`` (features) or ``FLOOR_RANK``.
* ``feature_slopes``: a table with ``feature``, ``slope_mean``, ``slope_sd``, ``anti_share`` and, if known, ``targets``.
"""


@dataclass(frozen=True)
class Metric:
    """Declaration of one number: its name, its unit and which way is good."""

    name: str
    unit: str
    "``nats``, ``ratio``, ``share``, ``cosine``, ``features`` ...; '' for a pure number."
    better: Better
    "``reported`` is never judged, unless a user sets a limit."
    meaning: str
    "One sentence, shown in reports and by ``--sae-list``."
    version: int = 1
    "Raised whenever the number's definition changes; reports of another version are not compared."
    target: float | None = None
    "Wanted value for ``better='target'``, if mathematics fixes it; None: the accepted value."
    noise_free: bool = False
    "True when neither a random draw nor a sample of noise enters: unchanged SAEs must give the same number."
    of_weights: bool = False
    "True when it follows from the SAE's weights alone: as long as they are unchanged it is held to `SAME_WEIGHTS`."
    family: str = ""
    "Title of the chart that shows this metric with those of other conditions, such as ``KL by condition``."
    condition: str = ""
    "Label of the metric in that chart."
    factor: str = ""
    "Declared factor whose share of variance this is; charts then have a group of bars per factor."


@dataclass(frozen=True)
class Ratio:
    """Ratio of sums over clusters, ``sum(numerator) / sum(denominator)``; for a mean the denominator holds counts."""

    numerator: Floats
    "(clusters,)"
    denominator: Floats
    "(clusters,)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "numerator", np.asarray(self.numerator, dtype=np.float64))
        object.__setattr__(self, "denominator", np.asarray(self.denominator, dtype=np.float64))
        if self.numerator.shape != self.denominator.shape or self.numerator.ndim != 1:
            raise MeasurementError(
                f"a ratio needs numerator and denominator of one shape (clusters,), "
                f"not {self.numerator.shape} and {self.denominator.shape}"
            )

    @property
    def value(self) -> float:
        """Return the ratio over all clusters; NaN where the denominator is 0."""
        total = math.fsum(self.denominator)
        return math.fsum(self.numerator) / total if total != 0 else math.nan

    @property
    def influence(self) -> Floats:
        """Return (clusters,) the first-order change of the value per unit of a cluster's weight; they sum to 0."""
        total = math.fsum(self.denominator)
        if total == 0:
            return np.full_like(self.numerator, np.nan)
        return (self.numerator - self.value * self.denominator) / total


@dataclass(frozen=True)
class Influence:
    """Value that is no ratio of sums, with each cluster's influence on it."""

    value: float
    influence: Floats
    "(clusters,), centred: first-order change of the value when a cluster's weight grows by one."
    second: Floats | None = None
    "Influences by a second clustering (features, where `influence` is by prompt); None when there is one only."
    overlap: float = 0.0
    "Sum of squared cell influences, subtracted when both clusterings are used (else it counts twice)."

    def __post_init__(self) -> None:
        object.__setattr__(self, "influence", np.asarray(self.influence, dtype=np.float64))
        if self.second is not None:
            object.__setattr__(self, "second", np.asarray(self.second, dtype=np.float64))


@dataclass(frozen=True)
class Exact:
    """Value that follows from weights or counts alone and has no sampling error."""

    value: float


@dataclass(frozen=True)
class Undefined:
    """Absence of a value by definition, with its reason; reports list it, no verdict comes of it."""

    reason: str
    detail: str = ""
    "Numbers of one SAE that explain the reason, so that SAEs with one reason can be listed together."
    value: float = math.nan

    @property
    def full_reason(self) -> str:
        """Return the reason with its detail."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Summary:
    """Value and standard error read from a file without values per cluster; it cannot be paired."""

    value: float
    se: float | None
    clusters: int


Estimate: TypeAlias = Ratio | Influence | Exact | Undefined | Summary


@dataclass(frozen=True)
class Series:
    """Distribution or table for reports: binned or summarised, never raw data per token."""

    kind: Kind
    columns: Mapping[str, Sequence[Any]]
    """By kind. histogram: ``edges`` (bins + 1) and one column of ``counts`` (bins) per distribution. quantiles: ``q``
    and one column per distribution. curve: ``x`` and one column per line. table: free columns of one length."""
    title: str = ""
    x: str = ""
    "Label of the horizontal axis, with its unit."
    log_x: bool = False
    accepted: bool = False
    "True when accepted files keep it."
    chart: Chart = ""
    "Chart that shows more than the kind's own: see `Chart`."
    marks: str = ""
    "Metric whose value and limits a histogram shows on its axis; '' for the metric of the series' own name."
    order: int = 50
    "Place among the charts of a property, smallest first."


@dataclass(frozen=True)
class Measurement:
    """Result of one property on one SAE."""

    estimates: Mapping[str, Estimate]
    "By metric name; the names are declared by the property."
    clusters: tuple[int, ...] = ()
    "Ids of the clusters that ratios and influences run over, in their order."
    series: Mapping[str, Series] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    "Settings that change the quantity; part of the context, so they must be JSON values."
    notes: tuple[str, ...] = ()
    "Sentences that a reader of the numbers needs, such as how many features were left out."
    weights: str = ""
    "Hash of the SAE's weights, where metrics follow from them alone."

    def __post_init__(self) -> None:
        for name, estimate in self.estimates.items():
            shape = (len(self.clusters),)
            rows = estimate.numerator if isinstance(estimate, Ratio) else getattr(estimate, "influence", None)
            if rows is not None and rows.shape != shape:
                raise MeasurementError(f"{name} has evidence of shape {rows.shape}, but there are {shape} clusters")


@dataclass(frozen=True)
class Accepted:
    """Value of one metric in an accepted report."""

    value: float
    estimate: Estimate | None
    "None where the file keeps no values per cluster: the metric had no accepted limit when it was accepted."
    clusters: tuple[int, ...]
    version: int
    anchor: float | None = None
    "The value with which drift by small steps is compared."
    noise: float | None = None
    "Change of the value between two measurements of one SAE (``1noise``)."
