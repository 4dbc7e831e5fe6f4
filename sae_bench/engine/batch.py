"""Batches of documents, results of interventions, and firing statistics, as a bench hands them to properties.

Shapes: b documents of a batch, p positions (the longest of them), d site width, n SAE features, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_bench.engine.settings import TIERS
from sae_bench.errors import MeasurementError
from sae_bench.registry.site import Site

WINDOW = TIERS["smoke"].documents or 64
"""Documents within which those of similar length share a batch. As many as a smoke run has, so that their batches, and
their numbers, are the same in every tier."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some documents, cut to the longest of them."""

    documents: tuple[int, ...]
    tokens: Tensor
    "int64 (b, p)"
    lengths: tuple[int, ...]
    x: Tensor
    "(b, p, d) float32"
    source: Tensor
    "(b, p, d_in) float32, the input of the SAE; `x` itself unless it is a transcoder"
    block_input: Tensor
    "(b, p, d_model) float32"
    keep: Tensor
    "bool (b, p), the kept positions, which are intervened on and averaged over"
    keep_ce: Tensor
    "bool (b, p), kept positions with a next token in the document"


@dataclass(frozen=True, eq=False)
class RelatedSAE:
    """Another SAE of the same model that a property compares with the measured one."""

    name: str
    "Id, or the last part of the path."
    sae: Any
    site: Site
    "Site that it reads and writes."
    sha256: str
    "Hash of the weights."


@dataclass(frozen=True, eq=False)
class RelatedInputs:
    """Other SAEs and labelled files that a registration names; each is a field of `SAESpec`."""

    partner: Any = None
    "A second SAE of the same site, of another seed."
    next_layers: tuple[RelatedSAE, ...] = ()
    "SAEs of later layers, the nearest first."
    family: tuple[RelatedSAE, ...] = ()
    "SAEs of the same site with dictionaries of other sizes, without this one."
    contrast: str | None = None
    "Path of a labelled dataset for contrast steering."
    concepts: str | None = None
    "Path of a file of concepts and cycles."
    circuit: str | None = None
    "Path of a circuit's prompts."


@dataclass(frozen=True, eq=False)
class InterventionResult:
    """Change of the next-token distribution under an intervention; 0 outside the kept positions."""

    kl: Tensor
    "(b, p) float32 nats, clean distribution first; at `Batch.keep`."
    ce: Tensor
    "(b, p) float32 nats, minus the log-probability of the next token; at `Batch.keep_ce`."
    logprob_distance: Tensor | None = None
    "(b, p) float32, Euclidean distance of the two log-probability vectors, when asked for."
    total_variation: Tensor | None = None
    "(b, p) float32 in [0, 1], total variation distance of the two distributions, when asked for."


@dataclass(frozen=True, eq=False)
class FiringCounts:
    """Firing statistics of each feature on the kept tokens of the whole corpus."""

    tokens: int
    count: Tensor
    "int64 (n,), number of tokens on which the code is not 0."
    total: Tensor
    "float64 (n,), sum of |code| times the decoder norm."
    square: Tensor
    "float64 (n,), sum of squared code times squared decoder norm."

    @property
    def alive(self) -> Tensor:
        """Mark the features that fire at least once: bool (n,)."""
        return self.count > 0

    @property
    def density(self) -> Tensor:
        """Return the share of tokens on which each feature fires: float64 (n,)."""
        return self.count.double() / self.tokens


def whole_cluster_prefix(cluster: tuple[int, ...], limit: int | None) -> int:
    """Return the length of the longest prefix of at most ``limit`` documents that splits no cluster.

    It holds at least one cluster.

    A cluster measured in part would be compared with the whole one of a longer run.
    """
    if limit is None or limit >= len(cluster):
        return len(cluster)
    last = {name: index for index, name in enumerate(cluster)}
    best, reach = 0, -1
    for index, name in enumerate(cluster):
        reach = max(reach, last[name])
        if reach == index and (index < limit or best == 0):
            best = index + 1
    return best


def sort_by_length(documents: Tensor, lengths: Tensor) -> Tensor:
    """Sort ``documents`` (k,) of one window by length, so that those that share a batch hold little padding."""
    return documents[torch.argsort(lengths[documents], stable=True)]


def scatter(values: Tensor, keep: Tensor) -> Tensor:
    """Write ``values`` (rows,) to the true entries of ``keep`` and 0 to the others: (b, p)."""
    out = values.new_zeros(keep.shape)
    out[keep] = values
    return out


def check_finite(batch: Batch, values: Tensor, keep: Tensor | None, what: str) -> None:
    """Raise a `MeasurementError` with document and position where ``values`` (rows of ``keep``, ...) are not finite.

    Without ``keep``, ``values`` has a row for each document.
    """
    if bool(torch.isfinite(values).all()):
        return
    bad = (~torch.isfinite(values)).reshape(len(values), -1).any(-1).nonzero()[0].item()
    if keep is None:
        raise MeasurementError(f"{what} is NaN or infinite in document {batch.documents[int(bad)]}")
    row, position = keep.nonzero()[int(bad)].tolist()
    raise MeasurementError(f"{what} is NaN or infinite at document {batch.documents[row]}, position {position}")
