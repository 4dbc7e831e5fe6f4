"""Choice of the features that represent a cycle, without regard to the order of its classes.

Features are chosen over the whole corpus, so that every tier has the same ones and the permutation test stays exact.

Shapes: C classes, n features, d site width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_bench.errors import MeasurementError
from sae_bench.measure.datasets.concept_file import Cycle
from sae_bench.measure.shared.alive_features import dictionary_neighbours

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.bench import Bench

SIMILAR_COSINE = 0.5
"Features are joined to each of their two nearest where the cosine of their directions is above this."
LARGEST_CLUSTER = 32
"Most features of a cluster; larger ones join directions that have nothing in common."
SUFFICIENT_POWER = 0.5
"Share of the reconstruction's class power that a cluster of similar directions must write to be the cycle's."
PER_CLASS = 2
"Features for each class where no cluster has sufficient power."


def choose_cycle_features(
    bench: Bench, cycle: Cycle, means: Tensor, W_dec: Tensor | None
) -> tuple[tuple[int, ...], str]:
    """Return the features that represent the cycle, strongest first, and the rule that chose them.

    The rules in turn: ``file`` (the file names them), ``decoder similarity`` (a group of similar directions has
    sufficient power), ``class differences`` (the features in which the classes differ most).
    """
    centred = means - means.mean(1, keepdim=True)
    if W_dec is None:
        return (), "no decoder"
    # Class power of each feature, in units of the activation; the halves share no noise.
    class_power = (centred[0] * centred[1]).sum(0) * W_dec.square().sum(1)  # (n,)
    named = cycle.features.get(bench.id)
    if named is not None:
        unknown = [index for index in named if index >= len(class_power)]
        if unknown:
            raise MeasurementError(
                f"cycle {cycle.name!r} names feature {unknown[0]} of {bench.id!r}, which has {len(class_power)}; "
                f"count from 0"
            )
        return tuple(sorted(named, key=lambda index: -float(class_power[index]))), "file"
    cluster, power = _strongest_group(
        bench.shared("similar directions", lambda: _similar_groups(bench)), centred, W_dec
    )
    written = centred @ W_dec
    if cluster and power >= SUFFICIENT_POWER * float((written[0] * written[1]).sum()):
        return tuple(sorted(cluster, key=lambda index: -float(class_power[index]))), "decoder similarity"
    strongest = class_power.argsort(descending=True)[: PER_CLASS * centred.shape[1]]
    return tuple(int(index) for index in strongest if class_power[index] > 0), "class differences"


def _similar_groups(bench: Bench) -> list[list[int]]:
    """Return groups of 2 to `LARGEST_CLUSTER` features: components of the graph of nearest neighbours.

    Source: Engels et al. (arXiv 2405.14860).
    """
    import torch
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    alive = dictionary_neighbours(bench).alive
    features = alive.features.cpu()
    number = torch.full((int(bench.sae.d_sae),), -1)
    number[features] = torch.arange(alive.n)
    rows, columns = (alive.cosine[:, :2].cpu() > SIMILAR_COSINE).nonzero(as_tuple=True)
    others = number[alive.index[:, :2].cpu()[rows, columns].long()]
    edges = coo_matrix((np.ones(len(rows)), (rows.numpy(), others.numpy())), shape=(alive.n, alive.n))
    _, component = connected_components(edges, directed=False)
    order = np.argsort(component, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return [features[torch.from_numpy(group)].tolist() for group in groups if 2 <= len(group) <= LARGEST_CLUSTER]


def _strongest_group(groups: list[list[int]], centred: Tensor, W_dec: Tensor) -> tuple[list[int], float]:
    """Return the group whose reconstruction differs most between the classes, and its class power."""
    strongest, largest = list[int](), 0.0
    for group in groups:
        written = centred[:, :, group] @ W_dec[group]  # (2, C, d)
        power = float((written[0] * written[1]).sum())
        if power > largest:
            strongest, largest = group, power
    return strongest, largest
