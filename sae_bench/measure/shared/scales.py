"""Scales that correct an SAE's suppressed features: one for all (s*), and one for each (t*).

With y = x - decode(0), codes f and decoder rows d_i, over the tokens of a corpus:

    s* = argmin E‖y - s sum_i f_i d_i‖²  =  E[r·y] / E‖r‖²,  r = sum_i f_i d_i
    t* = argmin E‖y - sum_i t_i f_i d_i‖² + ridge sum_i (t_i - s*)²

The normal equations of t* are G t = c with G_ij = E[f_i f_j] d_i·d_j and c_i = E[f_i d_i·y]. G is never formed:
conjugate gradients need G v only, a decoding of v * f followed by its transpose. Features that fire too rarely to be
fitted stay at s*, so that s* is one of the fits that t* is chosen from.

Setting: Wright and Sharkey, "Addressing Feature Suppression in SAEs" (2024), and Drori's comment that one factor a
feature is enough. Shapes: n features, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from sae_bench.errors import MeasurementError
from sae_bench.sae.sparse_codes import BYTES_PER_CODE, Bags, SparseCodes

if TYPE_CHECKING:
    from sae_bench.engine.batch import Batch
    from sae_bench.engine.bench import Bench

MINIMUM_FIRINGS = 100
"A feature that fires on fewer of the fitted tokens stays at s*."
RIDGE = 1e-3
"Pull of every fitted scale towards s*, relative to the mean diagonal of G over all features."
TOKENS = 4096
"Tokens whose codes are multiplied at once."
_TOLERANCE = 1e-8
_ITERATIONS = 2000

Stream: TypeAlias = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts another pass over the tokens to fit on: ``(codes (tokens, n), y (tokens, d))``, in pieces of any size."""


@dataclass(frozen=True, eq=False)
class Scales:
    """Result of a fit; tensors are (n,), on the CPU."""

    uniform: float
    "s*"
    per_feature: Tensor
    "float64, t*; s* for features that are not free."
    free: Tensor
    "bool, features that fire often enough to be fitted."
    firings: Tensor
    "int64, tokens on which each feature fires."
    strength: Tensor
    "float64, root mean square of what a feature writes where it fires, in units of the activation; 0 if it never does."
    refit: Tensor
    """float64, each feature's own best scale while all others stay as they are; 1 if it never fires. Blind to overlap
    and noisier than t*, but rare features have one too."""
    tokens: int
    products: int
    "Products with G that conjugate gradients took."


def fit_scales(
    stream: Stream,
    decoder: Tensor,
    *,
    minimum: int = MINIMUM_FIRINGS,
    ridge: float = RIDGE,
    memory_bytes: int = 1 << 30,
) -> Scales:
    """Fit s* and t* of a decoder (n, d) on the tokens of ``stream``.

    ``memory_bytes`` bounds the stored codes; when they do not fit, every product runs through ``stream`` again. A
    `MeasurementError` when nothing fires, when a number is not finite, or when the iterations do not converge.
    """
    sums = _first_pass(stream, decoder, memory_bytes)
    if not sums.energy > 0:
        raise MeasurementError(
            f"no feature writes anything on the {sums.tokens} tokens that scales are fitted on, so there is nothing to "
            f"scale; check the encoder's biases and thresholds, and that the SAE belongs to this site"
        )
    uniform = sums.overlap / sums.energy
    free = sums.firings >= minimum
    per_feature = torch.full_like(sums.diagonal, uniform)
    products = 0
    if bool(free.any()):
        passes = _code_passes(stream, sums, free, memory_bytes)
        right = (sums.target - uniform * sums.written)[free]
        pull = ridge * float(sums.diagonal.mean())
        steps, products = _solve(passes, decoder[free], sums.diagonal[free], right, pull)
        per_feature[free] += steps
    writes = sums.diagonal > 0
    refit = 1 + (sums.target - sums.written) / sums.diagonal.where(writes, 1.0)
    return Scales(
        uniform=uniform,
        per_feature=per_feature.cpu(),
        free=free.cpu(),
        firings=sums.firings.cpu(),
        strength=(sums.diagonal / sums.firings.clamp(min=1)).sqrt().cpu(),
        refit=refit.where(writes, 1.0).cpu(),
        tokens=sums.tokens,
        products=products,
    )


def fit_sae_scales(bench: Bench) -> Scales:
    """Return the scales of a bench's SAE, fitted once on the even documents of the whole corpus.

    Like every pool, the fit does not depend on the tier: what is scored on the odd documents measured nests exactly.
    """
    return bench.shared("scales", lambda: _fit(bench))


def decoder_bias(bench: Bench) -> Tensor | None:
    """Return (d,) the reconstruction of zero codes; None where it depends on the token (the SAE normalises each)."""

    def compute() -> Tensor | None:
        zeros = torch.zeros(1, int(bench.sae.d_sae), device=bench.settings.device)
        try:
            with torch.no_grad():
                constant: Tensor = bench.sae.decode(zeros)[0].float()
        except MeasurementError:
            return None
        return constant

    return bench.shared("bias", compute)


def decoder_offset(bench: Bench, batch: Batch) -> Tensor:
    """Return (b, p, d) the reconstruction of zero codes at every position."""
    constant = decoder_bias(bench)
    if constant is not None:
        return constant.expand_as(batch.x)
    zeros = batch.x.new_zeros(batch.x.shape[1], int(bench.sae.d_sae))
    with torch.no_grad():
        return torch.stack([bench.sae.decode(zeros, like=x).to(zeros) for x in batch.source])


