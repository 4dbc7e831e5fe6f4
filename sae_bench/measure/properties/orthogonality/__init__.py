"""Near-copies among decoder directions, and statistics of their nearest neighbours.

    nn<k>                    mean over features of the k-th largest cosine with another decoder direction
    floor_isotropic_nn<k>    nn<k> of as many random directions, three seeds; excess_nn<k> is the difference
    floor_covariance_nn<k>   nn<k> of directions drawn from the site's covariance, mean removed
    duplicates               share of features with nn1 > 0.9
    modal_nn_share           share of features whose nearest neighbour is the most frequent one; ties share the vote
    composed_share           features that two or three others compose, each set once, as a share of features
    frame_potential_excess   sum of squared cosines * d / n^2 - 1; 0 for a tight frame
    c_dec                    mean absolute cosine over pairs (Chanin 2025)

Features lie where the data lies, so a trained dictionary is less orthogonal than isotropic directions, and a random one
is the most orthogonal of all: no metric here is good by being low, only a change is judged. Dead features are near
their random start and improve every number, so each metric counts the features that fire on the corpus only. Its
variant with the suffix ``_all`` counts all features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sae_bench.errors import MeasurementError
from sae_bench.measure.measurement import Estimate, Exact, Measurement, Metric, Series, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.properties.orthogonality.series import alive_mask, neighbour_distributions, neighbour_tables
from sae_bench.measure.shared.alive_features import dictionary_neighbours, encoder_rows

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.geometry import Neighbours, RandomFloor

DUPLICATE = 0.9
"Largest cosine above which a feature counts as a near-copy."
FLOORS = {"isotropic": "evenly spread random directions", "covariance": "directions from the site's covariance"}
_RANKS = (1, 10, 100)

_OF_FEATURES = (
    *(
        Metric(f"nn{k}", "cosine", "lower", f"mean cosine of a feature with its nearest direction no. {k}")
        for k in _RANKS
    ),
    *(
        Metric(f"floor_{floor}_nn{k}", "cosine", "reported", f"nn{k} of {meaning}")
        for floor, meaning in FLOORS.items()
        for k in _RANKS
    ),
    *(Metric(f"excess_nn{k}", "cosine", "reported", f"nn{k} minus its isotropic floor") for k in _RANKS),
    *(Metric(f"excess_covariance_nn{k}", "cosine", "reported", f"nn{k} minus its covariance floor") for k in _RANKS),
    Metric("coherence", "cosine", "reported", "largest absolute cosine of two features"),
    Metric("welch_bound", "cosine", "reported", "least coherence that so many directions can have"),
    Metric("frame_potential_excess", "ratio", "reported", "sum of squared cosines over a tight frame's, minus 1"),
    Metric("c_dec", "cosine", "reported", "mean absolute cosine over pairs of features"),
    Metric("duplicates", "share", "lower", "share of features with another one at a cosine above 0.9"),
    Metric("modal_nn_share", "share", "lower", "share of features with the most frequent nearest neighbour"),
    Metric("hub_max_indegree", "features", "reported", "number of features with the most frequent nearest neighbour"),
    Metric("hub_gini", "", "reported", "Gini coefficient of how often each feature is a nearest neighbour"),
    Metric("peaks", "peaks", "reported", "modes of the histogram of largest cosines"),
    Metric("peak_concentration", "share", "reported", "largest share of a mode's features with one nearest neighbour"),
    Metric("composed_share", "share", "reported", "share of features that two or three others compose"),
    *(
        Metric(f"floor_{floor}_composed_share", "share", "reported", f"composed_share of {meaning}")
        for floor, meaning in FLOORS.items()
    ),
    Metric("encoder_decoder_cosine", "cosine", "reported", "mean cosine of a feature's encoder and decoder directions"),
)

_SMOOTH = ("nn1", "nn10", "nn100", "coherence", "frame_potential_excess", "c_dec", "encoder_decoder_cosine")
"Metrics that rounding moves by no more than itself; counts and shares jump where two cosines are nearly equal."

METRICS = (
    *(replace(each, noise_free=True) for each in _OF_FEATURES),
    *(
        replace(
            each,
            name=f"{each.name}_all",
            better="reported",
            meaning=f"{each.meaning}, dead features included",
            noise_free=True,
            of_weights=each.name in _SMOOTH,
        )
        for each in _OF_FEATURES
    ),
)


def measure(bench: Bench) -> Measurement:
    """Measure neighbours of alive features and of all, compared with as many random directions."""
    from sae_bench.sae import weights_sha256

    geometry = dictionary_neighbours(bench)
    estimates, series = _set_estimates(bench, geometry.alive)
    all_estimates = estimates if geometry.every is geometry.alive else _set_estimates(bench, geometry.every)[0]
    series["alive"] = alive_mask(geometry.alive, int(bench.sae.d_sae))
    return Measurement(
        {**estimates, **{f"{name}_all": estimate for name, estimate in all_estimates.items()}},
        bench.clusters,
        series,
        notes=geometry.notes,
        weights=weights_sha256(bench.sae),
    )


def _set_estimates(bench: Bench, neighbours: Neighbours) -> tuple[dict[str, Estimate], dict[str, Series]]:
    """Return all estimates and series of one set of features, by metric name."""
    if neighbours.n < 2:
        undefined = Undefined("a single feature has no neighbours")
        estimates: dict[str, Estimate] = {each.name: undefined for each in _OF_FEATURES}
        return estimates | {"encoder_decoder_cosine": _encoder_decoder(bench, neighbours)}, {}
    floors = _floors(bench, neighbours)
    composed_estimates, sets = _composed_estimates(bench, neighbours, floors)
    hubs, in_degree = _hub_estimates(neighbours)
    from sae_bench.measure.geometry import cosine_peaks

    modes = cosine_peaks(neighbours)
    estimates = {
        **_rank_estimates(neighbours, floors),
        **_pair_estimates(neighbours),
        **hubs,
        **composed_estimates,
        "peaks": Exact(float(len(modes))),
        "peak_concentration": Exact(max((mode.concentration for mode in modes), default=0.0))
        if modes
        else Undefined(
            "the largest cosines have no mode that stands out from noise", f"there are {neighbours.n} features"
        ),
        "encoder_decoder_cosine": _encoder_decoder(bench, neighbours),
    }
    defined = {name: floor for name, floor in floors.items() if not isinstance(floor, Undefined)}
    return estimates, neighbour_distributions(neighbours, defined) | neighbour_tables(
        in_degree, neighbours, modes, sets
    )


def _floors(bench: Bench, neighbours: Neighbours) -> dict[str, RandomFloor | Undefined]:
    from sae_bench.measure.geometry import covariance_floor, isotropic_floor

    n, d = neighbours.n, neighbours.d
    floors: dict[str, RandomFloor | Undefined] = {"isotropic": isotropic_floor(n, d)}
    width = len(bench.site_data.mean)
    if width != d:
        floors["covariance"] = Undefined(
            "features do not write to the site that was captured", f"they have {d} numbers, the site has {width}"
        )
        return floors
    try:
        root = bench.noise_pool().root
        floors["covariance"] = bench.site_data.shared(("covariance floor", n), lambda: covariance_floor(n, root))
    except MeasurementError as error:
        floors["covariance"] = Undefined(str(error))
    return floors


def _rank_estimates(neighbours: Neighbours, floors: dict[str, RandomFloor | Undefined]) -> dict[str, Estimate]:
    estimates: dict[str, Estimate] = {}
    for rank in _RANKS:
        nearest = neighbours.nth(rank)
        names = [
            f"nn{rank}",
            f"excess_nn{rank}",
            f"excess_covariance_nn{rank}",
            *(f"floor_{f}_nn{rank}" for f in floors),
        ]
        if nearest is None:
            undefined = Undefined(
                f"a nearest direction no. {rank} takes at least {rank + 1} features", f"there are {neighbours.n}"
            )
            estimates |= dict.fromkeys(names, undefined)
            continue
        mean = float(nearest.double().mean())
        estimates[f"nn{rank}"] = Exact(mean)
        for name, floor in floors.items():
            excess = f"excess_nn{rank}" if name == "isotropic" else f"excess_{name}_nn{rank}"
            floor_mean = floor if isinstance(floor, Undefined) else floor.mean(rank)
            if floor_mean is None or isinstance(floor_mean, Undefined):
                estimates[f"floor_{name}_nn{rank}"] = estimates[excess] = floor_mean or Undefined("no such floor")
            else:
                estimates[f"floor_{name}_nn{rank}"], estimates[excess] = Exact(floor_mean), Exact(mean - floor_mean)
    return estimates


def _pair_estimates(neighbours: Neighbours) -> dict[str, Estimate]:
    from sae_bench.measure.geometry import frame_potential_excess, welch_bound

    nearest = neighbours.nth(1)
    assert nearest is not None
    return {
        "coherence": Exact(neighbours.coherence),
        "welch_bound": Exact(welch_bound(neighbours.n, neighbours.d)),
        "frame_potential_excess": Exact(frame_potential_excess(neighbours)),
        "c_dec": Exact(neighbours.absolute_mean),
        "duplicates": Exact(float((nearest > DUPLICATE).double().mean())),
    }


def _hub_estimates(neighbours: Neighbours) -> tuple[dict[str, Estimate], np.ndarray]:
    """Return statistics of how often features are nearest neighbours, and (n,) that number for each."""
    from sae_bench.measure.geometry import gini, neighbour_in_degrees

    in_degree = neighbour_in_degrees(neighbours)
    return {
        "modal_nn_share": Exact(float(in_degree.max() / neighbours.n)),
        "hub_max_indegree": Exact(float(in_degree.max())),
        "hub_gini": Exact(gini(in_degree)),
    }, in_degree


def _composed_estimates(
    bench: Bench, neighbours: Neighbours, floors: dict[str, RandomFloor | Undefined]
) -> tuple[dict[str, Estimate], np.ndarray]:
    from sae_bench.measure.geometry import find_composed_sets

    composed_sets = find_composed_sets(bench.sae.W_dec, neighbours.features, neighbours.cosine, neighbours.index)
    estimates: dict[str, Estimate] = {"composed_share": Exact(composed_sets.share)}
    for name, floor in floors.items():
        share = floor if isinstance(floor, Undefined) else Exact(floor.composed_share)
        estimates[f"floor_{name}_composed_share"] = share
    return estimates, composed_sets.sets.numpy()


def _encoder_decoder(bench: Bench, neighbours: Neighbours) -> Estimate:
    from sae_bench.measure.geometry import row_cosines

    sae = bench.sae
    encoder = encoder_rows(sae)
    if encoder is None:
        return Undefined("the SAE shows no single encoder matrix W_enc")
    if encoder.shape != sae.W_dec.shape or getattr(sae, "site_in", None) != getattr(sae, "site_out", None):
        return Undefined("encoder and decoder belong to different sites, so their directions cannot be compared")
    row_cosine = row_cosines(encoder, sae.W_dec, neighbours.features, neighbours.features)
    return Exact(float(row_cosine.mean()))


PROPERTY = Property(
    name="orthogonality",
    question="Are decoder directions near-copies of each other, and of whom?",
    primary_metric="nn1",
    metrics=METRICS,
    limits=("nn1:0.02", "nn10:0.02", "nn100:0.02", "duplicates:max:0.02", "modal_nn_share:max:0.05"),
    measure=measure,
    marker="geometry",
    needs_model=False,
)
