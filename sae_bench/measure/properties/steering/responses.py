"""What directions do to target sets, over strengths and prompts.

Shapes: D directions, A pairs of a direction and a target set, C directions that others are held against, F target sets,
P prompts, K strengths, d site width, V vocabulary.
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
    """Effects (mean logit of a target set minus the vocabulary's mean logit, nats) of directions."""

    effect: Floats
    "(A, P, K) of every pair."
    kl: Floats
    "(A, P, K) KL from clean, nats; 0 at strength 0."
    ce: Floats
    "(A, P, K) loss of the token that follows, nats."
    slopes: NDArray[np.float32]
    "(C, P, F) least-squares slope over the strengths, on every target set."


def last_prompt_position(bench: Bench, document: int) -> int | None:
    """The last position within `PROMPT_TOKENS` that is kept and has a next token; None in a document without one."""
    places = bench.site_data.keep_ce[document, :PROMPT_TOKENS].nonzero().flatten()
    return int(places[-1]) if len(places) else None


def document_prompt(bench: Bench, document: int) -> tuple[Prompt, int]:
    """A document up to its last kept position, and the token that follows."""
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
        pairs: which direction is scored in full on which target set; a direction may be so on several.
        compared: directions whose slopes are wanted on every target set.
        targets: all target sets.
    """
    count, sets = len(directions), targets.weights.shape[1]
    moving = torch.tensor([k for k in STRENGTHS if k != 0], dtype=torch.float32, device=directions.device)
    shifts = (unit_strength(bench) * moving[None, :, None] * directions[:, None, :]).flatten(0, 1)  # (D * moving, d)
    of, on = (torch.tensor(each) for each in zip(*pairs, strict=True))  # (A,) each
    shape = (len(pairs), len(documents), len(moving))
    effect, kl, ce = (np.zeros(shape) for _ in range(3))
    clean_effect, clean_ce = np.zeros((len(documents), sets)), np.zeros(len(documents))
    slopes = np.zeros((len(compared), len(documents), sets), dtype=np.float32)
    weights = moving.cpu() / moving.square().sum().cpu()
    for at, document in enumerate(documents):
        prompt, following = document_prompt(bench, document)
        clean = next(runner.log_probs(prompt, prompt.last[None]))[0]
        clean_effect[at] = targets.effect(clean)[0].double().cpu()
        clean_ce[at] = -float(clean[0, following])
        parts = []
        for found, _ in runner.log_probs(prompt, prompt.last + shifts):
            gap = (clean.exp() * (clean - found)).sum(-1)
            parts.append((targets.effect(found), gap, -found[:, following]))
        moved, gap, loss = (
            torch.cat(each).cpu().view(count, len(moving), *each[0].shape[1:]) for each in zip(*parts, strict=True)
        )
        effect[:, at], kl[:, at], ce[:, at] = moved[of, :, on].double(), gap[of].double(), loss[of].double()
        slopes[:, at] = torch.einsum("dkf,k->df", moved[list(compared)], weights)
        bench.show_progress("steering", at + 1, len(documents))
    still = clean_effect[:, on.numpy()].T[:, :, None]  # (A, P, 1)
    return SteeringResponses(
        effect=_with_clean(effect, still),
        kl=_with_clean(kl, np.zeros_like(still)),
        ce=_with_clean(ce, np.broadcast_to(clean_ce[None, :, None], still.shape)),
        slopes=slopes,
    )


def _with_clean(moved: Floats, clean: Floats) -> Floats:
    """(A, P, K) from the strengths that move and the one that does not."""
    middle = STRENGTHS.index(0)
    return np.concatenate([moved[..., :middle], clean, moved[..., middle:]], axis=-1)
