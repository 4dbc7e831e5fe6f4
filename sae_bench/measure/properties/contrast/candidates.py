"""Candidate features for steering a trait, by their activation on the answers and by their first-order effect.

Shapes: n SAE features, N samples, d site width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.engine.noise_pool import keyed_generator
from sae_bench.measure.properties.contrast.propensity import TokenisedPair, measure_propensities, propensity_slopes
from sae_bench.measure.shared.last_position import LastPositionRunner
from sae_bench.measure.shared.prompts import last_sae_inputs
from sae_bench.sae import unit_directions

SCREENED = 32
"Questions that rank features by their first-order effect."
ACTIVE = 0.1
"Share of the questions on which a feature must be active to be chosen by its activation."


def propensity_gradient(
    bench: Bench, runner: LastPositionRunner, questions: Sequence[TokenisedPair], dataset: str
) -> Tensor:
    """Return float64 (d,) mean slope of propensity along each coordinate of the site, by central differences.

    To first order the mean slope of any direction is its inner product with this, so one pass ranks every feature of
    every SAE; it takes `SCREENED` questions and is the same for all SAEs of a site.
    """

    def compute() -> Tensor:
        axes = torch.eye(bench.site_data.x.shape[-1], device=bench.settings.device)
        # Drawn, because a file may be sorted by a factor or walk through its levels in a fixed step.
        drawn = torch.randperm(len(questions), generator=keyed_generator(bench.settings.seed, "screening"))[:SCREENED]
        screened = [questions[index] for index in sorted(drawn.tolist())]
        ends = (-0.5, 0.5)
        slopes = propensity_slopes(
            measure_propensities(bench, runner, screened, axes, "contrast: screening", ends), ends
        )
        return torch.from_numpy(slopes.mean(1))

    return bench.site_data.shared(("contrast gradient", dataset, bench.settings.seed), compute)


def choose_candidates(
    bench: Bench, questions: Sequence[TokenisedPair], gradient: Tensor, count: int
) -> tuple[list[int], Tensor]:
    """Return candidate features and the sign with which they steer: (at most 2 * count,) each.

    Half by their activation, which differs most steadily between the answers (mean over its own spread, so
    that rescaling a feature changes nothing; active on a tenth of the questions). Half by their effect: largest
    first-order slope by ``gradient`` (d,) of those that fire on the corpus.
    """
    inputs = last_sae_inputs(
        bench, [each for sample in questions for each in sample.prompts_with_answers]
    )  # (2 N, d_in)
    with torch.no_grad():
        codes = bench.sae.encode(inputs).double().cpu().view(len(questions), 2, -1)
    difference = codes[:, 0] - codes[:, 1]  # (N, n)
    mean, spread = difference.mean(0), difference.std(0)
    written = bench.decoder_norms.cpu() > 0
    eligible = ((codes != 0).any(1).double().mean(0) >= ACTIVE) & (mean != 0) & written
    steadiness = torch.where(eligible, mean.abs() / (spread + 1e-6 * codes.abs().amax((0, 1))), 0.0)
    first_order = unit_directions(bench.sae).double().cpu() @ gradient * (bench.firing.alive & written)
    signs: dict[int, float] = {}
    for score, sign in ((steadiness, mean.sign()), (first_order.abs(), first_order.sign())):
        for index in score.topk(min(count, len(score))).indices.tolist():
            if score[index] > 0:
                signs.setdefault(index, float(sign[index]))
    return list(signs), torch.tensor(list(signs.values()))
