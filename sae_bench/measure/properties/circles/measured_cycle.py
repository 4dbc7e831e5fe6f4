"""Measurement of one cycle at the site, in the reconstruction, in a cluster of features and in the residual.

Shapes: N tokens, S clusters of documents, C classes, m features of the cluster, d site width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.arrays import Floats
from sae_bench.measure.datasets.concept_file import Cycle
from sae_bench.measure.properties.circles import circular_power
from sae_bench.measure.properties.circles.cycle_activations import (
    CycleActivations,
    CyclePositions,
    encode_cycle,
    label_tokens,
)

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

CONDITIONS = ("site", "reconstruction", "cluster", "residual")
PLANES = 4
"Most pairs of neighbouring principal components in the report."


@dataclass(frozen=True, eq=False)
class Plane:
    """Two neighbouring principal components of a cluster's contribution."""

    first: int
    "From 1."
    variance: float
    "Share of the cluster's variance in the two."
    products: Floats
    "(C, C) K within the plane."


@dataclass(frozen=True, eq=False)
class MeasuredCycle:
    """Measurement of one cycle."""

    classes: tuple[str, ...]
    "The first word of each."
    tokens: int
    products: Mapping[str, circular_power.Products]
    "By condition; `cluster` only where there are features, and with it `rest`: x without their contribution."
    features: tuple[int, ...]
    selection: str
    steps: tuple[circular_power.EliminationStep, ...]
    "Backward elimination of the features."
    planes: tuple[Plane, ...]
    outline: Mapping[str, Floats]
    "(C, 2) class means at the site and in the reconstruction, along the site's first two principal components."
    random: tuple[circular_power.Products, ...]
    "Of the contributions of random sets of as many other features, and of x without them, by turns."
    energy: tuple[Floats, Floats, Floats]
    "(S,) each: squared norms inside the span of the cluster's directions, in total, and of the residual inside."
    dimensions: int
    "Of that span."
    width: int


def measure_cycle(bench: Bench, cycle: Cycle, positions: CyclePositions) -> MeasuredCycle | str:
    """Return the measurement, or the reason for none: a class in too few documents of the tier."""
    labels = label_tokens(bench, positions, len(cycle.classes))
    undersampled = labels.undersampled_class()
    if undersampled is not None:
        return (
            f"{cycle.name}: class {cycle.classes[undersampled][0]!r} is in fewer than two odd or two even documents; "
            f"measure more documents, or a corpus with more of its words"
        )
    return _measurement(bench, cycle, encode_cycle(bench, cycle, positions))


def _measurement(bench: Bench, cycle: Cycle, activations: CycleActivations) -> MeasuredCycle:
    contribution = activations.codes @ activations.directions  # (N, d)
    conditions = {
        "site": activations.x,
        "reconstruction": activations.xhat,
        "residual": activations.x - activations.xhat,
    }
    if activations.features:
        conditions |= {"cluster": contribution, "rest": activations.x - contribution}
    products = {
        condition: circular_power.Products.from_rows(rows, activations.labels) for condition, rows in conditions.items()
    }
    basis = _span(activations.directions)  # (dimensions, d)
    centred = activations.x - bench.site_data.mean.numpy()
    return MeasuredCycle(
        classes=tuple(words[0] for words in cycle.classes),
        tokens=len(activations.x),
        products=products,
        features=activations.features,
        selection=activations.selection,
        steps=tuple(_steps(activations)),
        planes=tuple(_planes(contribution, activations.labels)) if activations.features else (),
        outline=_outline(
            {condition: conditions[condition] for condition in ("site", "reconstruction")}, activations.labels
        ),
        random=tuple(
            circular_power.Products.from_rows(part, activations.labels)
            for rows in activations.controls
            for part in (rows, activations.x - rows)
        ),
        energy=(
            _energy(centred @ basis.T, activations.labels),
            _energy(centred, activations.labels),
            _energy((activations.x - activations.xhat) @ basis.T, activations.labels),
        ),
        dimensions=len(basis),
        width=activations.x.shape[1],
    )


def _steps(activations: CycleActivations) -> list[circular_power.EliminationStep]:
    codes, site = (circular_power.class_means(rows, activations.labels) for rows in (activations.codes, activations.x))
    return circular_power.eliminate_features(codes, activations.directions, site)


def _outline(conditions: Mapping[str, Floats], labels: circular_power.LabelledTokens) -> dict[str, Floats]:
    """Return (C, 2) class means along the first two principal components of the site's, by condition."""
    means = {condition: circular_power.class_means(rows, labels).mean(0) for condition, rows in conditions.items()}
    centre = means["site"].mean(0)
    _, _, components = np.linalg.svd(means["site"] - centre, full_matrices=False)
    return {condition: (each - centre) @ components[:2].T for condition, each in means.items()}


def _span(directions: Floats) -> Floats:
    """Return (dimensions, d) an orthonormal basis of the rows (m, d)."""
    if not len(directions):
        return directions
    _, size, rows = np.linalg.svd(directions, full_matrices=False)
    return np.asarray(rows[size > 1e-6 * size[0]])


def _energy(rows: Floats, labels: circular_power.LabelledTokens) -> Floats:
    """Return (S,) squared norms of rows (N, ...) by cluster."""
    return np.asarray(np.bincount(labels.cluster_of, np.square(rows).sum(1), labels.clusters), dtype=np.float64)


def _planes(contribution: Floats, labels: circular_power.LabelledTokens) -> list[Plane]:
    """Return neighbouring principal components of the cluster's contribution, over tokens where a feature fires."""
    fires = np.any(contribution != 0, axis=1)
    if fires.sum() < 2:
        return []
    rows = contribution[fires] - contribution[fires].mean(0)
    _, size, components = np.linalg.svd(rows, full_matrices=False)
    share = np.square(size) / np.square(size).sum()
    means = circular_power.class_means(contribution, labels)
    count = min(PLANES, int((size > 1e-6 * size[0]).sum()) - 1)
    planes = []
    for first in range(count):
        inside = means @ components[first : first + 2].T  # (2, C, 2)
        planes.append(Plane(first + 1, float(share[first : first + 2].sum()), inside[1] @ inside[0].T))
    return planes
