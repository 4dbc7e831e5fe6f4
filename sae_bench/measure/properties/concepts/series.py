"""Tables and curves of `concepts`.

concepts    table: a row for each concept, see `_concept_table`
probes      curve: mean AUROC of probes on k columns of x, reconstruction and codes
search      curve: mean AUROC of the contrast-consistent search on balanced pairs, by the share p of pairs with
            the truth first during the search, for distractors of relative strength rho; and that of the
            distractor itself
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Series
from sae_bench.measure.properties.concepts.ccs import SHARES, STRENGTHS, CCSResult
from sae_bench.measure.properties.concepts.concepts_at_site import SPARSE, ConceptAtSite
from sae_bench.measure.properties.concepts.concepts_in_sae import ConceptInSAE


def concept_series(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> dict[str, Series]:
    """Return the table and the two curves; no curve of a search where no concept has pairs."""
    series = {"concepts": _concept_table(sites, saes), "probes": _probe_curves(sites, saes)}
    if any(site.ccs is not None for site in sites):
        series["search"] = _search_curves(sites, saes)
    return series


def p_value(value: float, permuted: Floats) -> float:
    """Return the one-sided permutation p of an AUROC."""
    return float((1 + (permuted >= value).sum()) / (1 + len(permuted)))


def _concept_table(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> Series:
    pairs = list(zip(sites, saes, strict=True))
    columns: dict[str, list[Any]] = {
        "concept": [site.positions.name for site in sites],
        "positive": [int(site.positions.positive.sum()) for site in sites],
        "negative": [int((~site.positions.positive).sum()) for site in sites],
        "embedding": [None if site.embedding is None else site.embedding.value for site in sites],
        "embedding_p": [
            None if site.embedding is None else p_value(site.embedding.value, site.embedding.permuted) for site in sites
        ],
        "site": [site.auroc.value for site in sites],
        "null_95": [float(np.quantile(site.permuted_auroc, 0.95)) for site in sites],
        "p": [p_value(site.auroc.value, site.permuted_auroc) for site in sites],
        "d_prime": [site.separation for site in sites],
        "reconstruction": [sae.auroc.value for sae in saes],
        "change": [sae.auroc.value - site.auroc.value for site, sae in pairs],
        "feature": [sae.feature for sae in saes],
        "feature_auroc": [sae.best_feature.value for sae in saes],
        "probe_x_5": [site.probes[5].value for site in sites],
        "probe_codes_5": [sae.probes["codes", 5].value for sae in saes],
        "cosine": [None if sae.cosine is None else sae.cosine.value for sae in saes],
        "floor_cosine": [None if sae.cosine is None else sae.floor_cosine for sae in saes],
        "search": [None if site.ccs is None else site.ccs.auroc.value for site in sites],
        "truth_rank": [None if site.salience is None else site.salience[1].value for site in sites],
    }
    return Series("table", columns, "Every concept: AUROC on held-out words and documents")


def _probe_curves(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> Series:
    lines: dict[str, list[float]] = {"x": list(SPARSE)}
    lines["of x"] = [float(np.mean([site.probes[k].value for site in sites])) for k in SPARSE]
    for space in ("reconstruction", "codes"):
        lines[f"of {space}"] = [float(np.mean([sae.probes[space, k].value for sae in saes])) for k in SPARSE]
    return Series("curve", lines, "Probes on k columns, AUROC", "columns", log_x=True)


def _search_curves(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> Series:
    spaces: dict[str, list[CCSResult]] = {"x": [site.ccs for site in sites if site.ccs is not None]}
    for space in ("reconstruction", "error"):
        spaces[space] = [sae.ccs[space] for sae in saes if space in sae.ccs]
    lines: dict[str, list[float]] = {"x": list(SHARES)}
    for space, results in spaces.items():
        for row, rho in enumerate(STRENGTHS):
            lines[f"{space}, rho {rho:g}"] = np.mean([result.truth[row] for result in results], axis=0).tolist()
    for row, rho in enumerate(STRENGTHS[1:], 1):
        lines[f"distractor in x, rho {rho:g}"] = np.mean(
            [result.distractor[row] for result in spaces["x"]], axis=0
        ).tolist()
    title = "Contrast-consistent search, AUROC; a distractor wins where 4p(1-p) < rho^2 (.93 for .5, .72 for .9)"
    return Series("curve", lines, title, "share p of pairs with the truth first")
