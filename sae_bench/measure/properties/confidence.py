"""Change of the model's confidence through the SAE: entropy, temperature and the final norm's scale.

    entropy_shift          mean H(Q) - H(P) over kept tokens: P clean, Q with the reconstruction in place of x
    temperature_share      1 - sum min_b KL(P || softmax(b log Q)) / sum KL(P || Q): the share temperature undoes
    kl_frozen              KL with the final norm's scale at its clean value, Q's residual stream otherwise
    kl_frozen_difference   kl_frozen - KL; below 0 the norm's scale does the damage, above 0 it hides some
    log_scale_shift        mean log of the final norm's scale, Q over P
    scale_correlation      Spearman over tokens of entropy shift and log scale shift

A model sets its confidence by the length of its last residual vectors (entropy neurons: Stolfo et al., arXiv
2406.16254, who compare effects with the scale recomputed and frozen). The frozen effect is a difference, because as a
share it is minus infinity when only the length changes. A large share at a uniform temperature is cheap to repair; the
rest of the KL is not. Metrics with ``_isotropic`` use noise of the error's own norm, one draw per token. Nats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.measurement import Estimate, Influence, Measurement, Metric, Ratio, Undefined
from sae_bench.measure.properties import Property
from sae_bench.measure.uncertainty import ratio_or_undefined

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats
    from sae_bench.model.language_model import Model

STEPS = 8
"Newton steps towards the best temperature; the divergence is convex in its inverse."
_RANGE = 4.0
"A step changes the inverse temperature by at most this factor."
_CLOSE = 1e-3
"A last step of this size leaves less than a millionth of the divergence."
_ROWS = 64
"Rows whose temperatures are fitted together."
_LEAST = -1e4
"Log-probabilities below it are probabilities of 0 in float32 at every temperature of interest."

_MEANINGS = (
    ("entropy_shift", "nats", "rise of the next-token entropy"),
    ("temperature_share", "share", "share of the KL that the best temperature for each token undoes"),
    ("kl_frozen", "nats", "KL with the final norm's scale as in the clean run"),
    ("kl_frozen_difference", "nats", "kl_frozen minus the KL with the scale recomputed"),
    ("log_scale_shift", "", "rise of the logarithm of the final norm's scale"),
    ("scale_correlation", "", "Spearman over tokens of entropy shift and log scale shift"),
)
_NOISE = "_isotropic"
METRICS = (
    Metric("entropy_clean", "nats", "reported", "entropy of the clean model's next token", noise_free=True),
    *(Metric(name, unit, "reported", meaning, noise_free=True) for name, unit, meaning in _MEANINGS),
    *(
        Metric(name + _NOISE, unit, "reported", f"{meaning}, with isotropic noise of the error's norm in its place")
        for name, unit, meaning in _MEANINGS
    ),
)


def measure(bench: Bench) -> Measurement:
    """Measure entropies, best temperatures and frozen divergences of the SAE and of noise at every kept token."""
    tables = bench.collect(lambda batch: _tokens(bench, batch), "confidence")
    estimates: dict[str, Estimate] = {"entropy_clean": _mean(bench, tables["entropy_clean"])}
    for suffix in ("", _NOISE):
        condition_estimates = _condition_estimates(
            bench, {name: tables[name + suffix] for name in ("entropy", "kl", "tempered", "frozen", "scale")}
        )
        estimates |= {name + suffix: estimate for name, estimate in condition_estimates.items()}
    return Measurement(estimates, bench.clusters, settings={"include_bos": bench.include_bos})


def _condition_estimates(bench: Bench, tables: dict[str, Tensor]) -> dict[str, Estimate]:
    kl = bench.per_cluster(tables["kl"])
    recovered = bench.per_cluster(tables["kl"] - tables["tempered"])
    return {
        "entropy_shift": _mean(bench, tables["entropy"]),
        "temperature_share": ratio_or_undefined(recovered, kl, "no prediction changes, so there is no KL"),
        "kl_frozen": _mean(bench, tables["frozen"]),
        "kl_frozen_difference": _mean(bench, tables["frozen"] - tables["kl"]),
        "log_scale_shift": _mean(bench, tables["scale"]),
        "scale_correlation": rank_correlation(bench, tables["entropy"], tables["scale"]),
    }


def _mean(bench: Bench, table: Tensor) -> Ratio:
    return Ratio(bench.per_cluster(table), bench.per_cluster(bench.keep))


def _tokens(bench: Bench, batch: Batch) -> dict[str, Tensor]:
    """Return (docs, pos) tables of one batch."""
    import torch

    from sae_bench.engine import noise_floors
    from sae_bench.engine.batch import scatter
    from sae_bench.model.unembed import rows_at_once

    x, error = batch.x, bench.error(batch)
    noise = noise_floors.isotropic(x, error, bench.noise_pool(), bench.draw(batch, "isotropic", 0))
    clean, with_sae, with_noise = (
        bench.final_residual(batch, value) for value in (x, x + error, noise)
    )  # (rows, d_model)
    # About four tables over the vocabulary are alive at once.
    step = rows_at_once(bench.model.d_vocab, bench.settings.memory_bytes // (4 * 4), x.device)
    pieces = zip(*(torch.split(each, step) for each in (clean, with_sae, with_noise)), strict=True)
    parts = [_rows(bench.model, *piece) for piece in pieces]
    return {name: scatter(torch.cat([part[name] for part in parts]), batch.keep) for name in parts[0]}


def _rows(model: Model, clean: Tensor, with_sae: Tensor, with_noise: Tensor) -> dict[str, Tensor]:
    """Return (rows,) float64 each, from final residual vectors (rows, d_model)."""
    from sae_bench.engine.divergence import entropy, kl_divergence, log_softmax_

    logp, scale = log_softmax_(model.final_logits(clean)), model.norm_scale(clean)
    values_by_name = {"entropy_clean": entropy(logp)}
    for suffix, resid in {"": with_sae, _NOISE: with_noise}.items():
        logq = model.final_logits(resid)
        values_by_name["kl" + suffix] = kl_divergence(logp, logq)
        values_by_name["entropy" + suffix] = entropy(logq) - values_by_name["entropy_clean"]
        values_by_name["tempered" + suffix] = tempered_kl(logp, logq)
        values_by_name["frozen" + suffix] = kl_divergence(logp, model.final_logits(resid, scale=scale))
        values_by_name["scale" + suffix] = (model.norm_scale(resid) / scale).log().squeeze(-1)
    return {name: values.double() for name, values in values_by_name.items()}


def tempered_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """Return (rows,) the least KL(P || softmax(b log Q)) over inverse temperatures b > 0, by Newton's method.

    Never above the KL at b = 1.
    """
    import torch

    # A few rows at a time stay in caches over all steps.
    pieces = zip(torch.split(logp, _ROWS), torch.split(logq, _ROWS), strict=True)
    return torch.cat([_tempered(*piece) for piece in pieces])


def _tempered(logp: Tensor, logq: Tensor) -> Tensor:
    p, z = logp.exp(), logq.clamp_min(_LEAST)
    entropy, aim = (p * logp).sum(-1), (p * z).sum(-1)
    b = z.new_ones(len(z))
    best = (p * (logp - logq)).sum(-1)
    for _ in range(STEPS):
        weight = (z * b[:, None]).exp_()  # z is at most 0, so nothing overflows
        total = weight.sum(-1)
        best = best.minimum(entropy - b * aim + total.log())
        weight *= z
        mean = weight.sum(-1) / total
        variance = (weight.mul_(z)).sum(-1) / total - mean.square()
        step = (mean - aim) / variance.clamp_min(1e-12)
        b = (b - step).clamp_min(0).clamp(b / _RANGE, b * _RANGE)
        if bool((step.abs() < _CLOSE).all()):
            break
    return best.clamp_min(0)


def rank_correlation(bench: Bench, first: Tensor, second: Tensor) -> Estimate:
    """Return Spearman's correlation of two (documents, pos) tables over kept tokens, by leaving clusters out.

    Ranks are those of all tokens: a cluster's part of the sums of ranks is left out, nothing is ranked again.
    """
    from scipy.stats import rankdata

    from sae_bench.measure.uncertainty import leave_one_out

    keep = bench.keep.cpu().numpy()
    cluster = np.broadcast_to(np.asarray(bench.cluster_of)[:, None], keep.shape)[keep]
    a, b = (rankdata(table.cpu().numpy()[keep]) / len(cluster) - 0.5 for table in (first, second))
    if not np.ptp(a) or not np.ptp(b):
        return Undefined("the entropy or the norm's scale is the same at every token, so there is no correlation")
    columns = [np.ones_like(a), a, b, a * a, b * b, a * b]
    parts = np.stack([np.bincount(cluster, column, minlength=len(bench.clusters)) for column in columns])
    value = float(_correlation(parts.sum(1)))
    without = _correlation(parts.sum(1)[:, None] - parts)
    return Influence(value, leave_one_out(without, value))


def _correlation(sums: Floats) -> Floats:
    """Return Pearson's correlation from n, sum a, sum b, sum a², sum b² and sum ab (6, ...)."""
    n, a, b, aa, bb, ab = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation: Floats = (n * ab - a * b) / np.sqrt((n * aa - a * a) * (n * bb - b * b))
    return correlation


PROPERTY = Property(
    name="confidence",
    question="Does the SAE change how sure the model is, rather than what it is sure of?",
    primary_metric="entropy_shift",
    metrics=METRICS,
    limits=(),
    measure=measure,
    marker="fidelity",
)
