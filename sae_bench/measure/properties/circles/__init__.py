"""Circularity of cyclic concepts, such as the days of the week, at the site and through the SAE.

Each class has its mean activation over the tokens of its words. With K the products of the means in odd and in even
documents, which share no noise, and P_f = sum_kl K[k, l] cos(2 pi f (k - l) / C) the power at frequency f of the order,

    circular_share     P_1 / (P_1 + P_2 + P_3) at the site: 1 for a circle, a third where the order means nothing,
                       .66 for seven classes on a line; p over all 360 orders of seven classes, a sample for twelve
    roundness          smaller over larger axis of the frequency-1 part, squared: 0 for a line
    kept               share of the site's circle in the reconstruction: P_1 of K between the two over P_1 of the site,
                       1 for all of it, 0 for a circle in another plane; cluster_kept: in the contribution of a cluster
    residual_power     P_1 of the residual x - xhat over P_1 of the site: the part of the circle outside the features
    class_kept         share of the class means' whole spread, in any order, in the reconstruction
    span_energy        |P (x - mean)|^2 / |x - mean|^2, P the projector on the span of the cluster's decoder rows
    span_residual      |P (x - xhat)|^2 / |P (x - mean)|^2

Shares, ratios and p. Metrics are means over the declared cycles; the table lists each cycle with its p. The file of
cycles may name the cluster of features. Otherwise it is found by the similarity of decoder rows (Engels et al.
2405.14860: components of the graph of the two nearest with cosine above .5), or consists of the features in which the
classes differ most. The order never takes part in the choice, so that the test stays exact. Backward elimination
removes features one by one: `needed` are the last ones that have the cluster's circular power within a standard error.

A `kept` well below 1 says that the SAE flattens the circle; a `residual_power` above 0 says that it is still present,
but not in the features. Where the site itself has no circle (a large p), none of these numbers speaks of one. Not used:
regression of the angle on class means, whose R^2 is .975 for seven random points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sae_bench.measure.datasets.concept_file import ConceptFile, read_concepts
from sae_bench.measure.measurement import Estimate, Exact, Measurement, Metric, Ratio, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.properties.circles.circular_power import (
    circular_share,
    jackknife_products,
    mean_over_cycles,
    mean_retained_circle,
    retained_circle,
    retained_class_spread,
    roundness,
    share_of_site_power,
)
from sae_bench.measure.properties.circles.cycle_activations import MOST_TOKENS, locate_cycle
from sae_bench.measure.properties.circles.cycle_features import (
    LARGEST_CLUSTER,
    PER_CLASS,
    SIMILAR_COSINE,
    SUFFICIENT_POWER,
)
from sae_bench.measure.properties.circles.measured_cycle import MeasuredCycle, measure_cycle
from sae_bench.measure.properties.circles.series import circle_series, corrected_site_p, cycle_notes

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

NO_CYCLES = "no cycle is declared: register_sae(..., concepts='concepts.toml'), with a [[cycle]] in the file"

METRICS = (
    Metric(
        "circular_share",
        "share",
        "reported",
        "circular share of the class means at the site: power at frequency 1",
        noise_free=True,
    ),
    Metric(
        "circular_share_reconstruction",
        "share",
        "reported",
        "circular share of the class means in the reconstruction",
        noise_free=True,
    ),
    Metric(
        "circular_share_cluster",
        "share",
        "reported",
        "circular share of the class means in what the feature cluster writes",
        noise_free=True,
    ),
    Metric(
        "circular_share_residual",
        "share",
        "reported",
        "circular share of the class means in the residual",
        noise_free=True,
    ),
    Metric("roundness", "ratio", "reported", "smaller over larger axis of the circle at the site", noise_free=True),
    Metric(
        "roundness_reconstruction",
        "ratio",
        "reported",
        "smaller over larger axis of the circle in the reconstruction",
        noise_free=True,
    ),
    Metric("kept", "share", "reported", "share of the site's circle that the reconstruction retains", noise_free=True),
    Metric(
        "class_kept",
        "share",
        "reported",
        "share of the class means' spread at the site that the reconstruction retains",
        noise_free=True,
    ),
    Metric("residual_power", "share", "reported", "circular power of the residual over the site's", noise_free=True),
    Metric("cluster_kept", "share", "reported", "share of the site's circle that the feature cluster writes"),
    Metric(
        "cluster_kept_random",
        "share",
        "reported",
        "share of the site's circle that random sets of as many features write, mean",
    ),
    Metric(
        "span_energy", "share", "reported", "share of the activations in the span of the cluster's decoder directions"
    ),
    Metric(
        "span_energy_random", "share", "reported", "share of the activations in a random subspace of as many dimensions"
    ),
    Metric(
        "span_residual", "share", "reported", "residual over activations, both in the span of the cluster's directions"
    ),
)


def measure(bench: Bench) -> Measurement:
    """Measure the class means of every declared cycle at the site, through the SAE and in a cluster of features."""
    if bench.related.concepts is None:
        return Measurement({metric.name: Undefined(NO_CYCLES) for metric in METRICS})
    file = read_concepts(bench.related.concepts)
    if not file.cycles:
        return Measurement({metric.name: Undefined(NO_CYCLES) for metric in METRICS})
    cycles, missing = _measure_cycles(bench, file)
    estimates = {name: _cycle_estimates(cycle) for name, cycle in cycles.items()}
    corrected = corrected_site_p(cycles, len(file.cycles), bench.settings.seed)
    return Measurement(
        {metric.name: _mean_estimate(metric.name, estimates, missing) for metric in METRICS},
        bench.clusters,
        series=circle_series(cycles, estimates, corrected, bench.settings.seed) if cycles else {},
        settings=_settings(bench, file),
        notes=(*cycle_notes(cycles, estimates, corrected), *missing.values()),
    )


def _measure_cycles(bench: Bench, file: ConceptFile) -> tuple[dict[str, MeasuredCycle], dict[str, str]]:
    """Return the measured cycles, and for each other one the reason why it cannot be measured."""
    cycles, missing = {}, {}
    for rank, cycle in enumerate(file.cycles):
        result = measure_cycle(bench, cycle, locate_cycle(bench, file, cycle))
        if isinstance(result, MeasuredCycle):
            cycles[cycle.name] = result
        else:
            missing[cycle.name] = result
        bench.show_progress("circles: cycles", rank + 1, len(file.cycles))
    return cycles, missing


def _cycle_estimates(cycle: MeasuredCycle) -> dict[str, Estimate]:
    site, reconstruction, residual = (
        cycle.products["site"],
        cycle.products["reconstruction"],
        cycle.products["residual"],
    )
    no_power = "the class means have no power at the first frequencies"
    no_circle = "the site has no circular power"
    no_spread = "the classes do not differ at the site"
    estimates: dict[str, Estimate] = {
        "circular_share": jackknife_products([site], circular_share, no_power),
        "circular_share_reconstruction": jackknife_products([reconstruction], circular_share, no_power),
        "circular_share_residual": jackknife_products([residual], circular_share, no_power),
        "roundness": jackknife_products([site], roundness, no_circle),
        "roundness_reconstruction": jackknife_products([reconstruction], roundness, no_circle),
        "kept": jackknife_products([reconstruction, residual, site], retained_circle, no_circle),
        "class_kept": jackknife_products([reconstruction, residual, site], retained_class_spread, no_spread),
        "residual_power": jackknife_products([residual, site], share_of_site_power, no_circle),
    }
    if not cycle.features:
        no_cluster = Undefined("the SAE has no feature in which the classes differ, or shows no decoder")
        return {metric.name: estimates.get(metric.name, no_cluster) for metric in METRICS}
    cluster, rest = cycle.products["cluster"], cycle.products["rest"]
    inside, whole, residual_inside = cycle.energy
    return estimates | {
        "circular_share_cluster": jackknife_products([cluster], circular_share, no_power),
        "cluster_kept": jackknife_products([cluster, rest, site], retained_circle, no_circle),
        "cluster_kept_random": jackknife_products([*cycle.random, site], mean_retained_circle, no_circle)
        if cycle.random
        else Undefined("no other feature fires on the words of the cycle"),
        "span_energy": Ratio(inside, whole),
        "span_energy_random": Exact(cycle.dimensions / cycle.width),
        "span_residual": Ratio(residual_inside, inside),
    }


def _mean_estimate(name: str, estimates: Mapping[str, Mapping[str, Estimate]], missing: Mapping[str, str]) -> Estimate:
    """Return the mean of one metric over cycles."""
    values: Sequence[Estimate] = [by_metric[name] for by_metric in estimates.values()]
    return mean_over_cycles(values) if values else Undefined("; ".join(missing.values()))


def _settings(bench: Bench, file: ConceptFile) -> dict[str, object]:
    return {
        "cycles": [cycle.name for cycle in file.cycles],
        "enough": SUFFICIENT_POWER,
        "file": file.sha256,
        "largest": LARGEST_CLUSTER,
        "per_class": PER_CLASS,
        "seed": bench.settings.seed,
        "similar": SIMILAR_COSINE,
        "tokens": MOST_TOKENS,
    }


PROPERTY = Property(
    name="circles",
    question="Are cyclic concepts circles at the site, and how much of the circle does the SAE keep?",
    primary_metric="kept",
    metrics=METRICS,
    limits=(),
    measure=measure,
    marker="concepts",
)
