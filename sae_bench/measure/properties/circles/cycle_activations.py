"""The tokens of a cycle in the corpus, what an SAE makes of them, and the features that hold the cycle.

Features are chosen without looking at the order of the classes, over the whole corpus, so that every tier has the same
ones and the permutation test stays exact.

Shapes: N tokens, C classes, n features, m of them in a cluster, d site width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.errors import MeasurementError
from sae_bench.measure.arrays import Floats, Ints
from sae_bench.measure.datasets.concept_file import ConceptFile, Cycle
from sae_bench.measure.properties.circles.circular_power import LabelledTokens
from sae_bench.measure.shared.alive_features import dictionary_neighbours

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.bench import Bench
    from sae_bench.sae.sparse_codes import SparseCodes

MOST_TOKENS = 20_000
"Tokens of a cycle that are looked at, at most."
SIMILAR_COSINE = 0.5
"Features are joined to each of their two nearest where the cosine of their directions is above this."
LARGEST_CLUSTER = 32
"Features of a cluster, at most; beyond that directions are joined that have nothing to do with each other."
SUFFICIENT_POWER = 0.5
"Share of the reconstruction's class power that a cluster of similar directions must hold to be the cycle's."
PER_CLASS = 2
"Features for each class where no such cluster is found."
RANDOM_SETS = 8
"Sets of other features that a cluster is held against."


@dataclass(frozen=True, eq=False)
class CycleActivations:
    """A cycle's tokens in the documents of the tier, at the site and through the SAE."""

    labels: LabelledTokens
    x: Floats
    "(N, d)"
    xhat: Floats
    "(N, d)"
    features: tuple[int, ...]
    "The cluster's, by how much the classes differ in them, the most first; none where none was found."
    found_by: str
    "``file``, ``decoder similarity`` or ``class differences``."
    codes: Floats
    "(N, m) of the cluster."
    directions: Floats
    "(m, d) decoder rows of the cluster."
    others: tuple[Floats, ...]
    "(N, d) each: what random sets of m other features write, of those that fire on the cycle's words."


def cycle_words(bench: Bench) -> tuple[str, ...]:
    """The word of every token of the model's vocabulary."""
    from sae_bench.measure.datasets.concept_tokens import vocabulary_words
    from sae_bench.measure.shared.prompts import require_tokenizer

    tokenizer = require_tokenizer(bench, "a file of cycles")
    return bench.site_data.shared("vocabulary words", lambda: vocabulary_words(tokenizer, bench.model.d_vocab))


@dataclass(frozen=True, eq=False)
class CyclePositions:
    """Where the words of a cycle stand in the whole corpus, document by document."""

    document: Ints
    "(N,)"
    position: Ints
    of_class: Ints


def locate_cycle(bench: Bench, file: ConceptFile, cycle: Cycle) -> CyclePositions:
    """Kept positions of the corpus that hold a word of the cycle, at most `MOST_TOKENS`; the same for all SAEs of a site."""

    def compute() -> CyclePositions:
        from sae_bench.measure.datasets.concept_tokens import cycle_tokens

        class_of = np.full(bench.model.d_vocab, -1)
        for index, tokens in enumerate(cycle_tokens(cycle, cycle_words(bench), file.path)):
            class_of[list(tokens)] = index
        label = np.where(bench.site_data.keep.numpy(), class_of[bench.corpus.tokens.numpy()], -1)
        document, position = np.nonzero(label >= 0)
        document, position = document[:MOST_TOKENS], position[:MOST_TOKENS]
        return CyclePositions(document, position, label[document, position])

    return bench.site_data.shared(("cycle", file.sha256, cycle.name), compute)


def label_tokens(bench: Bench, at: CyclePositions, classes: int) -> LabelledTokens:
    """The tokens in documents of the tier."""
    inside = at.document < bench.n_documents
    return LabelledTokens(at.of_class[inside], bench.cluster_of[at.document[inside]], classes, len(bench.clusters))


def encode_cycle(bench: Bench, cycle: Cycle, at: CyclePositions) -> CycleActivations:
    """What the site and the SAE hold of a cycle."""
    import torch

    document, position = torch.from_numpy(at.document), torch.from_numpy(at.position)
    given = label_tokens(bench, at, len(cycle.classes))
    tier = torch.from_numpy(at.document < bench.n_documents)
    codes, xhat = _through(bench, at)
    W_dec = _decoder(bench.sae)
    means = _means(bench, codes, at, given.classes)  # (2, C, n)
    features, found_by = _cluster(bench, cycle, means, W_dec)
    chosen = list(features)
    return CycleActivations(
        labels=given,
        x=bench.site_data.x[document, position][tier].double().numpy(),
        xhat=xhat[tier].double().numpy(),
        features=features,
        found_by=found_by,
        codes=_columns(codes, chosen)[tier].double().numpy(),
        directions=np.zeros((0, xhat.shape[1])) if W_dec is None else W_dec[chosen].double().numpy(),
        others=_others(bench, codes, W_dec, features, tier),
    )


def _through(bench: Bench, at: CyclePositions) -> tuple[SparseCodes, Tensor]:
    """Codes and reconstructions (N, d) of the places, a document at a time."""
    import torch

    from sae_bench.sae.sparse_codes import SparseCodes

    codes, xhat = [], []
    for document in dict.fromkeys(at.document.tolist()):
        rows = torch.from_numpy(at.position[at.document == document])
        x = bench.source.x[document, rows].to(bench.settings.device)
        with torch.no_grad():
            found = bench.sae.encode(x)
            xhat.append(bench.sae.decode(found, like=x).float().cpu())
        codes.append(SparseCodes.from_dense(found.float().cpu()))
        if not bool(torch.isfinite(xhat[-1]).all()):
            raise MeasurementError(f"the SAE's reconstruction is NaN or infinite in document {document}")
    return SparseCodes.join(codes), torch.cat(xhat)


