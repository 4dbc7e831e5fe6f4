"""Choice of the features to steer, by their density on the half of the documents that chooses.

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
"Range of the density, on the selection half, of the features that are steered."
STRATA = 8
"Strata of density from which features are drawn in turn."
SELECTION_DOCUMENTS = 512
"Most documents of the selection half that are used; the same ones in every tier."


def firing_counts(bench: Bench, documents: Sequence[int]) -> tuple[Tensor, int]:
    """Return int64 (n,) kept tokens on which each feature's code is above 0, and the number of tokens."""
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
    """Choose alive features of a density in `DENSITY`, drawn from `STRATA` strata of density in turn.

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
    passing = torch.ones_like(count, dtype=torch.bool)
    stage_counts = [f"{len(count)} features"]
    alive = passing
    for index, (condition, passes) in enumerate(stages):
        passing = passing & passes
        stage_counts.append(f"{int(passing.sum())} {condition}")
        alive = passing if index == 1 else alive
        if not bool(passing.any()):
            raise MeasurementError(
                f"no feature can be steered: {', '.join(stage_counts)}; the last filter left none. Check that the SAE "
                f"belongs to this model, site and corpus, or use a larger corpus"
            )
    candidates = passing.nonzero().flatten().numpy()
    ranked = candidates[np.argsort(density.numpy()[candidates], kind="stable")]
    strata = [keyed_order(stratum.tolist(), seed, "features") for stratum in np.array_split(ranked, STRATA)]
    rounds = range(max(len(stratum) for stratum in strata))
    order = [stratum[turn] for turn in rounds for stratum in strata if turn < len(stratum)]
    return FeatureChoice(tuple(order), tuple(alive.nonzero().flatten().tolist()), density)
