"""The concepts seen in every space: the embedding, the site's x, its reconstruction, its error and the codes.

What does not depend on the SAE is computed once a site. Shapes: N places of a concept, d site width, n features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_bench.measurement import Floats
from sae_bench.properties._concepts_data import BOTH, Found, Ints, Placed
from sae_bench.properties._concepts_readers import (
    Half,
    Reader,
    Scored,
    auroc,
    best_column,
    cross,
    d_prime,
    mean_difference,
    permuted,
    probe,
)
from sae_bench.properties._concepts_search import FEWEST_PAIRS, Searched, paired_half, pairs_of, salience, search

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.bench import Bench

SPARSE = (1, 2, 5, 16)
"Columns of a k-sparse probe."
DIRECTIONS = 1000
"Random directions, of which the best on one half is read on the other."
PERMUTATIONS = {"smoke": 50}
MOST_PERMUTATIONS = 200


@dataclass(frozen=True, eq=False)
class AtSite:
    """One concept in what the SAE reads, whatever the SAE."""

    placed: Placed
    "The places that are scored."
    embedding: float | None
    "Split-half AUROC in the token embedding; None for positions, and where the model shows no embedding."
    halves: tuple[Half, Half]
    readers: tuple[Reader, Reader]
    "Mean-difference directions of either half."
    found: Scored
    separation: float
    "d' of held-out places along the direction"
    null: Floats
    "(permutations,) the same AUROC with labels dealt anew"
    null_directions: Floats
    "(d, permutations)"
    random: Scored
    "The best of many random directions."
    probes: Mapping[int, Scored]
    pairs: tuple[Ints, Ints] | None
    "Pairs of the contrast-consistent search; None where there are too few."
    searched: Searched | None
    salience: tuple[Scored, Scored] | None


@dataclass(frozen=True, eq=False)
class InSAE:
    """The same concept in what one SAE makes of it."""

    kept: Scored
    "AUROC of the site's own direction, read on the reconstruction."
    latent: Scored
    latent_index: int
    "Best feature of the first half."
    cosine: Scored | None
    "Largest |cosine| of the direction with a decoder row; None where the SAE shows no decoder."
    floor_cosine: float
    probes: Mapping[tuple[str, int], Scored]
    searched: Mapping[str, Searched]


def at_site(bench: Bench, found: Found) -> tuple[AtSite, ...]:
    """Every concept at the site, once for all SAEs that look at it with the same documents and seed."""
    times = PERMUTATIONS.get(bench.settings.tier.name, MOST_PERMUTATIONS)
    return bench.site_data.shared(
        (found.key, "site", times), lambda: tuple(_at_site(bench, found, placed, times) for placed in found.concepts)
    )


def halves_of(placed: Placed, rows: Any, clusters: Sequence[int]) -> tuple[Half, Half]:
    """Both halves of a concept; ``rows`` (N, d) are its places in some space, dense or sparse."""
    number = {cluster: row for row, cluster in enumerate(clusters)}
    index = np.array([number[cluster] for cluster in placed.cluster.tolist()])
    made = []
    for half in (0, 1):
        mine = np.flatnonzero(placed.half == half)
        present, of = np.unique(index[mine], return_inverse=True)
        made.append(Half(rows[mine], placed.positive[mine], present, np.arange(len(mine)), of))
    return made[0], made[1]


def _at_site(bench: Bench, found: Found, placed: Placed, times: int) -> AtSite:
    clusters, seed = len(found.clusters), bench.settings.seed
    fitted = halves_of(placed, _rows(bench.site_data.x, placed), found.clusters)
    readers = mean_difference(fitted[0]), mean_difference(fitted[1])
    placed, fitted_unit = placed.only_scored, [placed.unit[placed.half == number] for number in (0, 1)]
    halves = halves_of(placed, _rows(bench.site_data.x, placed), found.clusters)
    unit = [placed.unit[placed.half == number] for number in (0, 1)]
    null = [permuted(fitted[fold], halves[1 - fold], (fitted_unit[fold], unit[1 - fold]), times, seed + fold)
            for fold in (0, 1)]  # fmt: skip
    pairs = pairs_of(placed, 0), pairs_of(placed, 1)
    searchable = min(len(each) for each in pairs) >= FEWEST_PAIRS
    differences = _differences(halves, pairs) if searchable else None
    return AtSite(
        placed=placed,
        embedding=embedding_auroc(bench, placed),
        halves=halves,
        readers=readers,
        found=cross(readers, halves, clusters),
        separation=float(
            np.mean([d_prime(_along(reader, half))[0] for reader, half in zip(readers, halves[::-1], strict=True)])
        ),
        null=(null[0][0] + null[1][0]) / 2,
        null_directions=null[0][1],
        random=_best_random(halves, clusters, seed),
        probes={k: cross([probe(half, k) for half in halves], halves, clusters) for k in SPARSE},
        pairs=pairs if searchable else None,
        searched=search(differences, clusters, seed) if differences else None,
        salience=salience(differences, clusters) if differences else None,
    )


def embedding_auroc(bench: Bench, placed: Placed) -> float | None:
    """Split-half AUROC over words of the mean-difference direction in the embedding."""
    embedding = bench.site_data.shared("concepts: embedding", lambda: bench.model.embedding)
    if placed.tokens is None or embedding is None:
        return None
    table = embedding.double().numpy()
    ids = np.array([*placed.tokens.positive, *placed.tokens.negative])
    positive = np.arange(len(ids)) < len(placed.tokens.positive)
    half = placed.token_half[ids]
    if (half == BOTH).any():
        return None
    none = np.zeros(0, dtype=np.int64)
    halves = [Half(table[ids[half == number]], positive[half == number], none, none, none) for number in (0, 1)]
    readers = [mean_difference(each) for each in halves]
    scores = [
        auroc(other.x @ reader.weights, other.positive) for reader, other in zip(readers, halves[::-1], strict=True)
    ]
    return float(np.mean(scores))


def _best_random(halves: Sequence[Half], clusters: int, seed: int) -> Scored:
    """The random direction that does best on one half, read on the other."""
    width = halves[0].x.shape[1]
    directions = np.random.default_rng(seed).normal(size=(width, DIRECTIONS))
    seen = [replace(half, x=half.x @ directions) for half in halves]
    return cross([best_column(half) for half in seen], seen, clusters)


def _along(reader: Reader, half: Half) -> Half:
    scores = half.columns(reader.chosen) @ reader.weights
    return replace(half, x=scores[:, None])


def _differences(halves: Sequence[Half], pairs: Sequence[Ints]) -> list[Half]:
    return [paired_half(half, each) for half, each in zip(halves, pairs, strict=True)]


def _rows(table: Tensor, placed: Placed) -> Floats:
    """(N, d) float64 rows of a table (docs, pos, d)."""
    found: Floats = table[placed.document, placed.position].double().numpy()
    return found


def in_sae(bench: Bench, found: Found) -> tuple[InSAE, ...]:
    """Every concept in the SAE's reconstruction, error and codes."""
    sites = at_site(bench, found)
    place = {where: row for row, where in enumerate(sorted({w for site in sites for w in site.placed.place}))}
    reconstruction, codes = _seen(bench, place)
    decoder = _decoder(bench)
    results = []
    for number, site in enumerate(sites):
        rows = np.array([place[where] for where in site.placed.place])
        results.append(_in_sae(bench, found, site, reconstruction[rows], codes[rows], decoder))
        bench.advance("concepts", number + 1, len(sites))
    return tuple(results)


