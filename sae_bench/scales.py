"""The factors that mend an SAE's suppressed features: one for all (s*), and one for each (t*).

With y = x - decode(0), codes f and decoder rows d_i, per token:

    s* = argmin E‖y - s sum_i f_i d_i‖²        = E[r·y] / E‖r‖², r = sum_i f_i d_i
    t* = argmin E‖y - sum_i t_i f_i d_i‖² + ridge sum_i (t_i - s*)²

Its normal equations are G t = c with G_ij = E[f_i f_j] d_i·d_j and c_i = E[f_i d_i·y]. G is never formed: conjugate
gradients need G v only, which is a decoding of v * f and its transpose, over the codes that are not 0. Features that fire
too rarely to be fitted stay at s*, so that s* is one of the fits t* is chosen from.

Setting: Wright and Sharkey, "Addressing feature suppression in SAEs" (2024); Drori's scale-only refit of an L1 SAE.
Shapes: n features, d width, k codes that are not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.nn import functional

from sae_bench.errors import MeasurementError

if TYPE_CHECKING:
    from sae_bench.bench import Batch, Bench

MINIMUM_FIRINGS = 100
"A feature that fires on fewer tokens of the fitted half stays at s*."
RIDGE = 1e-3
"Pull of every fitted scale towards s*, relative to the mean diagonal of G over all features."
TOKENS = 4096
"Tokens whose codes are multiplied at once."
_TOLERANCE = 1e-8
_ITERATIONS = 2000
_BYTES_PER_CODE = 16


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of some tokens that are not 0, in both orders: bags of one token, and bags of one feature."""

    value: Tensor
    "(k,) by token"
    feature: Tensor
    "int32 (k,) by token"
    token_start: Tensor
    "int32 (tokens,), where each token's codes begin."
    value_by_feature: Tensor
    "(k,)"
    token: Tensor
    "int32 (k,) by feature"
    feature_start: Tensor
    "int32 (n,)"

    def write(self, decoder: Tensor, scale: Tensor | None = None) -> Tensor:
        """(tokens, d) ``sum_i scale_i f_i d_i``; without ``scale`` (n,), as the SAE writes."""
        value = self.value if scale is None else self.value * scale[self.feature]
        return _bags(self.feature, decoder, self.token_start, value)

    def project(self, decoder: Tensor, vectors: Tensor) -> Tensor:
        """float64 (n,) ``sum_t f_i d_i·v_t``, the transpose of `write`, of vectors (tokens, d)."""
        gathered = _bags(self.token, vectors, self.feature_start, self.value_by_feature)  # (n, d)
        return (gathered * decoder).sum(1, dtype=torch.float64)


