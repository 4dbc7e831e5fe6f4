"""What a property returns: values, what their uncertainty is made of, and distributions. No opinion, no threshold.

A value never travels alone. It comes with one of four kinds of evidence, or with what a file kept of it:

* `Ratio`: numerator and denominator per cluster; its value on any subset of clusters is exact.
* `Influence`: a value and one influence per cluster (fitted scales, correlations, quantiles), by leaving a cluster out.
* `Exact`: a property of weights alone; no interval.
* `Undefined`: no value by definition, and why.
* `Summary`: value and error of a file that did not keep the clusters; measured by no property.

numpy only: this module and everything that judges runs where there is no torch.
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


@dataclass(frozen=True)
class Metric:
    """The declaration of one number: what it is called, counted in, and which way is good."""

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
    "Where ``better='target'`` wants the value, if mathematics fixes it; None: where it was accepted."
    noise_free: bool = False
    "True when neither a random draw nor a sample of noise enters: unchanged SAEs must give the same number."
    of_weights: bool = False
    "True when it follows from the SAE's weights alone: as long as they are unchanged it is held to `SAME_WEIGHTS`."


@dataclass(frozen=True)
class Ratio:
    """A ratio of sums over clusters, ``sum(numerator) / sum(denominator)``; a mean has counts below the line."""

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
        """The ratio over all clusters; NaN where the denominator is 0."""
        total = math.fsum(self.denominator)
        return math.fsum(self.numerator) / total if total != 0 else math.nan

    @property
    def influence(self) -> Floats:
        """(clusters,) first-order change of the value per unit of each cluster's weight; sums to 0."""
        total = math.fsum(self.denominator)
        if total == 0:
            return np.full_like(self.numerator, np.nan)
        return (self.numerator - self.value * self.denominator) / total


@dataclass(frozen=True)
class Influence:
    """A value that is no ratio of sums, with each cluster's influence on it."""

    value: float
    influence: Floats
    "(clusters,), centred: what the value moves when a cluster's weight grows by one, to first order."
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
    """A property of the weights alone."""

    value: float


@dataclass(frozen=True)
class Undefined:
    """No value by definition; listed and explained, neither passed over in silence nor failed."""

    reason: str
    detail: str = ""
    "Numbers of one SAE that explain the reason, so that SAEs with one reason can be listed together."
    value: float = math.nan

    @property
    def full_reason(self) -> str:
        """The reason with its detail."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Summary:
    """A value read from a file that keeps nothing per cluster for it, such as an accepted one: it cannot be paired."""

    value: float
    se: float | None
    clusters: int


Estimate: TypeAlias = Ratio | Influence | Exact | Undefined | Summary


@dataclass(frozen=True)
class Series:
    """A distribution or table for reports: binned or summarised, never raw per-token data."""

    kind: Literal["histogram", "quantiles", "curve", "table"]
    columns: Mapping[str, Sequence[Any]]
    """By kind. histogram: ``edges`` (bins + 1) and one column of ``counts`` (bins) per distribution. quantiles: ``q``
    and one column per distribution. curve: ``x`` and one column per line. table: free columns of one length."""
    title: str = ""
    x: str = ""
    "Label of the horizontal axis, with its unit."
    log_x: bool = False
    accepted: bool = False
    "Whether accepted files keep it."


@dataclass(frozen=True)
class Measurement:
    """Everything one property found on one SAE."""

    estimates: Mapping[str, Estimate]
    "By metric name; the names are declared by the property."
    clusters: tuple[int, ...] = ()
    "Ids of the clusters that ratios and influences run over, in their order."
    series: Mapping[str, Series] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    "Settings that change the quantity; part of the context, so they must be JSON values."
    notes: tuple[str, ...] = ()
    "Sentences worth reading beside the numbers (what was left out, and how many)."
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
    """What an accepted report says about one metric."""

    value: float
    estimate: Estimate | None
    "None where the file keeps no values per cluster: the metric had no accepted limit when it was accepted."
    clusters: tuple[int, ...]
    version: int
    anchor: float | None = None
    "The value that drift by small steps is compared with."
    noise: float | None = None
    "What the measurement itself moves by when nothing changes (``1noise``)."
