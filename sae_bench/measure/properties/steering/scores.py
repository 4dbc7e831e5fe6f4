"""Output and input score of a feature (Arad, Mueller and Belinkov 2025, arXiv 2505.20063).

With T the 20 tokens that the feature's direction raises most through the final norm and the unembedding:

    output score   (1 - min rank of T / V) * largest probability in T, when the feature is raised by 10 times the
                   largest activation at a prompt's last position
    input score    share of the feature's strongest contexts whose token is in T

Shapes: F features, P prompts, d site width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.measure.arrays import Floats
from sae_bench.measure.properties.steering.responses import document_prompt
from sae_bench.measure.shared.last_position import LastPositionRunner

LENS_TOKENS = 20
AMPLIFICATION = 10.0
CONTEXTS = 20
"Documents with a feature's strongest activations, one activation each."


def lens_tokens(bench: Bench, directions: Tensor) -> Tensor | None:
    """Return int64 (F, 20) tokens that directions (F, d) raise most; None where the site has another width."""
    if bench.site.kind == "attn.hook_z" or directions.shape[-1] != bench.model.d_model:
        return None
    return bench.model.final_logits(directions).topk(min(LENS_TOKENS, bench.model.d_vocab), dim=-1).indices


def output_scores(
    bench: Bench, runner: LastPositionRunner, documents: Sequence[int], directions: Tensor, lens: Tensor
) -> Floats:
    """Return (F, P) output scores of unit directions (F, d) with their lens tokens (F, 20).

    The SAE's error stays in the activation, so raising a feature adds a multiple of its direction.
    """
    scores = np.zeros((len(directions), len(documents)))
    for column, document in enumerate(documents):
        prompt, _ = document_prompt(bench, document)
        inputs = bench.source.x[document, len(prompt.tokens) - 1][None]  # (1, d_in)
        with torch.no_grad():
            codes = bench.sae.encode(inputs.to(bench.settings.device)).float() * bench.decoder_norms
        raised = prompt.last + AMPLIFICATION * codes.max() * directions
        for log_probs, rows in runner.log_probs(prompt, raised):
            best = log_probs.gather(1, lens[rows]).amax(-1)  # (rows,)
            above = (log_probs > best[:, None]).sum(-1)
            scores[rows, column] = ((1 - above / log_probs.shape[-1]) * best.exp()).double().cpu()
        bench.show_progress("steering: output scores", column + 1, len(documents))
    return scores


def input_scores(bench: Bench, documents: Sequence[int], features: Sequence[int], lens: Tensor) -> Floats:
    """Return (F,) input scores over the documents in which a feature fires strongest."""
    rows, data = torch.tensor(features), bench.site_data
    strongest, tokens = [], []
    for document in documents:
        keep = data.keep[document]
        best = bench.document_codes(document)[:, rows].cpu().max(0)
        strongest.append(best.values)
        tokens.append(bench.corpus.tokens[document][keep][best.indices])
    top = torch.stack(strongest).topk(min(CONTEXTS, len(documents)), dim=0)  # (contexts, F)
    context_tokens = torch.stack(tokens).gather(0, top.indices)
    hits = (context_tokens[..., None] == lens.cpu()[None]).any(-1) & (top.values > 0)
    shares = hits.double().sum(0) / (top.values > 0).sum(0)
    return shares.numpy().astype(np.float64)