Stream: TypeAlias = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts another pass over the tokens to fit on: ``(codes (tokens, n), y (tokens, d))``, in pieces of any size."""


@dataclass(frozen=True, eq=False)
class Scales:
    """What a fit found. Tensors are (n,), on the CPU."""

    uniform: float
    "s*"
    per_feature: Tensor
    "float64, t*; s* for features that are not free."
    free: Tensor
    "bool, features that fired often enough to be fitted."
    firings: Tensor
    "int64, tokens on which each feature fires."
    strength: Tensor
    "float64, root mean square of what a feature writes where it fires, in units of the activation; 0 if it never does."
    refit: Tensor
    """float64, each feature's own best scale while all others stay as they are (above 1: suppressed); 1 if it never
    fires. Noisier than t* and blind to overlap, but it exists for rare features too."""
    tokens: int
    iterations: int
    "Steps of conjugate gradients; each is one product with G."


def fit_scales(
    stream: Stream,
    decoder: Tensor,
    *,
    minimum: int = MINIMUM_FIRINGS,
    ridge: float = RIDGE,
    memory_bytes: int = 1 << 30,
) -> Scales:
    """s* and t* of a decoder (n, d) on the tokens of ``stream``.

    ``memory_bytes`` bounds the codes kept between products; beyond it every product runs through ``stream`` again. A
    `MeasurementError` when nothing fires, when a number is not finite, or when the iterations do not converge.
    """
    sums = _sums(stream, decoder)
    if sums.tokens == 0 or not sums.energy > 0:
        raise MeasurementError(
            f"no feature writes anything on the {sums.tokens} tokens that scales are fitted on, so there is nothing to "
            f"scale; check the encoder's biases and thresholds, and that the SAE belongs to this site"
        )
    uniform = sums.overlap / sums.energy
    free = sums.firings >= minimum
    pull = ridge * float(sums.diagonal.mean())
    right = (sums.target - uniform * sums.written)[free]
    steps, iterations = _solve(stream, decoder, free, right, sums, pull, memory_bytes)
    per_feature = torch.full_like(sums.diagonal, uniform)
    per_feature[free] += steps
    alive = sums.diagonal > 0
    return Scales(
        uniform=uniform,
        per_feature=per_feature.cpu(),
        free=free.cpu(),
        firings=sums.firings.cpu(),
        strength=(sums.diagonal / sums.firings.clamp(min=1)).sqrt().cpu(),
        refit=torch.where(alive, 1 + (sums.target - sums.written) / sums.diagonal.where(alive, 1.0), 1.0).cpu(),
        tokens=sums.tokens,
        iterations=iterations,
    )


def fitted(bench: Bench) -> Scales:
    """The scales of a bench's SAE, fitted once, on the even documents of the whole corpus.

    Like every pool, the fit does not depend on the tier: what is scored on the odd documents measured nests exactly.
    """
    return bench.shared("scales", lambda: _fit(bench))


def bias(bench: Bench) -> Tensor | None:
    """(d,) what zero codes decode to; None where that depends on the token, because the SAE normalises each."""

    def decoded() -> Tensor | None:
        try:
            with torch.no_grad():
                return bench.sae.decode(bench.site_data.x.new_zeros(1, int(bench.sae.d_sae), device=bench.settings.device))[0].float()
        except MeasurementError:
            return None

    return bench.shared("bias", decoded)


def offset(bench: Bench, batch: Batch) -> Tensor:
    """(b, p, d) what zero codes decode to at every position."""
    constant = bias(bench)
    if constant is not None:
        return constant.expand_as(batch.x)
    zeros = batch.x.new_zeros(batch.x.shape[1], int(bench.sae.d_sae))
    with torch.no_grad():
        return torch.stack([bench.sae.decode(zeros, like=x).to(x) for x in batch.x])


def _fit(bench: Bench) -> Scales:
    documents = len(bench.corpus)
    if documents < 2:
        raise MeasurementError(
            f"scales are fitted on the even documents of the corpus and scored on the odd ones, but it holds "
            f"{documents}: there is no other half; measure on a corpus of more documents"
        )
    decoder = bench.sae.W_dec.detach().float()

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for document in range(0, documents, 2):
            batch = bench.batch((document,))
            codes, base = bench.codes(batch)[batch.keep], offset(bench, batch)
            if bias(bench) is None:
                codes = codes * _token_scale((bench.reconstruct(batch) - base)[batch.keep], codes, decoder)
            yield codes, (batch.x - base)[batch.keep]

    return fit_scales(stream, decoder, memory_bytes=bench.settings.memory_bytes // 4)


def _token_scale(written: Tensor, codes: Tensor, decoder: Tensor) -> Tensor:
    """(tokens, 1) what undoing a token's normalisation multiplies ``codes @ decoder`` by."""
    raw = (codes @ decoder).double()  # (tokens, d)
    energy = raw.square().sum(-1, keepdim=True)
    scale = (raw * written).sum(-1, keepdim=True) / energy.where(energy > 0, 1.0)
    return torch.where(energy > 0, scale, 1.0).to(codes)


@dataclass(frozen=True, eq=False)
class Sparse:
    """The codes of some tokens that are not 0."""

    tokens: int
    features: int
    token: Tensor
    "int32 (k,), ascending"
    feature: Tensor
    "int32 (k,)"
    value: Tensor
    "(k,)"

    @classmethod
    def of(cls, codes: Tensor) -> Sparse:
        """Of dense codes (tokens, n)."""
        token, feature = codes.nonzero(as_tuple=True)
        return cls(*codes.shape, token.int(), feature.int(), codes[token, feature])

    @classmethod
    def join(cls, parts: Sequence[Sparse]) -> Sparse:
        """The tokens of all parts, one after another."""
        first = [0, *accumulate(part.tokens for part in parts)]
        token = torch.cat([part.token + start for part, start in zip(parts, first, strict=False)])
        feature, value = torch.cat([part.feature for part in parts]), torch.cat([part.value for part in parts])
        return cls(first[-1], parts[0].features, token, feature, value)

    def only(self, features: Tensor) -> Sparse:
        """Without the features that are not in ``features`` (bool, n); those that remain are numbered anew."""
        number = (features.cumsum(0) - 1).int()
        keep = features[self.feature]
        return Sparse(
            self.tokens, int(features.sum()), self.token[keep], number[self.feature[keep]], self.value[keep]
        )

    def codes(self) -> Codes:
        """In both orders, ready for products."""
        order = torch.argsort(self.feature, stable=True)
        return Codes(
            value=self.value,
            feature=self.feature,
            token_start=_starts(self.token, self.tokens),
            value_by_feature=self.value[order],
            token=self.token[order],
            feature_start=_starts(self.feature, self.features),
        )


