"""Are cyclic concepts, such as the days of the week, circles at the site, and how much of the circle does the SAE keep?

Of the tokens of each class take the mean activation. With K the products of the means in odd and in even documents,
which share no noise, and P_f = sum_kl K[k, l] cos(2 pi f (k - l) / C) the power at frequency f of the order,

    circular_share     P_1 / (P_1 + P_2 + P_3) at the site: 1 for a circle, a third where the order means nothing,
                       .66 for seven classes on a line; p over all 360 orders of seven classes, drawn ones of twelve
    roundness          smaller over larger axis of the frequency-1 part, squared: 0 for a line
    kept               what of the site's circle lies in the reconstruction: P_1 of K between the two over P_1 of the
                       site, 1 for all of it, 0 for a circle elsewhere; cluster_kept: in what some features write
    residual_power     P_1 of the residual x - xhat over P_1 of the site: what of the circle is not represented
    class_kept         the same as `kept` of the class means' whole spread, in whatever order they are
    span_energy        |P (x - mean)|^2 / |x - mean|^2, P the projector on the span of the cluster's decoder rows
    span_residual      |P (x - xhat)|^2 / |P (x - mean)|^2

Shares, ratios and p; numbers of metrics are means over the declared cycles, the table has each with its p. A cluster is
given in the file of cycles, or found by the similarity of decoder rows (Engels et al. 2405.14860: components of the
graph of the two nearest with cosine above .5), or else the features in which the classes differ most; never by their
order, so that the test stays exact. Backward elimination takes features out one by one: `needed` are the last ones
that hold the cluster's circular power within a standard error.

A `kept` well below 1 says that the SAE flattens the circle; a `residual_power` above 0 that it is still there, but not
in the features. Where the site itself has no circle (a large p), none of this speaks of one. Not used: regression of
the angle on class means, whose R^2 is .975 for seven random points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sae_bench.measure.datasets.concept_file import ConceptFile, read_concepts
from sae_bench.measure.measurement import Estimate, Exact, Measurement, Metric, Ratio, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.properties.circles import circular_power
from sae_bench.measure.properties.circles.cycle_activations import (
    LARGEST_CLUSTER,
    MOST_TOKENS,
    PER_CLASS,
    SIMILAR_COSINE,
    SUFFICIENT_POWER,
    locate_cycle,
)
from sae_bench.measure.properties.circles.measured_cycle import MeasuredCycle, measure_cycle
from sae_bench.measure.properties.circles.series import circle_series, corrected_site_p, cycle_notes

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench

NO_CYCLES = "no cycle is declared: register_sae(..., concepts='concepts.toml'), with a [[cycle]] in the file"

METRICS = (
    Metric("circular_share", "share", "reported", "power of the class means at frequency 1, site", noise_free=True),
    Metric("circular_share_reconstruction", "share", "reported", "the same of the reconstruction", noise_free=True),
    Metric("circular_share_cluster", "share", "reported", "the same of what the cluster writes", noise_free=True),
    Metric("circular_share_residual", "share", "reported", "the same of the residual", noise_free=True),
    Metric("roundness", "ratio", "reported", "smaller over larger axis of the circle at the site", noise_free=True),
    Metric("roundness_reconstruction", "ratio", "reported", "the same of the reconstruction", noise_free=True),
    Metric("kept", "share", "reported", "what of the site's circle lies in the reconstruction", noise_free=True),
    Metric("class_kept", "share", "reported", "the same of all that tells the classes apart", noise_free=True),
    Metric("residual_power", "share", "reported", "circular power of the residual over the site's", noise_free=True),
    Metric("cluster_kept", "share", "reported", "what of the site's circle lies in what the cluster writes"),
    Metric("cluster_kept_random", "share", "reported", "the same of random sets of as many other features, mean"),
    Metric("span_energy", "share", "reported", "share of the activations inside the span of the cluster's directions"),
    Metric("span_energy_random", "share", "reported", "that of a random subspace of as many dimensions"),
    Metric("span_residual", "share", "reported", "residual inside that span over the activations inside it"),
)


def measure(bench: Bench) -> Measurement:
    """Class means of every declared cycle at the site, through the SAE and in the features that hold it."""
    if bench.related.concepts is None:
        return Measurement({metric.name: Undefined(NO_CYCLES) for metric in METRICS})
    file = read_concepts(bench.related.concepts)
    if not file.cycles:
        return Measurement({metric.name: Undefined(NO_CYCLES) for metric in METRICS})
    found, missing = _each(bench, file)
    estimates = {cycle: _of_a_cycle(each) for cycle, each in found.items()}
    corrected = corrected_site_p(found, len(file.cycles), bench.settings.seed)
    return Measurement(
        {metric.name: _over_cycles(metric.name, estimates, missing) for metric in METRICS},
        bench.clusters,
        series=circle_series(found, estimates, corrected, bench.settings.seed) if found else {},
        settings=_settings(bench, file),
        notes=(*cycle_notes(found, estimates, corrected), *missing.values()),
    )


def _each(bench: Bench, file: ConceptFile) -> tuple[dict[str, MeasuredCycle], dict[str, str]]:
    """What was found by cycle, and why of the others nothing."""
    found, missing = {}, {}
    for rank, cycle in enumerate(file.cycles):
        at = locate_cycle(bench, file, cycle)
        held = measure_cycle(bench, cycle, at)
        if isinstance(held, MeasuredCycle):
            found[cycle.name] = held
        else:
            missing[cycle.name] = held
        bench.show_progress("circles: cycles", rank + 1, len(file.cycles))
    return found, missing


def _of_a_cycle(found: MeasuredCycle) -> dict[str, Estimate]:
    site, ours, residual = found.products["site"], found.products["reconstruction"], found.products["residual"]
    flat, still = "the class means have no power at the first frequencies", "the site has no circular power"
    estimates: dict[str, Estimate] = {
        "circular_share": circular_power.jackknife_products([site], circular_power.circular_share, flat),
        "circular_share_reconstruction": circular_power.jackknife_products([ours], circular_power.circular_share, flat),
        "circular_share_residual": circular_power.jackknife_products([residual], circular_power.circular_share, flat),
        "roundness": circular_power.jackknife_products([site], circular_power.roundness, still),
        "roundness_reconstruction": circular_power.jackknife_products([ours], circular_power.roundness, still),
        "kept": circular_power.jackknife_products([ours, residual, site], circular_power.retained_circle, still),
        "class_kept": circular_power.jackknife_products(
            [ours, residual, site], circular_power.retained_class_spread, "the classes do not differ at the site"
        ),
        "residual_power": circular_power.jackknife_products(
            [residual, site], circular_power.share_of_site_power, still
        ),
    }
    if not found.features:
        why = Undefined("the SAE has no feature in which the classes differ, or shows no decoder")
        return {metric.name: estimates.get(metric.name, why) for metric in METRICS}
    cluster = found.products["cluster"]
    inside, whole, left = found.energy
    return estimates | {
        "circular_share_cluster": circular_power.jackknife_products([cluster], circular_power.circular_share, flat),
        "cluster_kept": circular_power.jackknife_products(
            [cluster, found.products["rest"], site], circular_power.retained_circle, still
        ),
        "cluster_kept_random": circular_power.jackknife_products(
            [*found.random, site], circular_power.mean_retained_circle, still
        )
        if found.random
        else Undefined("no other feature fires on the words of the cycle"),
        "span_energy": Ratio(inside, whole),
        "span_energy_random": Exact(found.dimensions / found.width),
        "span_residual": Ratio(left, inside),
    }


def _over_cycles(name: str, estimates: Mapping[str, Mapping[str, Estimate]], missing: Mapping[str, str]) -> Estimate:
    """The mean over cycles of one metric."""
    values: Sequence[Estimate] = [each[name] for each in estimates.values()]
    return circular_power.mean_over_cycles(values) if values else Undefined("; ".join(missing.values()))


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
