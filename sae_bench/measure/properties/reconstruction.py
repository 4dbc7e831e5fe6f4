"""Accuracy of the reconstruction, in squared error and in direction.

    fvu                 sum ‖x̂ - x‖² / sum ‖x - x̄‖², over kept tokens; x̄ is the mean of the whole pinned corpus
    explained_variance  1 - fvu
    cosine              mean of cos(x, x̂)

x̄ comes from the corpus, not from the documents measured, so the denominator of a document is the same in every tier.
The common variants (a squared mean over dimensions, means of per-batch ratios) are wrong: they reward an offset or
depend on the batch size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sae_bench.measure.measurement import Measurement, Metric, Ratio, Series
from sae_bench.measure.properties import Property
from sae_bench.measure.tables import log_counts, log_edges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats

GROUPS = 20
"Groups of equally many tokens, by the norm of the activation."

METRICS = (
    Metric("fvu", "share", "lower", "share of the activations' variance that is lost", noise_free=True),
    Metric(
        "explained_variance",
        "share",
        "higher",
        "share of the variance that the reconstruction retains",
        noise_free=True,
    ),
    Metric("mse", "", "reported", "mean squared error norm of a token", noise_free=True),
    Metric("cosine", "cosine", "reported", "mean cosine of activation and reconstruction", noise_free=True),
    Metric("error_norm", "", "reported", "mean norm of the error", noise_free=True),
    Metric("activation_norm", "", "reported", "mean norm of the activation", noise_free=True),
)


def measure(bench: Bench) -> Measurement:
    """Measure squared errors, norms and cosines of every kept token."""
    mean = bench.site_data.mean.to(bench.settings.device)

    def tokens(batch: Batch) -> dict[str, Tensor]:
        x, xhat = batch.x.double(), bench.reconstruct(batch).double()  # (docs, pos, d)
        norm = x.norm(dim=-1)  # (docs, pos)
        return {
            "error": (xhat - x).square().sum(-1),
            "variance": (x - mean).square().sum(-1),
            "cosine": (x * xhat).sum(-1) / (norm * xhat.norm(dim=-1)).clamp_min(1e-30),
            "error_norm": (xhat - x).norm(dim=-1),
            "norm": norm,
        }

    tables = bench.collect(tokens, "reconstruction")
    sums = {name: bench.per_cluster(table) for name, table in tables.items()}
    count = bench.per_cluster(bench.keep)
    return Measurement(
        {
            "fvu": Ratio(sums["error"], sums["variance"]),
            "explained_variance": Ratio(sums["variance"] - sums["error"], sums["variance"]),
            "mse": Ratio(sums["error"], count),
            "cosine": Ratio(sums["cosine"], count),
            "error_norm": Ratio(sums["error_norm"], count),
            "activation_norm": Ratio(sums["norm"], count),
        },
        bench.clusters,
        _series({name: table.numpy()[bench.keep.cpu().numpy()] for name, table in tables.items()}),
    )


def _series(tokens: Mapping[str, Floats]) -> dict[str, Series]:
    """Return distributions over kept tokens; ``tokens`` holds (tokens,) by name."""

    def histogram(values: Floats, title: str, x: str) -> Series:
        columns = {"edges": log_edges().tolist(), "tokens": log_counts(values)}
        return Series("histogram", columns, title, x, log_x=True)

    lost_share = tokens["error"] / np.maximum(tokens["variance"], 1e-30)
    groups = [rows for rows in np.array_split(np.argsort(tokens["norm"], kind="stable"), GROUPS) if len(rows)]
    quartiles = {
        f"p{q}": [float(np.quantile(tokens["error_norm"][rows], q / 100)) for rows in groups] for q in (25, 50, 75)
    }
    return {
        "fvu": histogram(
            lost_share, "Share of its variance that a token loses", "squared error over squared deviation"
        ),
        "token_cosine": histogram(1 - tokens["cosine"], "Direction of a token's reconstruction", "1 - cosine"),
        "error_by_norm": Series(
            "curve",
            {"x": [float(np.median(tokens["norm"][rows])) for rows in groups], **quartiles},
            "Norm of the error, by norm of the activation",
            "norm of the activation",
        ),
    }


PROPERTY = Property(
    name="reconstruction",
    question="How much of the activation does the reconstruction keep?",
    primary_metric="fvu",
    metrics=METRICS,
    limits=("fvu:5%", "explained_variance:min:0.5"),
    measure=measure,
    marker="fidelity",
    needs_model=False,
)
