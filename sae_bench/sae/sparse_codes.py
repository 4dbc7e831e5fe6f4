"""Codes without their zeros: the cost of decoding them, and of its transpose, depends on the active features alone.

Both are weighted sums of rows, one for each token or one for each feature, and torch's `embedding_bag` computes those
without gathering the rows first. Shapes: n features, d width, k codes that are not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional

BYTES_PER_CODE = 16
"Bytes of a code that is not 0, in both orders."
_FEATURES = 4096
"Features projected at once; all of them would need memory for a second decoder."


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Codes of some tokens without their zeros, token by token."""

    tokens: int
    features: int
    "n"
    token: Tensor
    "int32 (k,), ascending"
    feature: Tensor
    "int32 (k,)"
    value: Tensor
    "(k,)"

    @classmethod
    def from_dense(cls, codes: Tensor) -> SparseCodes:
        """Drop the zeros of dense codes (tokens, n)."""
        token, feature = codes.nonzero(as_tuple=True)
        return cls(codes.shape[0], codes.shape[1], token.int(), feature.int(), codes[token, feature])

    @classmethod
    def from_columns(cls, parts: Iterable[Tensor]) -> SparseCodes:
        """Drop the zeros of dense codes (tokens, n) that come some features at a time, (tokens, some) each."""
        columns, features = [], 0
        for part in parts:
            token, feature = part.nonzero(as_tuple=True)
            columns.append((token.int(), (feature + features).int(), part[token, feature]))
            tokens, features = part.shape[0], features + part.shape[1]
        token, feature, value = (torch.cat(column) for column in zip(*columns, strict=True))
        order = torch.argsort(token, stable=True)
        return cls(tokens, features, token[order], feature[order], value[order])

    def split(self, tokens: Sequence[int]) -> list[SparseCodes]:
        """Split into the codes of the first ``tokens[0]`` tokens, of the next ``tokens[1]`` and so on."""
        first = [0, *accumulate(tokens)]
        starts = torch.searchsorted(self.token, torch.tensor(first, dtype=torch.int32, device=self.token.device))
        own = [slice(*ends) for ends in pairwise(starts.tolist())]
        return [
            SparseCodes(count, self.features, self.token[part] - start, self.feature[part], self.value[part])
            for count, start, part in zip(tokens, first, own, strict=False)
        ]

    def times(self, factors: Tensor) -> SparseCodes:
        """Multiply every code by its feature's factor (n,), in float32."""
        return replace(self, value=self.value.float() * factors[self.feature])

    def first(self, tokens: int) -> SparseCodes:
        """Select the codes of the first ``tokens`` tokens."""
        return self if tokens == self.tokens else self.split([tokens])[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> SparseCodes:
        """Apply ``change`` to each tensor and return the new codes."""
        return replace(self, token=change(self.token), feature=change(self.feature), value=change(self.value))

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.token.nbytes + self.feature.nbytes + self.value.nbytes

    def dense(self) -> Tensor:
        """Return (tokens, n) with the zeros."""
        codes = self.value.new_zeros(self.tokens, self.features)
        codes[self.token.long(), self.feature.long()] = self.value
        return codes

    @classmethod
    def join(cls, parts: Sequence[SparseCodes]) -> SparseCodes:
        """Join the tokens of all parts, one after another."""
        first = [0, *accumulate(part.tokens for part in parts)]
        token = torch.cat([part.token + start for part, start in zip(parts, first, strict=False)])
        feature, value = torch.cat([part.feature for part in parts]), torch.cat([part.value for part in parts])
        return cls(first[-1], parts[0].features, token, feature, value)

    def only(self, features: Tensor) -> SparseCodes:
        """Select the codes of ``features`` (bool, n); the selected features are numbered from 0."""
        number = (features.cumsum(0) - 1).int()
        keep = features[self.feature]
        return SparseCodes(
            self.tokens, int(features.sum()), self.token[keep], number[self.feature[keep]], self.value[keep]
        )

    @property
    def token_start(self) -> Tensor:
        """int32 (tokens,), where each token's codes begin."""
        return _starts(self.token, self.tokens)

    def write(self, decoder: Tensor, scale: Tensor | None = None) -> Tensor:
        """Sum decoder rows (n, d): ``sum_i scale_i f_i d_i``, (tokens, d); ``scale`` (n,) is 1 by default."""
        value = self.value if scale is None else self.value * scale[self.feature]
        return _weighted_sums(self.feature, decoder, self.token_start, value)

    def bags(self) -> Bags:
        """Sort the codes by feature as well, for products in both directions."""
        order = torch.argsort(self.feature, stable=True)
        return Bags(
            codes=self,
            value_by_feature=self.value[order],
            token=self.token[order],
            feature_start=_starts(self.feature[order], self.features),
        )


@dataclass(frozen=True, eq=False)
class Bags:
    """Codes in both orders: a bag for each token, and a bag for each feature."""

    codes: SparseCodes
    value_by_feature: Tensor
    "(k,)"
    token: Tensor
    "int32 (k,) by feature"
    feature_start: Tensor
    "int32 (n,)"

    def write(self, decoder: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `SparseCodes.write`."""
        return self.codes.write(decoder, scale)

    def project(self, decoder: Tensor, vectors: Tensor) -> Tensor:
        """Compute ``sum_t f_i d_i·v_t`` of vectors (tokens, d), the transpose of `write` in ``scale``: float64 (n,)."""
        starts = [*self.feature_start.tolist(), len(self.token)]
        parts = []
        for first in range(0, len(decoder), _FEATURES):
            rows = decoder[first : first + _FEATURES]
            begin, end = starts[first], starts[first + len(rows)]
            gathered = _weighted_sums(
                self.token[begin:end],
                vectors,
                self.feature_start[first : first + len(rows)] - begin,
                self.value_by_feature[begin:end],
            )
            parts.append((gathered * rows).sum(1, dtype=torch.float64))
        return torch.cat(parts)


def _starts(owner: Tensor, owners: int) -> Tensor:
    """Return the first index of each value 0, 1, ... in the ascending ``owner`` (k,): int32 (owners,)."""
    values = torch.arange(owners, dtype=owner.dtype, device=owner.device)
    return torch.searchsorted(owner, values, out_int32=True)


def _weighted_sums(index: Tensor, rows: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    return functional.embedding_bag(index, rows, start, mode="sum", per_sample_weights=weight.to(rows))