def _starts(owner: Tensor, owners: int) -> Tensor:
    counts = torch.bincount(owner, minlength=owners)
    return (counts.cumsum(0) - counts).int()


def _bags(index: Tensor, rows: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of ``rows``, one for each bag of ``index``."""
    return functional.embedding_bag(index, rows, start, mode="sum", per_sample_weights=weight.to(rows))


@dataclass(frozen=True, eq=False)
class _Sums:
    """First pass: everything but the products of the iterations. Sums over tokens, float64."""

    tokens: int
    firings: Tensor
    target: Tensor
    "(n,) sum f_i d_i·y, c"
    written: Tensor
    "(n,) sum f_i d_i·r, G times ones"
    diagonal: Tensor
    "(n,) sum f_i² |d_i|²"
    overlap: float
    "sum r·y"
    energy: float
    "sum |r|²"


def _sums(stream: Stream, decoder: Tensor) -> _Sums:
    n = decoder.shape[0]
    norms = decoder.double().square().sum(1)
    firings = torch.zeros(n, dtype=torch.int64, device=decoder.device)
    target, written, square = (torch.zeros_like(norms) for _ in range(3))
    tokens, overlap, energy = 0, 0.0, 0.0
    for sparse, targets in _pieces(stream):
        y = targets.to(decoder)
        r = sparse.write(decoder)
        target += sparse.project(decoder, y)
        written += sparse.project(decoder, r)
        square.index_add_(0, sparse.feature, sparse.value.double().square())
        firings += torch.bincount(sparse.feature, minlength=n)
        overlap += float((r.double() * y.double()).sum())
        energy += float(r.double().square().sum())
        tokens += len(y)
    if not bool(torch.isfinite(torch.stack([target.sum(), written.sum(), square.sum()])).all()):
        raise MeasurementError("codes, decoder or activations hold NaN or infinite values, so no scales can be fitted")
    return _Sums(tokens, firings, target, written, square * norms, overlap, energy)


def _pieces(stream: Stream) -> Iterator[tuple[Sparse, Tensor]]:
    """The stream, sparse, in pieces of about `TOKENS` tokens: products of many small ones are slow."""
    parts: list[Sparse] = []
    targets: list[Tensor] = []
    for codes, y in stream():
        parts.append(Sparse.of(codes))
        targets.append(y)
        if sum(part.tokens for part in parts) >= TOKENS:
            yield Sparse.join(parts), torch.cat(targets)
            parts, targets = [], []
    if parts:
        yield Sparse.join(parts), torch.cat(targets)


def _solve(
    stream: Stream,
    decoder: Tensor,
    free: Tensor,
    right: Tensor,
    sums: _Sums,
    pull: float,
    memory_bytes: int,
) -> tuple[Tensor, int]:
    """``(G + pull) u = right`` over the free features: steps u (free,) away from s*, and how many products it took."""
    size = int(free.sum())
    rows = decoder[free]
    held = _held(stream, free, int(sums.firings[free].sum()), memory_bytes)
    diagonal = (sums.diagonal[free] + pull).cpu().numpy()
    count = 0

    def product(vector: object) -> object:
        nonlocal count
        count += 1
        v = torch.as_tensor(vector, dtype=torch.float64).to(decoder.device)
        out = pull * v
        for codes in held():
            out = out + codes.project(rows, codes.write(rows, v.to(rows)))
        return out.cpu().numpy()

    shape = (size, size)
    found, info = cg(
        LinearOperator(shape, matvec=product, dtype="float64"),
        right.cpu().numpy(),
        rtol=_TOLERANCE,
        maxiter=_ITERATIONS,
        M=LinearOperator(shape, matvec=lambda vector: vector / diagonal, dtype="float64"),
    )
    if info != 0:
        raise MeasurementError(
            f"the scales of {size} features did not converge in {_ITERATIONS} steps; "
            f"the decoder or the codes are badly scaled (largest over smallest energy {diagonal.max() / diagonal.min():.1e})"
        )
    return torch.as_tensor(found).to(decoder.device), count


