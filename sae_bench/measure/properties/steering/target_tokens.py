"""Target tokens of a feature: those that the clean model predicts more where the feature fires.

Targets never come from the feature's own direction: on the tokens that it points at, every random direction steers.

Shapes: n SAE features, F chosen features, V vocabulary, d site width, N kept positions of the selection half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sae_bench.engine.batch import Batch
from sae_bench.engine.bench import Bench
from sae_bench.errors import MeasurementError

TARGETS = 10
"Tokens of a target set."
LIKELY = 0.1
"Share of the positions that count as likely for a target set."
_TOKENS = 4096
"Tokens per pass. Fixed, so that the choice does not depend on the batch size."


@dataclass(frozen=True, eq=False)
class TargetTokens:
    """Target sets of the chosen features."""

    tokens: tuple[tuple[int, ...], ...]
    "Token ids per feature, those that rise most first."
    weights: Tensor
    "float32 (V, F): effects are ``log_probs @ weights``, the mean over a target set minus that over the vocabulary."

    def effect(self, log_probs: Tensor) -> Tensor:
        """Return (rows, F) of (rows, V): mean logit of each target set minus the mean logit of the vocabulary."""
        return log_probs @ self.weights - log_probs.mean(-1, keepdim=True)


def special_tokens(bench: Bench) -> Tensor:
    """Return bool (V,) ids that no target set may contain: special ones and those unknown to the tokenizer."""
    special = torch.zeros(bench.model.d_vocab, dtype=torch.bool)
    if bench.corpus.has_bos:
        special[bench.corpus.tokens[:, 0]] = True
    tokenizer = bench.model.tokenizer
    if tokenizer is not None:
        known = [token for token in tokenizer.all_special_ids if token < len(special)]
        special[known] = True
        special[len(tokenizer) :] = True
    return special


def find_targets(bench: Bench, documents: Sequence[int], features: Sequence[int]) -> TargetTokens:
    """Return per feature the `TARGETS` tokens whose mean clean log-probability rises most where it fires.

    Against the positions where it does not; over the kept positions of ``documents``, special tokens left out.
    """
    vocabulary, rows = bench.model.d_vocab, torch.tensor(features)
    fired_sum = torch.zeros(len(features), vocabulary, dtype=torch.float64)
    total = torch.zeros(vocabulary, dtype=torch.float64)
    fired_count, tokens = torch.zeros(len(features), dtype=torch.float64), 0
    for batch, log_probs in _clean_batches(bench, documents, "steering: targets"):
        fired = _firing_table(bench, batch)[:, rows]  # (kept, F)
        fired_sum += (fired.T @ log_probs).double().cpu()
        total += log_probs.sum(0, dtype=torch.float64).cpu()
        fired_count += fired.sum(0, dtype=torch.float64).cpu()
        tokens += len(log_probs)
    silent = tokens - fired_count
    if bool((silent == 0).any()) or bool((fired_count == 0).any()):
        raise MeasurementError("a chosen feature fires on all or on none of the selection half, so it has no targets")
    rise = fired_sum / fired_count[:, None] - (total - fired_sum) / silent[:, None]
    return build_target_sets(rise, special_tokens(bench), bench.settings.device)


def build_target_sets(rise: Tensor, special: Tensor, device: str = "cpu") -> TargetTokens:
    """Return the tokens of largest ``rise`` (F, V), none of them ``special`` (V,)."""
    usable = int((~special).sum())
    if usable <= TARGETS:
        raise MeasurementError(
            f"target sets need more than {TARGETS} tokens to choose from, and the vocabulary has {usable} that are "
            f"not special"
        )
    if bool(((rise - rise.mean(-1, keepdim=True)).abs().amax(-1) == 0).any()):
        raise MeasurementError("a chosen feature has an empty target set: where it fires no token becomes more likely")
    chosen = rise.masked_fill(special, -torch.inf).topk(TARGETS, dim=-1).indices  # (F, TARGETS)
    weights = torch.zeros(rise.shape[1], rise.shape[0])
    weights[chosen.T, torch.arange(len(rise))] = 1 / TARGETS
    return TargetTokens(tuple(tuple(row) for row in chosen.tolist()), weights.to(device))


def mean_differences(bench: Bench, documents: Sequence[int], targets: TargetTokens) -> Tensor:
    """Return (F, d) unit differences of the site's mean where a target set is likely and where it is not.

    Likely: the tenth of the selection half's positions with the largest clean effect. What a labelled direction could
    reach at best, so a ceiling.
    """
    scores = torch.cat(
        [targets.effect(log_probs).cpu() for _, log_probs in _clean_batches(bench, documents, "steering: means")]
    )
    count = max(1, round(LIKELY * len(scores)))
    likely = torch.zeros_like(scores)
    likely[scores.topk(count, dim=0).indices, torch.arange(scores.shape[1])] = 1
    rows = torch.cat([bench.site_data.x[document][bench.site_data.keep[document]] for document in documents])
    likely_sum = (likely.T @ rows).double()  # (F, d)
    difference = likely_sum / count - (rows.sum(0, dtype=torch.float64) - likely_sum) / max(len(rows) - count, 1)
    return torch.nn.functional.normalize(difference, dim=-1).float()


def _clean_batches(bench: Bench, documents: Sequence[int], label: str) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches of ``documents`` with clean log-probabilities (kept, V), in document order.

    Every SAE of a site needs the same ones: where a quarter of the memory holds them they are computed once.
    """
    step = max(1, _TOKENS // bench.corpus.tokens.shape[1])
    size = 4 * bench.model.d_vocab * int(bench.site_data.keep[list(documents)].sum())
    fits = size <= bench.settings.memory_bytes // 4
    for start in range(0, len(documents), step):
        batch = bench.batch(tuple(documents[start : start + step]))
        compute = partial(bench.log_probs, batch)
        key = ("clean log-probabilities", batch.documents)
        yield batch, bench.site_data.shared(key, compute) if fits else compute()
        bench.show_progress(label, min(start + step, len(documents)), len(documents))


def _firing_table(bench: Bench, batch: Batch) -> Tensor:
    """Return float32 (kept, n), 1 where a code is above 0."""
    return torch.cat([bench.document_codes(document) > 0 for document in batch.documents]).float()
