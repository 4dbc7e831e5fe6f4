"""One cycle at the site, in the reconstruction, in a cluster of features and in the residual.

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
"Pairs of neighbouring principal components that are looked at."


@dataclass(frozen=True, eq=False)
class Plane:
    """Two neighbouring principal components of what a cluster writes."""

    first: int
    "From 1."
    variance: float
    "Share of the cluster's variance in the two."
    products: Floats
    "(C, C) K within the plane."


@dataclass(frozen=True, eq=False)
class MeasuredCycle:
    """A cycle as it was measured."""

    classes: tuple[str, ...]
    "The first word of each."
    tokens: int
    products: Mapping[str, circular_power.Products]
    "By arm; `cluster` only where there are features, and with it `rest`: x without what they write."
    features: tuple[int, ...]
    found_by: str
    steps: tuple[circular_power.EliminationStep, ...]
    "Backward elimination of the features."
    planes: tuple[Plane, ...]
    outline: Mapping[str, Floats]
    "(C, 2) class means at the site and in the reconstruction, along the site's first two principal components."
    random: tuple[circular_power.Products, ...]
    "Of what random sets of as many other features write, and of x without it, by turns."
    energy: tuple[Floats, Floats, Floats]
    "(S,) each: squared norms inside the span of the cluster's directions, altogether, and of the residual inside."
    dimensions: int
    "Of that span."
    width: int


def measure_cycle(bench: Bench, cycle: Cycle, at: CyclePositions) -> MeasuredCycle | str:
    """What was found, or why there is nothing: a class with too few documents of the tier."""
    given = label_tokens(bench, at, len(cycle.classes))
    thin = given.thin()
    if thin is not None:
        return (
            f"{cycle.name}: class {cycle.classes[thin][0]!r} is in fewer than two odd or two even documents; measure "
            f"more documents, or a corpus that holds it more often"
        )
    return _found(bench, cycle, encode_cycle(bench, cycle, at))


def _found(bench: Bench, cycle: Cycle, held: CycleActivations) -> MeasuredCycle:
    written = held.codes @ held.directions  # (N, d)
    conditions = {"site": held.x, "reconstruction": held.xhat, "residual": held.x - held.xhat}
    if held.features:
        conditions |= {"cluster": written, "rest": held.x - written}
    products = {condition: circular_power.Products.of(rows, held.labels) for condition, rows in conditions.items()}
    basis = _span(held.directions)  # (dimensions, d)
    centred = held.x - bench.site_data.mean.numpy()
    return MeasuredCycle(
        classes=tuple(words[0] for words in cycle.classes),
        tokens=len(held.x),
        products=products,
        features=held.features,
        found_by=held.found_by,
        steps=tuple(_steps(held)),
        planes=tuple(_planes(written, held.labels)) if held.features else (),
        outline=_outline({condition: conditions[condition] for condition in ("site", "reconstruction")}, held.labels),
        random=tuple(
            circular_power.Products.of(part, held.labels) for rows in held.others for part in (rows, held.x - rows)
        ),
        energy=(
            _energy(centred @ basis.T, held.labels),
            _energy(centred, held.labels),
            _energy((held.x - held.xhat) @ basis.T, held.labels),
        ),
        dimensions=len(basis),
        width=held.x.shape[1],
    )


def _steps(held: CycleActivations) -> list[circular_power.EliminationStep]:
    codes, site = (circular_power.class_means(rows, held.labels) for rows in (held.codes, held.x))
    return circular_power.eliminate_features(codes, held.directions, site)


def _outline(conditions: Mapping[str, Floats], given: circular_power.LabelledTokens) -> dict[str, Floats]:
    """Principal components know nothing of the order; in a plane that is fitted to it anything looks like a circle."""
    means = {condition: circular_power.class_means(rows, given).mean(0) for condition, rows in conditions.items()}
    centre = means["site"].mean(0)
    _, _, components = np.linalg.svd(means["site"] - centre, full_matrices=False)
    return {condition: (each - centre) @ components[:2].T for condition, each in means.items()}


def _span(directions: Floats) -> Floats:
    """(dimensions, d) orthonormal basis of the rows (m, d)."""
    if not len(directions):
        return directions
    _, size, rows = np.linalg.svd(directions, full_matrices=False)
    return np.asarray(rows[size > 1e-6 * size[0]])


def _energy(rows: Floats, given: circular_power.LabelledTokens) -> Floats:
    """(S,) squared norms of rows (N, ...) by cluster."""
    return np.asarray(np.bincount(given.cluster_of, np.square(rows).sum(1), given.clusters), dtype=np.float64)


def _planes(written: Floats, given: circular_power.LabelledTokens) -> list[Plane]:
    """Neighbouring principal components of what the cluster writes, where any of its features fires."""
    fires = np.any(written != 0, axis=1)
    if fires.sum() < 2:
        return []
    rows = written[fires] - written[fires].mean(0)
    _, size, components = np.linalg.svd(rows, full_matrices=False)
    share = np.square(size) / np.square(size).sum()
    means = circular_power.class_means(written, given)
    count = min(PLANES, int((size > 1e-6 * size[0]).sum()) - 1)
    found = []
    for first in range(count):
        inside = means @ components[first : first + 2].T  # (2, C, 2)
        found.append(Plane(first + 1, float(share[first : first + 2].sum()), inside[1] @ inside[0].T))
    return found
