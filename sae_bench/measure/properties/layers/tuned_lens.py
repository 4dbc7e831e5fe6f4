"""Next-token predictions read from the site: the logit lens, and an affine lens tuned for the site.

The tuned lens (Belrose et al., arXiv 2303.08112) reads x through final norm and unembedding after an affine map that
makes KL(P || lens(x)) small. The map starts at the ridge regression of the last residual vector on x and takes `STEPS`
steps of Adam on that KL; it is fitted on the corpus's even clusters and scored on odd ones, once for all SAEs of a
site, in every tier the same. Shapes: d width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_bench.measure.measurement import Estimate, Ratio, Undefined

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.arrays import Floats

TRAINING_TOKENS = 16_384
"Most tokens of the even clusters on which the lens is fitted."
STEPS = 60
BATCH = 512
"Tokens per step."
PIECE = 128
"Tokens whose gradients are computed at once."
RATE = 0.03
"Learning rate of Adam, over the square root of the width; falls to 0 along a straight line."
RIDGE = 1e-2
"Ridge of the regression at which the fit starts, relative to the mean variance of x."
NAMES = tuple(f"{lens}{suffix}" for lens in ("lens_kl", "tuned_lens_kl") for suffix in ("", "_sae", "_change"))


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Affine map from the site to the last residual stream."""

    weight: Tensor
    "(d, d)"
    offset: Tensor
    "(d,)"

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., d) the input of the final norm."""
        return x @ self.weight + self.offset


def lens_estimates(bench: Bench) -> dict[str, Estimate]:
    """Return KL from the final distribution to both lenses, of x and of the reconstruction."""
    from sae_bench.measure.shared.document_halves import document_halves

    scored = set(document_halves(bench.corpus.cluster)[1])
    lens = tuned_lens(bench) if any(document in scored for document in range(bench.n_documents)) else None
    tables = bench.collect(lambda batch: _tokens(bench, batch, lens, scored), "lenses")
    sums = {name: bench.per_cluster(table) for name, table in tables.items()}
    estimates = _means("lens_kl", sums["x"], sums["xhat"], bench.per_cluster(bench.keep))
    if lens is None:
        undefined = Undefined("the lens is scored on every second cluster of documents, and none of those is measured")
        return {**estimates, **{name: undefined for name in NAMES if name.startswith("tuned")}}
    return {**estimates, **_means("tuned_lens_kl", sums["tuned/x"], sums["tuned/xhat"], sums["scored"])}


def tuned_lens(bench: Bench) -> TunedLens:
    """Return the lens of the bench's site, fitted once."""
    return bench.site_data.shared(("tuned lens", bench.settings.seed), lambda: _fit(bench))


def _means(name: str, x: Floats, xhat: Floats, count: Floats) -> dict[str, Estimate]:
    return {name: Ratio(x, count), f"{name}_sae": Ratio(xhat, count), f"{name}_change": Ratio(xhat - x, count)}


def _tokens(bench: Bench, batch: Batch, lens: TunedLens | None, scored: set[int]) -> dict[str, Tensor]:
    """Return (docs, pos) divergences of one batch; those of the tuned lens are 0 outside the scored documents."""
    import torch

    from sae_bench.engine.batch import scatter
    from sae_bench.engine.divergence import kl_divergence, log_softmax_
    from sae_bench.model.unembed import rows_at_once

    model, keep = bench.model, batch.keep
    odd = torch.tensor([document in scored for document in batch.documents], device=keep.device)[:, None] & keep
    rows = {"x": batch.x[keep], "xhat": bench.reconstruct(batch)[keep]}  # (tokens, d)
    if lens is not None:
        rows |= {f"tuned/{name}": lens(values) for name, values in rows.items()}
    final = bench.final_residual(batch, batch.x)
    # Two tables over the vocabulary are alive at once.
    step = rows_at_once(model.d_vocab, bench.settings.memory_bytes // (8 * 4), final.device)
    divergences: dict[str, list[Tensor]] = {name: [] for name in rows}
    for start in range(0, len(final), step):
        piece = slice(start, start + step)
        logp = log_softmax_(model.final_logits(final[piece]))
        for name, values in rows.items():
            divergences[name].append(kl_divergence(logp, model.final_logits(values[piece])))
    tables = {name: scatter(torch.cat(parts), keep) for name, parts in divergences.items()}
    return {name: table * odd if "/" in name else table for name, table in tables.items()} | {"scored": odd.double()}


def _fit(bench: Bench) -> TunedLens:
    import torch

    from sae_bench.engine.divergence import log_softmax_

    x, final = _training(bench)  # (tokens, d) both
    # In units of their own spread, so that one rate suits every model.
    spread_x, spread_final = (each.std(0).norm() / each.shape[1] ** 0.5 for each in (x, final))
    inner, outer = (x - x.mean(0)) / spread_x, (final - final.mean(0)) / spread_final
    gram = (inner.T @ inner).double()
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + ridge, (inner.T @ outer).double()).float().requires_grad_()
    offset = torch.zeros(x.shape[1], device=x.device).requires_grad_()
    adam = torch.optim.Adam([weight, offset], lr=RATE / x.shape[1] ** 0.5)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, STEPS)
    generator = torch.Generator().manual_seed(bench.settings.seed)
    for step in range(STEPS):
        batch = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator).to(x.device)
        slopes = [torch.zeros_like(weight), torch.zeros_like(offset)]
        # A piece at a time: what the gradient needs of a vocabulary then stays in memory that is used again.
        for piece in torch.split(batch, PIECE):
            logp = log_softmax_(bench.model.final_logits(final[piece]))
            with torch.enable_grad():
                prediction = final.mean(0) + spread_final * (inner[piece] @ weight + offset)
                logits = bench.model.final_logits(prediction, differentiable=True)
            # By the logits of Q, the derivative of KL(P || Q) is Q - P.
            gap = log_softmax_(logits.detach().clone()).exp_().sub_(logp.exp_()).div_(len(batch))
            for slope, part in zip(slopes, torch.autograd.grad(logits, (weight, offset), gap), strict=True):
                slope += part
        weight.grad, offset.grad = slopes
        adam.step()
        falling.step()
        bench.show_progress("tuned lens", step + 1, STEPS)
    weight_of_x = (spread_final / spread_x) * weight.detach()
    return TunedLens(weight_of_x, final.mean(0) + spread_final * offset.detach() - x.mean(0) @ weight_of_x)


def _training(bench: Bench) -> tuple[Tensor, Tensor]:
    """Return (tokens, d) activations of the even clusters and their last residual vectors."""
    import torch

    from sae_bench.measure.shared.document_halves import document_halves

    documents = document_halves(bench.corpus.cluster)[0]
    xs: list[Tensor] = []
    finals: list[Tensor] = []
    for start in range(0, len(documents), bench.settings.batch_size):
        batch = bench.batch(documents[start : start + bench.settings.batch_size])
        xs.append(batch.x[batch.keep])
        finals.append(bench.final_residual(batch, batch.x))
        if sum(map(len, xs)) >= TRAINING_TOKENS:
            break
    return torch.cat(xs)[:TRAINING_TOKENS], torch.cat(finals)[:TRAINING_TOKENS]
