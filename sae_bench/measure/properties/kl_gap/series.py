"""Distributions of KL for reports, by condition, position, document and token type; binned, never raw."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Series
from sae_bench.measure.shared import packed_text
from sae_bench.measure.shared.token_type_gaps import type_sums
from sae_bench.measure.tables import log_counts, log_edges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sae_bench.engine.bench import Bench

SHOWN = ("sae", "isotropic", "covariance", "real_difference", "norm_corrected", "sae_norm")
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
POSITIONS = 32
"Most groups of neighbouring positions: single positions scatter more than they differ."


def kl_series(bench: Bench, tables: Mapping[str, Tensor]) -> dict[str, Series]:
    """Return the series of one measurement; ``tables`` holds ``kl/CONDITION`` as (documents, pos)."""
    keep = bench.keep.cpu().numpy()
    conditions = {condition: tables[f"kl/{condition}"].cpu().numpy() for condition in SHOWN}
    values_of = {condition: table[keep] for condition, table in conditions.items()}
    counts = {condition: log_counts(values) for condition, values in values_of.items()}
    return {
        "kl_tokens": Series(
            "histogram",
            {"edges": log_edges().tolist(), **counts},
            "KL of a token, by condition",
            "nats",
            log_x=True,
            chart="token_histogram",
            order=10,
        ),
        "kl_quantiles": Series(
            "quantiles",
            {
                "q": list(QUANTILES),
                **{condition: np.quantile(values, QUANTILES).tolist() for condition, values in values_of.items()},
            },
            "Quantiles of a token's KL",
            "share of tokens",
            order=20,
        ),
        "kl_position": _position_curve(conditions, keep),
        "kl_documents": Series(
            "table",
            {"document": list(range(bench.n_documents)), "kl_sae": _document_means(conditions["sae"], keep).tolist()},
            "Mean KL of each document",
            "document",
            chart="ranked_documents",
            order=42,
        ),
        "kl_types": _type_table(bench, tables),
        "kl_text": _packed_texts(bench, conditions["sae"], keep),
    }


def _packed_texts(bench: Bench, kl: Floats, keep: NDArray[np.bool_]) -> Series:
    """Return every document token by token, with the KL of each."""
    word = cache(bench.token_text)
    tokens = bench.corpus.tokens.numpy()
    return packed_text.pack_documents(
        (document, [word(int(token)) for token in tokens[document, row]], kl[document, row].tolist())
        for document, row in enumerate(keep)
    )


def _position_curve(conditions: Mapping[str, Floats], keep: NDArray[np.bool_]) -> Series:
    """Return the mean KL over neighbouring positions; the SAE's with its standard error over documents."""
    positions = np.flatnonzero(keep.any(0))
    groups = [group for group in np.array_split(positions, POSITIONS) if len(group)]
    count = np.stack([keep[:, group].sum(1) for group in groups], 1)  # (documents, groups)
    columns: dict[str, list[float]] = {"x": [float(group.mean()) for group in groups]}
    for condition, table in conditions.items():
        total = np.stack([(table * keep)[:, group].sum(1) for group in groups], 1)  # (documents, groups)
        mean = total.sum(0) / count.sum(0)
        columns[condition] = mean.tolist()
        if condition == "sae":
            scale = len(keep) / max(len(keep) - 1, 1)
            error = np.sqrt(scale * ((total - count * mean) ** 2).sum(0)) / count.sum(0)
            columns["sae_se"] = error.tolist()
    return Series("curve", columns, "Mean KL by position", "position in the document", order=40)


def _document_means(table: Floats, keep: NDArray[np.bool_]) -> Floats:
    return np.asarray((table * keep).sum(1) / np.maximum(keep.sum(1), 1), dtype=np.float64)


def _type_table(bench: Bench, tables: Mapping[str, Tensor]) -> Series:
    """Return frequency, mean gap and its standard error for every listed token type, the points of a funnel plot."""
    sums, counts, ids = type_sums(bench, tables["kl/sae"] - tables["kl/isotropic"])
    n = counts.sum(0)
    mean = sums.sum(0) / n if len(ids) else n
    residual = sums - counts * mean
    clusters = max(len(bench.clusters), 2)
    error = np.sqrt((residual**2).sum(0) * clusters / (clusters - 1)) / np.maximum(n, 1)
    return Series(
        "table",
        {
            "token": [bench.token_text(int(token)) for token in ids],
            "n": n.astype(int).tolist(),
            "gap": mean.tolist(),
            "se": error.tolist(),
        },
        "KL above isotropic noise, by token type",
        "occurrences",
        log_x=True,
        chart="token_funnel",
        order=41,
    )