def _in_sae(
    bench: Bench, found: Found, site: AtSite, reconstruction: Floats, codes: Any, decoder: Floats | None
) -> InSAE:
    placed, clusters, seed = site.placed, len(found.clusters), bench.settings.seed
    again, active, error = (
        halves_of(placed, rows, found.clusters)
        for rows in (reconstruction, codes, reconstruction - _rows(bench.site_data.x, placed))
    )
    latents = [best_column(half) for half in active]
    probes = {
        (space, k): cross([probe(half, k) for half in halves], halves, clusters)
        for space, halves in (("reconstruction", again), ("codes", active))
        for k in SPARSE
    }
    searched = {}
    if site.pairs is not None:
        for space, halves in (("reconstruction", again), ("error", error)):
            searched[space] = search(_differences(halves, site.pairs), clusters, seed)
    assert latents[0].chosen is not None
    return InSAE(
        kept=cross(site.readers, again, clusters),
        latent=cross(latents, active, clusters),
        latent_index=int(latents[0].chosen[0]),
        cosine=None if decoder is None else _cosine(site, decoder, clusters),
        floor_cosine=np.nan if decoder is None else float(_largest(site.null_directions, decoder).mean()),
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


def _cosine(site: AtSite, decoder: Floats, clusters: int) -> Scored:
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
    return Scored(float(cosines.max()), without)