def _columns(codes: SparseCodes, features: list[int]) -> Tensor:
    """(N, m) codes of some features, in their order."""
    import torch

    wanted = torch.zeros(codes.features, dtype=torch.bool)
    wanted[features] = True
    some = codes.only(wanted)
    dense = torch.zeros(codes.tokens, len(features))
    dense[some.token.long(), some.feature.long()] = some.value
    ascending = sorted(features)
    return dense[:, [ascending.index(feature) for feature in features]]


def _means(bench: Bench, codes: SparseCodes, at: CyclePositions, classes: int) -> Tensor:
    """float32 (2, C, n) class means in even and odd clusters of the corpus; 0 for a class without a token there."""
    import torch

    rank = {name: index for index, name in enumerate(dict.fromkeys(bench.corpus.cluster))}
    half = torch.tensor([rank[bench.corpus.cluster[document]] % 2 for document in at.document.tolist()])
    place = half * classes + torch.from_numpy(at.of_class)
    sums = torch.zeros(2 * classes * codes.features, dtype=torch.float64)
    sums.index_add_(0, place[codes.token.long()] * codes.features + codes.feature.long(), codes.value.double())
    count = place.bincount(minlength=2 * classes).clamp(min=1)
    return (sums.view(2 * classes, -1) / count[:, None]).view(2, classes, -1).float()


def _decoder(sae: object) -> Tensor | None:
    """float32 (n, d); None for an SAE that shows no decoder."""
    try:
        found: Tensor = sae.W_dec.float().cpu()  # type: ignore[attr-defined]
    except MeasurementError:
        return None
    return found


def _cluster(bench: Bench, cycle: Cycle, means: Tensor, W_dec: Tensor | None) -> tuple[tuple[int, ...], str]:
    """The features that hold the cycle: those the file names, similar directions, or those the classes differ in."""
    centred = means - means.mean(1, keepdim=True)
    if W_dec is None:
        return (), "no decoder"
    # What the classes differ by in each feature, in units of the activation; the halves share no noise.
    apart = (centred[0] * centred[1]).sum(0) * W_dec.square().sum(1)  # (n,)
    named = cycle.latents.get(bench.id)
    if named is not None:
        exceeds_limit = [index for index in named if index >= len(apart)]
        if exceeds_limit:
            raise MeasurementError(
                f"cycle {cycle.name!r} names latent {exceeds_limit[0]} of {bench.id!r}, which has {len(apart)}; count from 0"
            )
        return tuple(sorted(named, key=lambda index: -float(apart[index]))), "file"
    best, power = _strongest(bench.shared("similar directions", lambda: _similar(bench)), centred, W_dec)
    written = centred @ W_dec
    if best and power >= SUFFICIENT_POWER * float((written[0] * written[1]).sum()):
        return tuple(sorted(best, key=lambda index: -float(apart[index]))), "decoder similarity"
    order = apart.argsort(descending=True)[: PER_CLASS * centred.shape[1]]
    return tuple(int(index) for index in order if apart[index] > 0), "class differences"


def _similar(bench: Bench) -> list[list[int]]:
    """Groups of 2 to `LARGEST_CLUSTER` features: components of the graph of nearest neighbours (Engels et al. 2405.14860)."""
    import torch
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    found = dictionary_neighbours(bench).alive
    features = found.features.cpu()
    number = torch.full((int(bench.sae.d_sae),), -1)
    number[features] = torch.arange(found.n)
    rows, columns = (found.cosine[:, :2].cpu() > SIMILAR_COSINE).nonzero(as_tuple=True)
    others = number[found.index[:, :2].cpu()[rows, columns].long()]
    edges = coo_matrix((np.ones(len(rows)), (rows.numpy(), others.numpy())), shape=(found.n, found.n))
    _, component = connected_components(edges, directed=False)
    order = np.argsort(component, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return [features[torch.from_numpy(group)].tolist() for group in groups if 2 <= len(group) <= LARGEST_CLUSTER]


def _strongest(groups: list[list[int]], centred: Tensor, W_dec: Tensor) -> tuple[list[int], float]:
    """The group whose own reconstruction differs most between the classes, and by how much."""
    best, most = list[int](), 0.0
    for group in groups:
        written = centred[:, :, group] @ W_dec[group]  # (2, C, d)
        power = float((written[0] * written[1]).sum())
        if power > most:
            best, most = group, power
    return best, most


def _others(
    bench: Bench, codes: SparseCodes, W_dec: Tensor | None, features: tuple[int, ...], tier: Tensor
) -> tuple[Floats, ...]:
    """(N, d) each, what random sets of other features write at the tier's tokens (bool)."""
    import torch

    if W_dec is None:
        return ()
    pool = sorted(set(codes.feature.tolist()) - set(features))
    generator = torch.Generator().manual_seed(bench.settings.seed)
    found = []
    for _ in range(RANDOM_SETS if pool else 0):
        drawn = [pool[index] for index in torch.randperm(len(pool), generator=generator)[: len(features)].tolist()]
        found.append((_columns(codes, drawn)[tier] @ W_dec[drawn]).double().numpy())
    return tuple(found)