def _fit(bench: Bench) -> Scales:
    documents = len(bench.corpus)
    if documents < 2:
        raise MeasurementError(
            f"scales are fitted on the even documents of the corpus and scored on the odd ones, but the corpus holds "
            f"{documents} document; build one of at least 2"
        )
    decoder = bench.sae.W_dec.detach().float()

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for document in range(0, documents, 2):
            batch = bench.batch((document,))
            codes, base = bench.codes(batch)[batch.keep], decoder_offset(bench, batch)
            if decoder_bias(bench) is None:
                codes = codes * _token_scale((bench.reconstruct(batch) - base)[batch.keep], codes @ decoder)
            yield codes, (batch.x - base)[batch.keep]
            bench.show_progress("scales", document // 2 + 1, (documents + 1) // 2)

    return fit_scales(stream, decoder, memory_bytes=bench.settings.memory_bytes // 4)


def _token_scale(written: Tensor, raw: Tensor) -> Tensor:
    """Return (tokens, 1) the factor from ``raw``, codes times decoder, to ``written``: it undoes a normalisation."""
    energy = raw.double().square().sum(-1, keepdim=True)
    scale = (raw.double() * written).sum(-1, keepdim=True) / energy.where(energy > 0, 1.0)
    return torch.where(energy > 0, scale, 1.0).to(raw)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over one pass over the tokens, in float64, and the codes when they fit into memory."""

    tokens: int
    firings: Tensor
    target: Tensor
    "(n,) sum f_i d_i·y, which is c"
    written: Tensor
    "(n,) sum f_i d_i·r, which is G times ones"
    diagonal: Tensor
    "(n,) sum f_i² ‖d_i‖²"
    overlap: float
    "sum r·y"
    energy: float
    "sum ‖r‖²"
    codes: list[SparseCodes] | None


def _first_pass(stream: Stream, decoder: Tensor, memory_bytes: int) -> _Sums:
    norms = decoder.norm(dim=1).double().square()  # (n,)
    firings = torch.zeros(len(norms), dtype=torch.int64, device=decoder.device)
    target, written, square = (torch.zeros_like(norms) for _ in range(3))
    tokens, overlap, energy = 0, 0.0, 0.0
    stored: list[SparseCodes] | None = []
    for codes, targets in _pieces(stream):
        bags, y = codes.bags(), targets.to(decoder)
        r = bags.write(decoder)
        target += bags.project(decoder, y)
        written += bags.project(decoder, r)
        square.index_add_(0, codes.feature, codes.value.double().square())
        firings += torch.bincount(codes.feature, minlength=len(norms))
        overlap += float((r.double() * y.double()).sum())
        energy += float(r.double().square().sum())
        tokens += codes.tokens
        if int(firings.sum()) * BYTES_PER_CODE > memory_bytes:
            stored = None
        if stored is not None:
            stored.append(codes)
    if not bool(torch.isfinite(torch.stack([target.sum(), written.sum(), square.sum()])).all()):
        raise MeasurementError(
            f"codes, decoder or activations hold NaN or infinite values on the {tokens} tokens that scales are fitted "
            f"on; the SAE is damaged or its training diverged"
        )
    return _Sums(tokens, firings, target, written, square * norms, overlap, energy, stored)


def _pieces(stream: Stream) -> Iterator[tuple[SparseCodes, Tensor]]:
    """Yield the stream as sparse codes in pieces of about `TOKENS` tokens: products of many small ones are slow."""
    parts: list[SparseCodes] = []
    targets: list[Tensor] = []
    for codes, y in stream():
        parts.append(SparseCodes.from_dense(codes))
        targets.append(y)
        if sum(part.tokens for part in parts) >= TOKENS:
            yield SparseCodes.join(parts), torch.cat(targets)
            parts, targets = [], []
    if parts:
        yield SparseCodes.join(parts), torch.cat(targets)


def _code_passes(stream: Stream, sums: _Sums, free: Tensor, memory_bytes: int) -> Callable[[], Iterable[Bags]]:
    """Return a function that passes over the free features' codes, stored or computed each time."""

    def recompute() -> Iterator[Bags]:
        pieces = sums.codes if sums.codes is not None else (codes for codes, _ in _pieces(stream))
        return (codes.only(free).bags() for codes in pieces)

    if int(sums.firings[free].sum()) * BYTES_PER_CODE > memory_bytes:
        return recompute
    stored = list(recompute())
    return lambda: stored


def _solve(
    passes: Callable[[], Iterable[Bags]], decoder: Tensor, diagonal: Tensor, right: Tensor, pull: float
) -> tuple[Tensor, int]:
    """Return u (free,) of ``(G + pull) u = right`` for decoder rows of free features, and the number of products."""
    size, products = len(decoder), 0
    preconditioner = 1 / (diagonal + pull).cpu().numpy()

    def product(vector: Any) -> Any:
        nonlocal products
        products += 1
        v = torch.from_numpy(vector).to(decoder.device)
        # The pieces' sums are float64, so that cutting the tokens elsewhere changes the last bits of float32 only.
        out = sum((bags.project(decoder, bags.write(decoder, v.to(decoder))) for bags in passes()), pull * v)
        return out.cpu().numpy()

    solution, info = cg(
        LinearOperator((size, size), matvec=product, dtype="float64"),
        right.cpu().numpy(),
        rtol=_TOLERANCE,
        maxiter=_ITERATIONS,
        M=LinearOperator((size, size), matvec=lambda vector: preconditioner * vector, dtype="float64"),
    )
    if info != 0:
        raise MeasurementError(
            f"the scales of {size} features did not converge in {_ITERATIONS} steps: their energies differ by a factor "
            f"of {preconditioner.max() / preconditioner.min():.1e}; check the decoder's norms"
        )
    return torch.from_numpy(solution).to(decoder.device), products
