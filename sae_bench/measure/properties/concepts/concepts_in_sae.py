"""Concepts in one SAE: its reconstruction, its error, its codes and its decoder.

Shapes: N places of a concept, d site width, n features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_bench.measure.arrays import Floats
from sae_bench.measure.properties.concepts.ccs import CCSResult, search_truth
from sae_bench.measure.properties.concepts.concepts_at_site import (
    SPARSE,
    ConceptAtSite,
    difference_halves,
    measure_at_site,
    position_rows,
    split_halves,
)
from sae_bench.measure.properties.concepts.occurrences import MeasurableConcepts
from sae_bench.measure.properties.concepts.probes import ProbeScore, cross_score, fit_best_column, fit_probe

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench


@dataclass(frozen=True, eq=False)
class ConceptInSAE:
    """One concept in one SAE."""

    auroc: ProbeScore
    "AUROC of the site's own direction on the reconstruction."
    best_feature: ProbeScore
    feature: int
    "Best feature of the first half."
    cosine: ProbeScore | None
    "Largest |cosine| of the direction with a decoder row; None where the SAE shows no decoder."
    floor_cosine: float
    "Mean largest |cosine| of directions from permuted labels."
    random_cosine: float
    "Expected largest |cosine| with as many random decoder rows."
    probes: Mapping[tuple[str, int], ProbeScore]
    ccs: Mapping[str, CCSResult]


def measure_in_sae(bench: Bench, concepts: MeasurableConcepts) -> tuple[ConceptInSAE, ...]:
    """Measure every concept in the SAE's reconstruction, error and codes."""
    sites = measure_at_site(bench, concepts)
    row_of = {where: row for row, where in enumerate(sorted({w for site in sites for w in site.positions.place}))}
    reconstruction, codes = _encode_positions(bench, row_of)
    decoder = _unit_decoder(bench)
    results = []
    for number, site in enumerate(sites):
        rows = np.array([row_of[where] for where in site.positions.place])
        results.append(_in_sae(bench, concepts, site, reconstruction[rows], codes[rows], decoder))
        bench.show_progress("concepts", number + 1, len(sites))
    return tuple(results)


def _in_sae(
    bench: Bench,
    concepts: MeasurableConcepts,
    site: ConceptAtSite,
    reconstruction: Floats,
    codes: Any,
    decoder: Floats | None,
) -> ConceptInSAE:
    positions, clusters, seed = site.positions, len(concepts.clusters), bench.settings.seed
    reconstructed, active, error = (
        split_halves(positions, rows, concepts.clusters)
        for rows in (reconstruction, codes, reconstruction - position_rows(bench.site_data.x, positions))
    )
    feature_probes = [fit_best_column(half) for half in active]
    probes = {
        (space, k): cross_score([fit_probe(half, k) for half in halves], halves, clusters)
        for space, halves in (("reconstruction", reconstructed), ("codes", active))
        for k in SPARSE
    }
    ccs = {}
    if site.pairs is not None:
        for space, halves in (("reconstruction", reconstructed), ("error", error)):
            ccs[space] = search_truth(difference_halves(halves, site.pairs), clusters, seed)
    assert feature_probes[0].chosen is not None
    return ConceptInSAE(
        auroc=cross_score(site.direction_probes, reconstructed, clusters),
        best_feature=cross_score(feature_probes, active, clusters),
        feature=int(feature_probes[0].chosen[0]),
        cosine=None if decoder is None else _decoder_cosine(site, decoder, clusters),
        floor_cosine=np.nan if decoder is None else float(_largest_cosines(site.permuted_directions, decoder).mean()),
        random_cosine=np.nan if decoder is None else random_cosine(*decoder.shape),
        probes=probes,
        ccs=ccs,
    )


def _encode_positions(bench: Bench, row_of: Mapping[tuple[int, int], int]) -> tuple[Floats, Any]:
    """Return reconstructions (M, d) and codes (M, n, scipy sparse) at the positions, in their order."""
    import torch
    from scipy.sparse import csr_array, vstack

    by_document: dict[int, list[tuple[int, int]]] = {}
    for (document, position), row in row_of.items():
        by_document.setdefault(document, []).append((position, row))
    reconstruction = np.empty((len(row_of), bench.site_data.x.shape[-1]))
    parts, order = [], []
    for batch in bench.batches_of(sorted(by_document)):
        codes, xhat = bench.codes(batch), bench.reconstruct(batch)
        locations = [(line, *where) for line, document in enumerate(batch.documents) for where in by_document[document]]
        lines, positions, rows = torch.tensor(locations).T
        reconstruction[rows.numpy()] = xhat[lines, positions].double().cpu().numpy()
        parts.append(csr_array(codes[lines, positions].cpu().numpy()))
        order += rows.tolist()
    return reconstruction, vstack(parts, format="csr")[np.argsort(order)]


def _unit_decoder(bench: Bench) -> Floats | None:
    """Return (n, d) decoder rows of length 1 (0 for those that write nothing); None without a single decoder."""
    rows = getattr(bench.sae, "W_dec", None)
    if rows is None:
        return None
    decoder = rows.detach().float().cpu().numpy()
    unit: Floats = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    return unit


def _largest_cosines(directions: Floats, decoder: Floats) -> Floats:
    """Return (directions,) largest |cosine| of each (d, directions) with a decoder row."""
    unit = directions / np.maximum(np.linalg.norm(directions, axis=0), 1e-300)
    cosines: Floats = np.abs(decoder @ unit.astype(decoder.dtype)).max(0)
    return cosines


def random_cosine(n: int, d: int) -> float:
    """Return the expected largest |cosine| of a direction with n random ones in d dimensions.

    A squared cosine is Beta(1/2, (d - 1)/2), and the largest of n is below c^2 with the n-th power of its probability.
    """
    from scipy.stats import beta

    share = (np.arange(2000) + 0.5) / 2000
    return float(np.sqrt(beta.ppf(share ** (1 / n), 0.5, (d - 1) / 2)).mean())


def _decoder_cosine(site: ConceptAtSite, decoder: Floats, clusters: int) -> ProbeScore:
    """Return the largest |cosine| of the direction of the first half with a decoder row.

    Without a cluster the row stays the same, which is exact to first order: the row is the best one there is.
    """
    probe = site.direction_probes[0]
    assert probe.without is not None
    unit = probe.weights / np.linalg.norm(probe.weights)
    cosines = np.abs(decoder @ unit.astype(decoder.dtype))
    best = decoder[int(cosines.argmax())].astype(np.float64)
    without = np.full(clusters, float(cosines.max()))
    without[probe.clusters] = np.abs(best @ probe.without) / np.linalg.norm(probe.without, axis=0)
    return ProbeScore(float(cosines.max()), without)
