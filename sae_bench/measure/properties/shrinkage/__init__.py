"""Shrinkage of the reconstruction, of all features in proportion or of each one, and its cost.

    gamma          E‖x̂‖² / E[x̂·x], the factor by which reconstructions are too short (below 1) or too long
    gamma_centred  gamma of r = x̂ - decode(0) against y = x - decode(0): a large decoder bias hides shrinkage
    l2_ratio       E[‖x̂‖ / ‖x‖]; a calibrated estimate under noise is shorter than what it estimates, so never judged
    s*, t*         one scale, and one scale a feature, that minimise the squared error (`measure.shared.scales`)
    gain           1 - loss after scaling / loss before, in squared error and in KL
    share          gain of s* / gain of t*: 1 when all features are suppressed alike

gamma is equation 9 of Rajamanoharan et al. (arXiv 2404.16014) as corrected by its authors, over the whole run and never
a mean of per-batch ratios. Scales are fitted on even documents of the whole corpus and scored on the odd ones measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_bench.errors import MeasurementError
from sae_bench.measure.measurement import Estimate, Exact, Influence, Measurement, Metric, Ratio, Undefined
from sae_bench.measure.properties import NO_MODEL, Property
from sae_bench.measure.properties.shrinkage.series import shrinkage_notes, shrinkage_series
from sae_bench.measure.properties.shrinkage.token_losses import token_tables
from sae_bench.measure.uncertainty import leave_one_out, ratio_or_undefined, standard_error

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats
    from sae_bench.measure.shared.scales import Scales

QUANTILES = {"per_feature_scale_p5": 0.05, "per_feature_scale_p50": 0.5, "per_feature_scale_p95": 0.95}
RESCALABLE = 0.1
"Least share of the held-out KL that per-feature scales recover in a rescalable SAE."
NOTICEABLE = 0.01
"Least gain, as a share of the loss, that counts as suppression."
CERTAIN = 3.0
"Least gain, in its standard errors, that counts as suppression."
NO_DECODER = "the SAE shows no decoder, so its features cannot be scaled"
NO_ERROR = "the reconstruction has no error, so there is nothing to gain"

KL_FAMILY = "KL on odd documents, by scaling"
KL_GAIN = "Share of the KL removed, by scaling"
MSE_GAIN = "Share of the squared error removed, by scaling"

METRICS = (
    Metric(
        "gamma_centred",
        "ratio",
        "target",
        "length of the reconstruction over its best length, decoder bias left out",
        target=1.0,
        noise_free=True,
    ),
    Metric("gamma", "ratio", "reported", "length of the reconstruction over its best length", noise_free=True),
    Metric("l2_ratio", "ratio", "reported", "mean norm of the reconstruction over the activation's", noise_free=True),
    Metric("uniform_scale", "ratio", "reported", "s*, the scale of all features that fits best", noise_free=True),
    Metric("free_features", "features", "reported", "features that fire often enough for a scale", noise_free=True),
    *(
        Metric(name, "ratio", "reported", f"{q:.0%} quantile of t*, the best scale of each feature", noise_free=True)
        for name, q in QUANTILES.items()
    ),
    Metric("mse_heldout", "", "reported", "mean squared error norm, on odd documents", noise_free=True),
    Metric(
        "mse_uniform", "", "reported", "mean squared error norm after scaling by s*, on odd documents", noise_free=True
    ),
    Metric(
        "mse_per_feature",
        "",
        "reported",
        "mean squared error norm after scaling by t*, on odd documents",
        noise_free=True,
    ),
    Metric(
        "mse_gain_uniform",
        "share",
        "reported",
        "share of the squared error removed by scaling with s*",
        noise_free=True,
        family=MSE_GAIN,
        condition="uniform",
    ),
    Metric(
        "mse_gain_per_feature",
        "share",
        "reported",
        "share of the squared error removed by scaling with t*",
        noise_free=True,
        family=MSE_GAIN,
        condition="per_feature",
    ),
    Metric(
        "kl_heldout",
        "nats",
        "reported",
        "KL of the unscaled SAE, on odd documents",
        noise_free=True,
        family=KL_FAMILY,
        condition="unscaled",
    ),
    Metric(
        "kl_uniform",
        "nats",
        "reported",
        "KL after scaling by s*, on odd documents",
        noise_free=True,
        family=KL_FAMILY,
        condition="uniform",
    ),
    Metric(
        "kl_per_feature",
        "nats",
        "reported",
        "KL after scaling by t*, on odd documents",
        noise_free=True,
        family=KL_FAMILY,
        condition="per_feature",
    ),
    Metric(
        "kl_gain_uniform",
        "share",
        "reported",
        "share of the KL removed by scaling with s*",
        noise_free=True,
        family=KL_GAIN,
        condition="uniform",
    ),
    Metric(
        "kl_gain_per_feature",
        "share",
        "reported",
        "share of the KL removed by scaling with t*",
        noise_free=True,
        family=KL_GAIN,
        condition="per_feature",
    ),
    Metric(
        "kl_norm_corrected_gain",
        "share",
        "reported",
        "share of the KL removed by giving the reconstruction the norm of x",
        noise_free=True,
        family=KL_GAIN,
        condition="norm_corrected",
    ),
    Metric(
        "suppression_uniform_share_mse",
        "share",
        "reported",
        "share of the gain in squared error that one scale for all features brings",
        noise_free=True,
    ),
    Metric(
        "suppression_uniform_share_kl",
        "share",
        "reported",
        "share of the gain in KL that one scale for all features brings",
        noise_free=True,
    ),
    Metric("rescalable", "", "reported", "1 when scaling the features removes 10% of the KL", noise_free=True),
)


def measure(bench: Bench) -> Measurement:
    """Measure lengths of every kept token, and losses of the odd documents as they are and under each scaling."""
    from sae_bench.measure.shared.scales import MINIMUM_FIRINGS, RIDGE, decoder_bias

    if bench.n_documents < 2:
        raise MeasurementError(
            f"scales are scored on odd documents, but {bench.n_documents} document is measured and that is document 0; "
            f"measure at least 2 (--sae-documents)"
        )
    scales = _scales(bench)
    tables = bench.collect(lambda batch: token_tables(bench, batch, scales), "shrinkage")
    sums = {name: bench.per_cluster(table) for name, table in tables.items()}
    estimates = {**_length_estimates(bench, sums), **_scale_estimates(scales), **_loss_estimates(sums)}
    constant = decoder_bias(bench)
    return Measurement(
        estimates,
        bench.clusters,
        series=shrinkage_series(scales) if scales is not None else {},
        settings={"include_bos": bench.include_bos, "minimum_firings": MINIMUM_FIRINGS, "ridge": RIDGE},
        notes=shrinkage_notes(scales, has_bias=constant is None or bool(constant.any())),
    )


def _scales(bench: Bench) -> Scales | None:
    """Return the fitted scales; None for an object without a decoder, whose features cannot be scaled one by one."""
    from sae_bench.measure.shared.scales import fit_sae_scales

    try:
        _ = bench.sae.W_dec
    except MeasurementError:
        return None
    return fit_sae_scales(bench)


def _length_estimates(bench: Bench, sums: dict[str, Floats]) -> dict[str, Estimate]:
    if not sums["written"].sum() > 0:
        raise MeasurementError(
            f"no feature writes anything on the {int(bench.keep.sum())} tokens measured, so the reconstruction has no "
            f"length of its own; check the encoder's biases and thresholds, and that the SAE belongs to this site"
        )
    return {
        "gamma_centred": Ratio(sums["written"], sums["written_target"]),
        "gamma": Ratio(sums["xhat"], sums["xhat_x"]),
        "l2_ratio": Ratio(sums["norm_ratio"], sums["has_norm"]),
    }


def _scale_estimates(scales: Scales | None) -> dict[str, Estimate]:
    """Return numbers of the fit; like the fit itself they belong to the whole corpus, not to the documents measured."""
    if scales is None:
        return {name: Undefined(NO_DECODER) for name in ("uniform_scale", "free_features", *QUANTILES)}
    t = scales.per_feature.numpy()
    return {
        "uniform_scale": Exact(scales.uniform),
        "free_features": Exact(float(scales.free.sum())),
        **{name: Exact(float(np.quantile(t, q))) for name, q in QUANTILES.items()},
    }


def _loss_estimates(sums: dict[str, Floats]) -> dict[str, Estimate]:
    """Return held-out losses, gains and shares; Undefined without a fit, or where there is no loss to gain."""
    scored = sums["scored"]
    estimates: dict[str, Estimate] = {}
    if "kl/heldout" not in sums:
        estimates = {metric.name: Undefined(NO_MODEL) for metric in METRICS if "kl" in metric.name.split("_")}
        estimates["rescalable"] = Undefined(NO_MODEL)
    for loss in ("mse", "kl") if "kl/heldout" in sums else ("mse",):
        for condition in ("heldout", "uniform", "per_feature"):
            table = sums.get(f"{loss}/{condition}")
            estimates[f"{loss}_{condition}"] = Undefined(NO_DECODER) if table is None else Ratio(table, scored)
        for condition in ("uniform", "per_feature"):
            estimates[f"{loss}_gain_{condition}"] = _gain(sums, loss, condition)
        estimates[f"suppression_uniform_share_{loss}"] = _uniform_share(
            sums, loss, estimates[f"{loss}_gain_per_feature"]
        )
    if "kl/heldout" in sums:
        estimates["kl_norm_corrected_gain"] = _gain(sums, "kl", "norm_corrected")
        estimates["rescalable"] = _rescalable(estimates["kl_gain_per_feature"])
    return estimates


def _gain(sums: dict[str, Floats], loss: str, condition: str) -> Estimate:
    before, after = sums[f"{loss}/heldout"], sums.get(f"{loss}/{condition}")
    if after is None:
        return Undefined(NO_DECODER)
    return ratio_or_undefined(before - after, before, NO_ERROR)


def _uniform_share(sums: dict[str, Floats], loss: str, gain: Estimate) -> Estimate:
    if isinstance(gain, Undefined):
        return gain
    error = standard_error(gain)
    if error is None or gain.value <= max(NOTICEABLE, CERTAIN * error):
        error_text = "of unknown error" if error is None else f"± {error:.2%}"
        return Undefined("no suppression", f"scaling each feature gains {gain.value:.2%} {error_text}")
    before = sums[f"{loss}/heldout"]
    return Ratio(before - sums[f"{loss}/uniform"], before - sums[f"{loss}/per_feature"])


def _rescalable(gain: Estimate) -> Estimate:
    if not isinstance(gain, Ratio):
        return gain
    gained, loss = gain.numerator.sum() - gain.numerator, gain.denominator.sum() - gain.denominator
    value = float(gain.value > RESCALABLE)
    return Influence(value, leave_one_out((gained > RESCALABLE * loss).astype(np.float64), value))


PROPERTY = Property(
    name="shrinkage",
    question="Is the reconstruction too short, uniformly or feature by feature, and what does it cost?",
    primary_metric="gamma_centred",
    metrics=METRICS,
    limits=("gamma_centred:min:0.95", "gamma_centred:max:1.05"),
    measure=measure,
    marker="fidelity",
    needs_model=False,
)
