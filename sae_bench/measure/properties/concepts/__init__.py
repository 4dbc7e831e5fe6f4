"""Labelled concepts as directions at the site, and their separation through the SAE.

A concept is a set of words, or of places in the corpus, from the file registered as ``concepts=``; upper case against
lower case is there for every tokenizer. Half the words and documents fit, the other half is scored, and the reverse.

    auroc                     positives above negatives along the difference of means (Gurnee 2024), at the site
    auroc_change              the same direction read on the reconstruction, minus auroc: below 0, the SAE loses it
    embedding_auroc           the same in the token embedding, over words
    feature_auroc             of the single feature that separates the fitting half best, chosen whatever its scale
    probe_SPACE_K             logistic regression on the K columns of x, reconstruction or codes that separate best
    best_cosine               largest |cosine| of the direction with a decoder row; floors: dealt labels, random rows
    search_SPACE              contrast-consistent search on pairs, without labels (Burns et al. 2022)
    truth_salience            variance of balanced differences along the concept over the largest of any direction
    truth_rank                which principal component of balanced differences is most like the concept

All are AUROCs (.5 is chance) but the last four lines, means over the concepts of the file and upper case; the table in
the report has each concept with its permutation p. In-sample AUROCs are not chance at .5 (.74 for 5,000 words in 768
dimensions), which is why nothing is scored where it was fitted. Reported numbers of single concepts say whether a low
mean is one concept's; a low `auroc` says that the concept is no direction at this site, whatever the SAE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.datasets.concept_file import UPPER_CASE
from sae_bench.measure.measurement import Estimate, Exact, Influence, Measurement, Metric, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.properties.concepts.concepts_at_site import SPARSE, ConceptAtSite, measure_at_site
from sae_bench.measure.properties.concepts.concepts_in_sae import ConceptInSAE, measure_in_sae
from sae_bench.measure.properties.concepts.occurrences import locate_concepts
from sae_bench.measure.properties.concepts.probes import ProbeScore, mean_of, worst_of
from sae_bench.measure.properties.concepts.series import concept_series
from sae_bench.measure.uncertainty import leave_one_out

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

SPACES = ("x", "reconstruction", "codes")
SEARCHED = ("x", "reconstruction", "error")

METRICS = (
    Metric("auroc_change", "AUROC", "higher", "AUROC of concepts in the reconstruction minus that at the site"),
    Metric("worst_auroc_change", "AUROC", "reported", "AUROC change of the concept that loses most"),
    Metric("auroc", "AUROC", "reported", "held-out AUROC of concepts' mean differences at the site"),
    Metric("floor_auroc", "AUROC", "reported", "held-out AUROC at the site with shuffled word labels"),
    Metric("random_direction_auroc", "AUROC", "reported", "held-out AUROC of the best of 1,000 random directions"),
    Metric("embedding_auroc", "AUROC", "reported", "held-out AUROC of mean differences in the token embedding"),
    Metric(
        "floor_embedding_auroc", "AUROC", "reported", "held-out AUROC in the token embedding with shuffled word labels"
    ),
    Metric("feature_auroc", "AUROC", "reported", "held-out AUROC of the feature that separates a concept best"),
    *(
        Metric(f"probe_{space}_{k}", "AUROC", "reported", f"held-out AUROC of a probe on {k} of the columns of {space}")
        for space in SPACES
        for k in SPARSE
    ),
    Metric("best_cosine", "cosine", "reported", "largest cosine of a concept's direction with a decoder row"),
    Metric(
        "floor_best_cosine", "cosine", "reported", "largest cosine with a decoder row of directions of shuffled labels"
    ),
    Metric(
        "floor_random_cosine",
        "cosine",
        "reported",
        "largest cosine of a concept's direction with as many random rows",
        noise_free=True,
    ),
    *(
        Metric(f"search_{space}", "AUROC", "reported", f"AUROC of the contrast-consistent search on {space}")
        for space in SEARCHED
    ),
    Metric("search_change", "AUROC", "reported", "search_reconstruction minus search_x"),
    Metric("truth_salience", "share", "reported", "variance of differences along the concept over the largest"),
    Metric("truth_rank", "components", "reported", "which principal component of differences is most like the concept"),
    Metric("upper_case_auroc", "AUROC", "reported", "auroc of upper against lower case"),
    Metric("upper_case_auroc_change", "AUROC", "higher", "auroc_change of upper against lower case"),
    Metric("upper_case_embedding_auroc", "AUROC", "reported", "embedding_auroc of upper against lower case"),
    Metric("concepts", "concepts", "reported", "number of concepts measured, upper case included"),
)


def measure(bench: Bench) -> Measurement:
    """Measure every concept at the site and in the SAE, and average over concepts."""
    concepts = locate_concepts(bench)
    if not concepts.concepts:
        undefined = Undefined(
            "no concept can be measured; register a file of them, register_sae(..., concepts='concepts.toml')",
            "; ".join(concepts.missing),
        )
        return Measurement({metric.name: undefined for metric in METRICS})
    sites, saes = measure_at_site(bench, concepts), measure_in_sae(bench, concepts)
    names = [site.positions.name for site in sites]
    estimates: dict[str, Estimate] = {
        **_direction_estimates(sites, saes),
        **_probe_estimates(sites, saes),
        **_search_estimates(sites, saes),
        **_upper_case_estimates(sites, saes),
        "concepts": Exact(float(len(sites))),
    }
    return Measurement(
        estimates,
        concepts.clusters,
        concept_series(sites, saes),
        # Means over other concepts are other numbers, and the seed decides which positions are measured.
        settings={"concepts": sorted(names), "labels": concepts.sha256[:16], "seed": bench.settings.seed},
        notes=concepts.missing,
    )


def _estimate(score: ProbeScore) -> Influence:
    return Influence(score.value, leave_one_out(score.without, score.value))


def _mean(scores: Sequence[ProbeScore], reason: str = "") -> Estimate:
    return _estimate(mean_of(scores)) if scores else Undefined(reason)


def _direction_estimates(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> dict[str, Estimate]:
    changes = [sae.auroc - site.auroc for site, sae in zip(sites, saes, strict=True)]
    embeddings = [site.embedding for site in sites if site.embedding is not None]
    no_words = Undefined("no concept of words whose embeddings the model shows")
    cosines = [sae.cosine for sae in saes if sae.cosine is not None]
    no_decoder = "the SAE shows no single decoder matrix W_dec"
    return {
        "auroc_change": _mean(changes),
        "worst_auroc_change": _estimate(worst_of(changes)),
        "auroc": _mean([site.auroc for site in sites]),
        "floor_auroc": Exact(float(np.mean([site.permuted_auroc.mean() for site in sites]))),
        "random_direction_auroc": _mean([site.random for site in sites]),
        "embedding_auroc": Exact(float(np.mean([each.value for each in embeddings]))) if embeddings else no_words,
        "floor_embedding_auroc": Exact(float(np.mean([each.permuted.mean() for each in embeddings])))
        if embeddings
        else no_words,
        "feature_auroc": _mean([sae.best_feature for sae in saes]),
        "best_cosine": _mean(cosines, no_decoder),
        "floor_best_cosine": Exact(float(np.mean([sae.floor_cosine for sae in saes])))
        if cosines
        else Undefined(no_decoder),
        "floor_random_cosine": Exact(saes[0].random_cosine) if cosines else Undefined(no_decoder),
    }


def _probe_estimates(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> dict[str, Estimate]:
    estimates: dict[str, Estimate] = {f"probe_x_{k}": _mean([site.probes[k] for site in sites]) for k in SPARSE}
    for space in SPACES[1:]:
        estimates |= {f"probe_{space}_{k}": _mean([sae.probes[space, k] for sae in saes]) for k in SPARSE}
    return estimates


def _search_estimates(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> dict[str, Estimate]:
    reason = "no concept has enough pairs of a positive and a negative in either half; measure more documents"
    at_site = [site.ccs.auroc for site in sites if site.ccs is not None]
    reconstruction, error = (
        [sae.ccs[space].auroc for sae in saes if space in sae.ccs] for space in ("reconstruction", "error")
    )
    saliences = [site.salience for site in sites if site.salience is not None]
    return {
        "search_x": _mean(at_site, reason),
        "search_reconstruction": _mean(reconstruction, reason),
        "search_error": _mean(error, reason),
        "search_change": _mean([now - before for now, before in zip(reconstruction, at_site, strict=True)], reason),
        "truth_salience": _mean([each[0] for each in saliences], reason),
        "truth_rank": _mean([each[1] for each in saliences], reason),
    }


def _upper_case_estimates(sites: Sequence[ConceptAtSite], saes: Sequence[ConceptInSAE]) -> dict[str, Estimate]:
    for site, sae in zip(sites, saes, strict=True):
        if site.positions.name == UPPER_CASE:
            return {
                "upper_case_auroc": _estimate(site.auroc),
                "upper_case_auroc_change": _estimate(sae.auroc - site.auroc),
                "upper_case_embedding_auroc": Exact(site.embedding.value)
                if site.embedding is not None
                else Undefined("the model shows no token embedding"),
            }
    undefined = Undefined("too few documents have upper and lower case, or the model came without a tokenizer")
    return dict.fromkeys(("upper_case_auroc", "upper_case_auroc_change", "upper_case_embedding_auroc"), undefined)


PROPERTY = Property(
    name="concepts",
    question="Is a labelled concept, upper case first, a direction at the site, and does the SAE keep it?",
    primary_metric="auroc_change",
    metrics=METRICS,
    limits=("auroc_change:0.02", "upper_case_auroc_change:0.02"),
    measure=measure,
    marker="concepts",
)
