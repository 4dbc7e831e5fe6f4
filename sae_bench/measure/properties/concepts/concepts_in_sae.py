"""The concepts in what one SAE makes of the site: its reconstruction, its error, its codes and its decoder.

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
    """The same concept in what one SAE makes of it."""

    kept: ProbeScore
    "AUROC of the site's own direction, read on the reconstruction."
    best_feature: ProbeScore
    feature: int
    "Best feature of the first half."
    cosine: ProbeScore | None
    "Largest |cosine| of the direction with a decoder row; None where the SAE shows no decoder."
    floor_cosine: float
    "The same for directions of labels dealt anew, their mean."
    random_cosine: float
    "The same for as many random decoder rows."
    probes: Mapping[tuple[str, int], ProbeScore]
    searched: Mapping[str, CCSResult]


def measure_in_sae(bench: Bench, found: MeasurableConcepts) -> tuple[ConceptInSAE, ...]:
    """Every concept in the SAE's reconstruction, error and codes."""
    sites = measure_at_site(bench, found)
    place = {where: row for row, where in enumerate(sorted({w for site in sites for w in site.placed.place}))}
    reconstruction, codes = _seen(bench, place)
    decoder = _decoder(bench)
    results = []
    for number, site in enumerate(sites):
        rows = np.array([place[where] for where in site.placed.place])
        results.append(_in_sae(bench, found, site, reconstruction[rows], codes[rows], decoder))
        bench.show_progress("concepts", number + 1, len(sites))
    return tuple(results)


def _in_sae(
    bench: Bench,
    found: MeasurableConcepts,
    site: ConceptAtSite,
    reconstruction: Floats,
    codes: Any,
    decoder: Floats | None,
) -> ConceptInSAE:
    placed, clusters, seed = site.placed, len(found.clusters), bench.settings.seed
    again, active, error = (
        split_halves(placed, rows, found.clusters)
        for rows in (reconstruction, codes, reconstruction - position_rows(bench.site_data.x, placed))
    )
    best = [fit_best_column(half) for half in active]
    probes = {
        (space, k): cross_score([fit_probe(half, k) for half in halves], halves, clusters)
        for space, halves in (("reconstruction", again), ("codes", active))
        for k in SPARSE
    }
    searched = {}
    if site.pairs is not None:
        for space, halves in (("reconstruction", again), ("error", error)):
            searched[space] = search_truth(difference_halves(halves, site.pairs), clusters, seed)
    assert best[0].chosen is not None
    return ConceptInSAE(
        kept=cross_score(site.readers, again, clusters),
        best_feature=cross_score(best, active, clusters),
        feature=int(best[0].chosen[0]),
        cosine=None if decoder is None else _cosine(site, decoder, clusters),
        floor_cosine=np.nan if decoder is None else float(_largest(site.null_directions, decoder).mean()),
        random_cosine=np.nan if decoder is None else random_cosine(*decoder.shape),
        probes=probes,
        searched=searched,
    )


def _seen(bench: Bench, place: Mapping[tuple[int, int], int]) -> tuple[Floats, Any]:
    """Reconstructions (M, d) and codes (M, n, scipy sparse) at the places, in their order."""
    import torch
    from scipy.sparse import csr_array, vstack

    wanted: dict[int, list[tuple[int, int]]] = {}
    for (document, position), row in place.items():
        wanted.setdefault(document, []).append((position, row))
    reconstruction = np.empty((len(place), bench.site_data.x.shape[-1]))
    parts, order = [], []
    for batch in bench.batches_of(sorted(wanted)):
        codes, xhat = bench.codes(batch), bench.reconstruct(batch)
        at = [(line, *where) for line, document in enumerate(batch.documents) for where in wanted[document]]
        lines, positions, rows = torch.tensor(at).T
        reconstruction[rows.numpy()] = xhat[lines, positions].double().cpu().numpy()
        parts.append(csr_array(codes[lines, positions].cpu().numpy()))
        order += rows.tolist()
    return reconstruction, vstack(parts, format="csr")[np.argsort(order)]


def _decoder(bench: Bench) -> Floats | None:
    """(n, d) decoder rows of length 1 (0 for those that write nothing); None where there is no single decoder."""
    rows = getattr(bench.sae, "W_dec", None)
    if rows is None:
        return None
    written = rows.detach().float().cpu().numpy()
    found: Floats = written / np.maximum(np.linalg.norm(written, axis=1, keepdims=True), 1e-12)
    return found


def _largest(directions: Floats, decoder: Floats) -> Floats:
    """(directions,) largest |cosine| of each (d, directions) with a decoder row."""
    unit = directions / np.maximum(np.linalg.norm(directions, axis=0), 1e-300)
    found: Floats = np.abs(decoder @ unit.astype(decoder.dtype)).max(0)
    return found


def random_cosine(n: int, d: int) -> float:
    """Expected largest |cosine| of a direction with n random ones in d dimensions.

    A squared cosine is Beta(1/2, (d - 1)/2), and the largest of n is below c^2 with the n-th power of its probability.
    """
    from scipy.stats import beta

    share = (np.arange(2000) + 0.5) / 2000
    return float(np.sqrt(beta.ppf(share ** (1 / n), 0.5, (d - 1) / 2)).mean())


def _cosine(site: ConceptAtSite, decoder: Floats, clusters: int) -> ProbeScore:
    """Largest |cosine| of the direction of the first half with a decoder row.

    Without a cluster the row is held, which is exact to first order: the row is the best one there is.
    """
    reader = site.readers[0]
    assert reader.without is not None
    unit = reader.weights / np.linalg.norm(reader.weights)
    cosines = np.abs(decoder @ unit.astype(decoder.dtype))
    best = decoder[int(cosines.argmax())].astype(np.float64)
    without = np.full(clusters, float(cosines.max()))
    without[reader.clusters] = np.abs(best @ reader.without) / np.linalg.norm(reader.without, axis=0)
    return ProbeScore(float(cosines.max()), without)
