"""Which documents choose and which are steered, and which features are steered.

Shapes: n SAE features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.errors import MeasurementError
from sae_bench.measure.shared.keyed_random import keyed_order

DENSITY = (0.001, 0.1)
"Features are steered whose density on the selection half lies in this range."
STRATA = 8
"Strata of density that features are drawn from in turn."
SELECTION_DOCUMENTS = 512
"Documents of the selection half that are looked at, at most; the same ones in every tier."


def firing_counts(bench: Bench, documents: Sequence[int]) -> tuple[Tensor, int]:
    """int64 (n,) kept tokens on which each feature's code is above 0, and the number of tokens."""
    count, tokens = torch.zeros(int(bench.sae.d_sae), dtype=torch.int64), 0
    for document in documents:
        codes = bench.document_codes(document)
        count += (codes > 0).sum(0).cpu()
        tokens += len(codes)
    return count, tokens


@dataclass(frozen=True)
class FeatureChoice:
    """Features in the order in which they are taken; a tier takes a prefix."""

    order: tuple[int, ...]
    alive: tuple[int, ...]
    "Features with a direction that fire on the selection half, by index."
    density: Tensor
    "float64 (n,) on the selection half."


def choose_features(count: Tensor, tokens: int, norms: Tensor, seed: int) -> FeatureChoice:
    """Features with a decoder direction, alive, of a density in `DENSITY`; drawn from `STRATA` strata in turn.

    Args:
        count: int64 (n,) firing tokens.
        tokens: tokens they were counted on.
        norms: (n,) decoder norms.
        seed: of the order within a stratum.

    A `MeasurementError` says which filter left none.
    """
    density = count.double() / max(tokens, 1)
    low, high = DENSITY
    stages = [
        ("with a decoder direction", norms.cpu() > 0),
        (f"that fire on the selection half ({tokens} tokens)", count > 0),
        (f"of a density of at least {low}", density >= low),
        (f"of a density of at most {high}", density <= high),
    ]
    kept = torch.ones_like(count, dtype=torch.bool)
    told = [f"{len(count)} features"]
    alive = kept
    for index, (what, passes) in enumerate(stages):
        kept = kept & passes
        told.append(f"{int(kept.sum())} {what}")
        alive = kept if index == 1 else alive
        if not bool(kept.any()):
            raise MeasurementError(
                f"no feature can be steered: {', '.join(told)}; the last filter left none, so the SAE, the site or "
                f"the corpus is not what it should be, or the corpus is too small"
            )
    candidates = kept.nonzero().flatten().numpy()
    ranked = candidates[np.argsort(density.numpy()[candidates], kind="stable")]
    strata = [keyed_order(stratum.tolist(), seed, "features") for stratum in np.array_split(ranked, STRATA)]
    rounds = range(max(len(stratum) for stratum in strata))
    order = [stratum[turn] for turn in rounds for stratum in strata if turn < len(stratum)]
    return FeatureChoice(tuple(order), tuple(alive.nonzero().flatten().tolist()), density)
