"""Distributions of KL for reports: by arm, by position, by document and by token type. Binned, never raw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_bench.measurement import Floats, Series
from sae_bench.properties._kl_tokens import type_sums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sae_bench.bench import Bench

SHOWN = ("sae", "isotropic", "covariance", "real_difference", "norm_corrected", "sae_norm")
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
SMALLEST, LARGEST = 1e-6, 1e2
TEXTS = 24
"Documents kept as text: those that lose most, which are those that a change shows in."


def kl_series(bench: Bench, tables: Mapping[str, Tensor]) -> dict[str, Series]:
    """Series of one measurement; ``tables`` holds ``kl/<arm>`` as (documents, pos)."""
    keep = bench.keep.cpu().numpy()
    arms = {arm: tables[f"kl/{arm}"].cpu().numpy() for arm in SHOWN}
    kept = {arm: table[keep] for arm, table in arms.items()}
    edges = np.geomspace(SMALLEST, LARGEST, 65)
    counts = {arm: np.histogram(values.clip(SMALLEST, LARGEST), edges)[0].tolist() for arm, values in kept.items()}
    positions = np.flatnonzero(keep.any(0))
    return {
        "kl_tokens": Series(
            "histogram", {"edges": edges.tolist(), **counts}, "KL of a token, by arm", "nats", log_x=True
        ),
        "kl_quantiles": Series(
            "quantiles",
            {"q": list(QUANTILES), **{arm: np.quantile(values, QUANTILES).tolist() for arm, values in kept.items()}},
            "Quantiles of a token's KL",
            "share of tokens",
        ),
        "kl_position": Series(
            "curve",
            {
                "x": positions.tolist(),
                **{arm: _position_means(table, keep)[positions].tolist() for arm, table in arms.items()},
            },
            "Mean KL by position",
            "position in the document",
        ),
        "kl_documents": Series(
            "table",
            {"document": list(range(bench.documents)), "kl_sae": _document_means(arms["sae"], keep).tolist()},
            "Mean KL of each document",
            "document",
        ),
        "kl_types": _types(bench, tables),
        "kl_text": _texts(bench, arms["sae"], keep),
    }


def _texts(bench: Bench, kl: Floats, keep: NDArray[np.bool_]) -> Series:
    """The documents with the largest mean KL, token by token."""
    worst = np.sort(np.argsort(-_document_means(kl, keep), kind="stable")[:TEXTS])
    rows = [(int(document), int(at)) for document in worst for at in np.flatnonzero(keep[document])]
    tokens = bench.corpus.tokens
    return Series(
        "table",
        {
            "document": [document for document, _ in rows],
            "token": [bench.token_text(int(tokens[row])) for row in rows],
            "kl": [float(f"{kl[row]:.3g}") for row in rows],
        },
        "Documents that lose most, as text",
        "nats",
    )


def _position_means(table: Floats, keep: NDArray[np.bool_]) -> Floats:
    return np.asarray((table * keep).sum(0) / np.maximum(keep.sum(0), 1), dtype=np.float64)


def _document_means(table: Floats, keep: NDArray[np.bool_]) -> Floats:
    return np.asarray((table * keep).sum(1) / np.maximum(keep.sum(1), 1), dtype=np.float64)


def _types(bench: Bench, tables: Mapping[str, Tensor]) -> Series:
    """The funnel: frequency, mean gap and its standard error for every listed token type."""
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
    )
