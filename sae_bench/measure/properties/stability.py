"""Agreement of the features with those of a second SAE of the same site and another seed.

    mmcs            mean over this SAE's features of the largest cosine with one of the partner's (Sharkey 2022)
    mmcs_reverse    the other way round
    matched_share   largest one-to-one matching of features with decoder cosine >= 0.7, over the smaller dictionary
    matched_encoder_share    largest matching of pairs whose encoder cosine reaches 0.7 as well (Paulo and Belrose 2025)

Two random dictionaries do not have an MMCS of 0 but that of nearest neighbours: the floors are those of as many random
directions. Features that fire on the corpus only, on both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sae_bench.errors import MeasurementError
from sae_bench.measure.measurement import Estimate, Exact, Measurement, Metric, Series, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.shared.alive_features import check_alive, encoder_rows
from sae_bench.measure.tables import histogram_columns

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.bench import Bench
    from sae_bench.measure.geometry import Matching

METRICS = (
    Metric("mmcs", "cosine", "higher", "mean largest cosine of the SAE's features with the partner's", noise_free=True),
    Metric(
        "mmcs_reverse",
        "cosine",
        "higher",
        "mean largest cosine of the partner's features with the SAE's",
        noise_free=True,
    ),
    Metric("floor_mmcs", "cosine", "reported", "mmcs of random directions", noise_free=True),
    Metric("floor_mmcs_reverse", "cosine", "reported", "mmcs_reverse of random directions", noise_free=True),
    Metric(
        "matched_share", "share", "higher", "share of features matched one to one at a cosine of 0.7", noise_free=True
    ),
    Metric(
        "matched_encoder_share",
        "share",
        "higher",
        "share of features matched in decoder and encoder at a cosine of 0.7",
        noise_free=True,
    ),
    Metric(
        "floor_matched_share", "share", "reported", "share of random directions with any cosine of 0.7", noise_free=True
    ),
)


def measure(bench: Bench) -> Measurement:
    """Measure largest cosines both ways and one-to-one matches of the alive features of two SAEs."""
    partner = bench.related.partner
    if partner is None:
        undefined = Undefined("no second SAE registered: partner=...")
        return Measurement({metric.name: undefined for metric in METRICS}, bench.clusters)
    if int(partner.W_dec.shape[1]) != int(bench.sae.W_dec.shape[1]) or int(partner.d_in) != int(bench.sae.d_in):
        raise MeasurementError(
            f"the second SAE reads {int(partner.d_in)} and writes {int(partner.W_dec.shape[1])} numbers, this one "
            f"{int(bench.sae.d_in)} and {int(bench.sae.W_dec.shape[1])}; register a partner of the same site"
        )
    own_features = _usable(bench, bench.sae, bench.firing.alive, "this SAE")
    partner_features = _usable(bench, partner, _alive(bench, partner), "the second SAE")
    from sae_bench.measure.geometry import match_directions

    matching = match_directions(
        bench.sae.W_dec[own_features], partner.W_dec[partner_features].to(bench.sae.W_dec.device)
    )
    return Measurement(
        {
            **_mmcs(matching, int(bench.sae.W_dec.shape[1])),
            **_matched(bench, partner, own_features, partner_features, matching),
        },
        bench.clusters,
        {"best_cosine": _series(matching, int(bench.sae.W_dec.shape[1]))},
        notes=(f"{len(own_features)} features against {len(partner_features)} of the second SAE, all of them alive",),
    )


def _alive(bench: Bench, sae: Any) -> Tensor:
    """Return bool (n,) features that fire on a kept token of the whole corpus."""
    import torch

    alive = torch.zeros(int(sae.d_sae), dtype=torch.bool)
    for x, keep in zip(bench.source.x, bench.site_data.keep, strict=True):
        with torch.no_grad():
            alive |= (sae.encode(x[keep].to(bench.settings.device)) != 0).any(0).cpu()
    return alive


def _usable(bench: Bench, sae: Any, alive: Tensor, name: str) -> Tensor:
    """Return int64 (n,) features that fire and write."""
    from sae_bench.measure.geometry import finite_norms

    usable = alive & (finite_norms(sae.W_dec).cpu() > 0)
    check_alive(sae, usable, bench.firing.tokens, name)
    return usable.nonzero().flatten()


def _mmcs(matching: Matching, d: int) -> dict[str, Estimate]:
    from sae_bench.measure.geometry import SAME_COSINE, isotropic_floor

    estimates: dict[str, Estimate] = {
        "mmcs": Exact(float(matching.best_of_a.double().mean())),
        "mmcs_reverse": Exact(float(matching.best_of_b.double().mean())),
    }
    for name, count in (("floor_mmcs", len(matching.best_of_b)), ("floor_mmcs_reverse", len(matching.best_of_a))):
        # A direction's best of m others is its nearest neighbour in a dictionary of m + 1.
        floor = isotropic_floor(count + 1, d)
        estimates[name] = Exact(float(floor.nth[1].mean(dtype=np.float64)))
        if name == "floor_mmcs":
            estimates["floor_matched_share"] = Exact(float((floor.nth[1] >= SAME_COSINE).mean()))
    return estimates


def _matched(
    bench: Bench, partner: Any, own_features: Tensor, partner_features: Tensor, matching: Matching
) -> dict[str, Estimate]:
    from sae_bench.measure.geometry import MOST_PAIRS, SAME_COSINE, largest_matching, row_cosines

    if matching.pairs is None:
        undefined = Undefined(f"more than {MOST_PAIRS} pairs of features are close, so features cannot be matched")
        return {"matched_share": undefined, "matched_encoder_share": undefined}
    rows, columns = (each.cpu() for each in matching.pairs)
    n, m = len(own_features), len(partner_features)
    estimates: dict[str, Estimate] = {"matched_share": Exact(largest_matching(rows, columns, n, m) / min(n, m))}
    ours_in, theirs_in = encoder_rows(bench.sae), encoder_rows(partner)
    if ours_in is None or theirs_in is None:
        estimates["matched_encoder_share"] = Undefined("one of the two SAEs shows no single encoder matrix W_enc")
        return estimates
    agree = (
        row_cosines(ours_in, theirs_in.to(ours_in.device), own_features[rows], partner_features[columns]).cpu()
        >= SAME_COSINE
    )
    estimates["matched_encoder_share"] = Exact(largest_matching(rows[agree], columns[agree], n, m) / min(n, m))
    return estimates


def _series(matching: Matching, d: int) -> Series:
    from sae_bench.measure.geometry import EDGES, isotropic_floor

    samples = {
        "this SAE": matching.best_of_a.cpu().numpy(),
        "the second": matching.best_of_b.cpu().numpy(),
        "isotropic": isotropic_floor(len(matching.best_of_b) + 1, d).nth[1],
    }
    return Series("histogram", histogram_columns(EDGES, samples), "Largest cosine with the other SAE", "cosine")


PROPERTY = Property(
    name="stability",
    question="Does a second SAE of another seed find the same features?",
    primary_metric="mmcs",
    metrics=METRICS,
    limits=(),
    measure=measure,
    marker="geometry",
    needs_model=False,
)
