"""Effects of directions on target sets, over strengths and prompts.

Shapes: D directions, A pairs of a direction and a target set, C directions that others are compared with, F target
sets, P prompts, K strengths, d site width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.measure.arrays import Floats
from sae_bench.measure.properties.steering.target_tokens import TargetTokens
from sae_bench.measure.shared.last_position import LastPositionRunner
from sae_bench.measure.shared.prompts import Prompt
from sae_bench.measure.shared.unit_strength import unit_strength

STRENGTHS = (-2, -1, 0, 1, 2)
"Multiples k of the unit strength."
PROMPT_TOKENS = 64
"Tokens of a prompt, at most."


@dataclass(frozen=True, eq=False)
class SteeringResponses:
    """Effects of directions: mean logit of a target set minus the vocabulary's mean logit, nats."""

    effect: Floats
    "(A, P, K) of every pair."
    kl: Floats
    "(A, P, K) KL from the clean model, nats; 0 at strength 0."
    ce: Floats
    "(A, P, K) loss of the token that follows, nats."
    slopes: NDArray[np.float32]
    "(C, P, F) least-squares slope over the strengths, on every target set."


def last_prompt_position(bench: Bench, document: int) -> int | None:
    """Return the last kept position within `PROMPT_TOKENS` that has a next token; None without one."""
    positions = bench.site_data.keep_ce[document, :PROMPT_TOKENS].nonzero().flatten()
    return int(positions[-1]) if len(positions) else None


def document_prompt(bench: Bench, document: int) -> tuple[Prompt, int]:
    """Return a document up to its last kept position, and the token that follows."""
    last = last_prompt_position(bench, document)
    assert last is not None
    data, device = bench.site_data, bench.settings.device
    tokens = bench.corpus.tokens[document]
    prompt = Prompt(
        name=f"document {document}",
        tokens=tokens[: last + 1].to(device),
        block_input=data.block_input[document, : last + 1].to(device),
        x=data.x[document, : last + 1].to(device),
    )
    return prompt, int(tokens[last + 1])


def measure_responses(
    bench: Bench,
    runner: LastPositionRunner,
    documents: Sequence[int],
    directions: Tensor,
    pairs: Sequence[tuple[int, int]],
    compared: Sequence[int],
    targets: TargetTokens,
) -> SteeringResponses:
    """Add every strength of every direction to the last position of every prompt.

    Args:
        bench: the SAE's bench.
        runner: of the bench's model and site.
        documents: whose prompts are steered.
        directions: (D, d) unit vectors.
        pairs: (direction, target set) to score in full; a direction may occur with several target sets.
        compared: directions whose slopes are measured on every target set.
        targets: all target sets.
    """
    count, sets = len(directions), targets.weights.shape[1]
    nonzero = torch.tensor([k for k in STRENGTHS if k != 0], dtype=torch.float32, device=directions.device)
    shifts = (unit_strength(bench) * nonzero[None, :, None] * directions[:, None, :]).flatten(0, 1)  # (D * moving, d)
    direction_of, target_of = (torch.tensor(each) for each in zip(*pairs, strict=True))  # (A,) each
    shape = (len(pairs), len(documents), len(nonzero))
    effect, kl, ce = (np.zeros(shape) for _ in range(3))
    clean_effect, clean_ce = np.zeros((len(documents), sets)), np.zeros(len(documents))
    slopes = np.zeros((len(compared), len(documents), sets), dtype=np.float32)
    weights = nonzero.cpu() / nonzero.square().sum().cpu()
    for at, document in enumerate(documents):
        prompt, following = document_prompt(bench, document)
        clean = next(runner.log_probs(prompt, prompt.last[None]))[0]
        clean_effect[at] = targets.effect(clean)[0].double().cpu()
        clean_ce[at] = -float(clean[0, following])
        rows = []
        for log_probs, _ in runner.log_probs(prompt, prompt.last + shifts):
            gap = (clean.exp() * (clean - log_probs)).sum(-1)
            rows.append((targets.effect(log_probs), gap, -log_probs[:, following]))
        effects, gap, loss = (
            torch.cat(each).cpu().view(count, len(nonzero), *each[0].shape[1:]) for each in zip(*rows, strict=True)
        )
        effect[:, at], kl[:, at], ce[:, at] = (
            effects[direction_of, :, target_of].double(),
            gap[direction_of].double(),
            loss[direction_of].double(),
        )
        slopes[:, at] = torch.einsum("dkf,k->df", effects[list(compared)], weights)
        bench.show_progress("steering", at + 1, len(documents))
    unsteered = clean_effect[:, target_of.numpy()].T[:, :, None]  # (A, P, 1)
    return SteeringResponses(
        effect=_with_clean(effect, unsteered),
        kl=_with_clean(kl, np.zeros_like(unsteered)),
        ce=_with_clean(ce, np.broadcast_to(clean_ce[None, :, None], unsteered.shape)),
        slopes=slopes,
    )


def _with_clean(steered: Floats, clean: Floats) -> Floats:
    """Return (A, P, K) effects of all strengths from those of the others and of strength 0."""
    middle = STRENGTHS.index(0)
    return np.concatenate([steered[..., :middle], clean, steered[..., middle:]], axis=-1)
