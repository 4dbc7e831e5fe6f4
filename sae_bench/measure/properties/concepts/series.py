"""What concepts look like, one by one.

concepts    table: a row for each concept, see `_table`
probes      curve: mean AUROC of probes on k columns of x, reconstruction and codes
search      curve: mean AUROC of the contrast-consistent search on balanced pairs, by the share p of pairs with
            the truth first while it searched, for distractors of relative strength rho; and that of the
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
    """The table and the two pictures; no picture of a search where no concept has pairs."""
    series = {"concepts": _table(sites, saes), "probes": _probes(sites, saes)}
    if any(site.searched is not None for site in sites):
        series["search"] = _search(sites, saes)
    return series


def p_value(value: float, null: Floats) -> float:
    """One-sided permutation p of an AUROC."""
    return float((1 + (null >= value).sum()) / (1 + len(null)))


def _table(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> Series:
    both = list(zip(sites, saes, strict=True))
    columns: dict[str, list[Any]] = {
        "concept": [site.placed.name for site in sites],
        "positive": [int(site.placed.positive.sum()) for site in sites],
        "negative": [int((~site.placed.positive).sum()) for site in sites],
        "embedding": [None if site.embedded is None else site.embedded.value for site in sites],
        "embedding_p": [
            None if site.embedded is None else p_value(site.embedded.value, site.embedded.null) for site in sites
        ],
        "site": [site.found.value for site in sites],
        "null_95": [float(np.quantile(site.null, 0.95)) for site in sites],
        "p": [p_value(site.found.value, site.null) for site in sites],
        "d_prime": [site.separation for site in sites],
        "reconstruction": [sae.kept.value for sae in saes],
        "change": [sae.kept.value - site.found.value for site, sae in both],
        "feature": [sae.feature for sae in saes],
        "feature_auroc": [sae.best_feature.value for sae in saes],
        "probe_x_5": [site.probes[5].value for site in sites],
        "probe_codes_5": [sae.probes["codes", 5].value for sae in saes],
        "cosine": [None if sae.cosine is None else sae.cosine.value for sae in saes],
        "floor_cosine": [None if sae.cosine is None else sae.floor_cosine for sae in saes],
        "search": [None if site.searched is None else site.searched.found.value for site in sites],
        "truth_rank": [None if site.salience is None else site.salience[1].value for site in sites],
    }
    return Series("table", columns, "Every concept: AUROC on held-out words and documents")


def _probes(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> Series:
    lines: dict[str, list[float]] = {"x": list(SPARSE)}
    lines["of x"] = [float(np.mean([site.probes[k].value for site in sites])) for k in SPARSE]
    for space in ("reconstruction", "codes"):
        lines[f"of {space}"] = [float(np.mean([sae.probes[space, k].value for sae in saes])) for k in SPARSE]
    return Series("curve", lines, "Probes on k columns, AUROC", "columns", log_x=True)


def _search(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> Series:
    spaces: dict[str, list[CCSResult]] = {"x": [site.searched for site in sites if site.searched is not None]}
    for space in ("reconstruction", "error"):
        spaces[space] = [sae.searched[space] for sae in saes if space in sae.searched]
    lines: dict[str, list[float]] = {"x": list(SHARES)}
    for space, found in spaces.items():
        for row, rho in enumerate(STRENGTHS):
            lines[f"{space}, rho {rho:g}"] = np.mean([each.truth[row] for each in found], axis=0).tolist()
    for row, rho in enumerate(STRENGTHS[1:], 1):
        lines[f"distractor in x, rho {rho:g}"] = np.mean(
            [each.distractor[row] for each in spaces["x"]], axis=0
        ).tolist()
    title = "Contrast-consistent search, AUROC; a distractor wins where 4p(1-p) < rho^2 (.93 for .5, .72 for .9)"
    return Series("curve", lines, title, "share p of pairs with the truth first")
