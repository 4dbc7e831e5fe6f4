"""Tokens of a cycle in the corpus, and their activations at the site and through an SAE.

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
from sae_bench.measure.properties.circles.cycle_features import choose_cycle_features
from sae_bench.measure.shared.document_halves import half_of_documents

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.bench import Bench
    from sae_bench.sae.sparse_codes import SparseCodes

MOST_TOKENS = 20_000
"Most tokens of a cycle that are measured."
RANDOM_SETS = 8
"Random sets of other features that a cluster is compared with."


@dataclass(frozen=True, eq=False)
class CycleActivations:
    """Activations of a cycle's tokens in the documents of the tier, at the site and through the SAE."""

    labels: LabelledTokens
    x: Floats
    "(N, d)"
    xhat: Floats
    "(N, d)"
    features: tuple[int, ...]
    "The cluster's, those in which the classes differ most first; empty where no feature qualifies."
    selection: str
    "``file``, ``decoder similarity`` or ``class differences``."
    codes: Floats
    "(N, m) of the cluster."
    directions: Floats
    "(m, d) decoder rows of the cluster."
    controls: tuple[Floats, ...]
    "(N, d) each: contributions of random sets of m other features that fire on the cycle's words."


def cycle_words(bench: Bench) -> tuple[str, ...]:
    """Return the word of every token of the model's vocabulary."""
    from sae_bench.measure.datasets.concept_tokens import vocabulary_words
    from sae_bench.measure.shared.prompts import require_tokenizer

    tokenizer = require_tokenizer(bench, "a file of cycles")
    return bench.site_data.shared("vocabulary words", lambda: vocabulary_words(tokenizer, bench.model.d_vocab))


@dataclass(frozen=True, eq=False)
class CyclePositions:
    """Positions of a cycle's words in the whole corpus, document by document."""

    document: Ints
    "(N,)"
    position: Ints
    of_class: Ints


def locate_cycle(bench: Bench, file: ConceptFile, cycle: Cycle) -> CyclePositions:
    """Return kept positions of the corpus with a word of the cycle, at most `MOST_TOKENS`.

    They are the same for all SAEs of a site.
    """

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


def label_tokens(bench: Bench, positions: CyclePositions, classes: int) -> LabelledTokens:
    """Return the class and cluster of the tokens in documents of the tier."""
    inside = positions.document < bench.n_documents
    return LabelledTokens(
        positions.of_class[inside], bench.cluster_of[positions.document[inside]], classes, len(bench.clusters)
    )


def encode_cycle(bench: Bench, cycle: Cycle, positions: CyclePositions) -> CycleActivations:
    """Return the activations of a cycle's tokens at the site and through the SAE, and the cycle's features."""
    import torch

    document, position = torch.from_numpy(positions.document), torch.from_numpy(positions.position)
    labels = label_tokens(bench, positions, len(cycle.classes))
    tier = torch.from_numpy(positions.document < bench.n_documents)
    codes, xhat = _run_sae(bench, positions)
    W_dec = _decoder(bench.sae)
    means = _class_means(bench, codes, positions, labels.classes)  # (2, C, n)
    features, selection = choose_cycle_features(bench, cycle, means, W_dec)
    chosen = list(features)
    return CycleActivations(
        labels=labels,
        x=bench.site_data.x[document, position][tier].double().numpy(),
        xhat=xhat[tier].double().numpy(),
        features=features,
        selection=selection,
        codes=_code_columns(codes, chosen)[tier].double().numpy(),
        directions=np.zeros((0, xhat.shape[1])) if W_dec is None else W_dec[chosen].double().numpy(),
        controls=_random_contributions(bench, codes, W_dec, features, tier),
    )


def _run_sae(bench: Bench, positions: CyclePositions) -> tuple[SparseCodes, Tensor]:
    """Return codes and reconstructions (N, d) at the positions, a document at a time."""
    import torch

    from sae_bench.sae.sparse_codes import SparseCodes

    codes, xhat = [], []
    for document in dict.fromkeys(positions.document.tolist()):
        rows = torch.from_numpy(positions.position[positions.document == document])
        x = bench.source.x[document, rows].to(bench.settings.device)
        with torch.no_grad():
            encoded = bench.sae.encode(x)
            xhat.append(bench.sae.decode(encoded, like=x).float().cpu())
        codes.append(SparseCodes.from_dense(encoded.float().cpu()))
        if not bool(torch.isfinite(xhat[-1]).all()):
            raise MeasurementError(f"the SAE's reconstruction is NaN or infinite in document {document}")
    return SparseCodes.join(codes), torch.cat(xhat)


def _code_columns(codes: SparseCodes, features: list[int]) -> Tensor:
    """Return (N, m) codes of some features, in their order."""
    import torch

    chosen = torch.zeros(codes.features, dtype=torch.bool)
    chosen[features] = True
    selected = codes.only(chosen)
    dense = torch.zeros(codes.tokens, len(features))
    dense[selected.token.long(), selected.feature.long()] = selected.value
    ascending = sorted(features)
    return dense[:, [ascending.index(feature) for feature in features]]


def _class_means(bench: Bench, codes: SparseCodes, positions: CyclePositions, classes: int) -> Tensor:
    """Return float32 (2, C, n) class means in even and odd clusters of the corpus; 0 for a class without a token."""
    import torch

    half = torch.from_numpy(half_of_documents(bench.corpus.cluster)[positions.document])
    group = half * classes + torch.from_numpy(positions.of_class)
    sums = torch.zeros(2 * classes * codes.features, dtype=torch.float64)
    sums.index_add_(0, group[codes.token.long()] * codes.features + codes.feature.long(), codes.value.double())
    count = group.bincount(minlength=2 * classes).clamp(min=1)
    return (sums.view(2 * classes, -1) / count[:, None]).view(2, classes, -1).float()


def _decoder(sae: object) -> Tensor | None:
    """Return float32 (n, d) decoder rows; None for an SAE without a known decoder."""
    try:
        decoder: Tensor = sae.W_dec.float().cpu()  # type: ignore[attr-defined]
    except MeasurementError:
        return None
    return decoder


def _random_contributions(
    bench: Bench, codes: SparseCodes, W_dec: Tensor | None, features: tuple[int, ...], tier: Tensor
) -> tuple[Floats, ...]:
    """Return (N, d) each: contributions of random sets of other features at the tier's tokens (bool)."""
    import torch

    if W_dec is None:
        return ()
    pool = sorted(set(codes.feature.tolist()) - set(features))
    generator = torch.Generator().manual_seed(bench.settings.seed)
    contributions = []
    for _ in range(RANDOM_SETS if pool else 0):
        drawn = [pool[index] for index in torch.randperm(len(pool), generator=generator)[: len(features)].tolist()]
        contributions.append((_code_columns(codes, drawn)[tier] @ W_dec[drawn]).double().numpy())
    return tuple(contributions)
