"""Features that others compose: sets of f1, f2 and a third one that is the sum of both.

A feature f counts when a combination of two or three other directions with positive weights reaches a cosine above
`CLOSE_COSINE` with it, and none of the atoms does so by itself: a near-copy explains nothing. With atoms S, cosines c
with f and their own products G, the best weights are w = G^-1 c (non-negative least squares with its support fixed),
and the cosine reached is sqrt(c' w). Every pair and triple of the `ATOMS` nearest allowed directions is tried. A set of
three or four features is counted once, whichever of its members the others explain, and near-copies of its members make
no further sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from sae_bench.measure.geometry.neighbours import finite_norms

CLOSE_COSINE = 0.9
"Cosine above which two directions count as the same, and a combination as an explanation."
ATOMS = 24
"Nearest directions, none of them a near-copy, from which atoms are taken: this bounds the cost of a large dictionary."
_CHUNK = 256
_MARGIN = 1e-2
_RIDGE = 1e-5
_FLAT = 1e-10
"Determinant below which atoms lie in one line or plane: a smaller set says the same without dividing by nothing."


@dataclass(frozen=True, eq=False)
class ComposedSets:
    """Sets of composed features and their atoms."""

    sets: Tensor
    "int64 (sets, 4): the composed feature, then its atoms by index; -1 where there is no third."
    candidates: int
    "Features that could have been composed."

    @property
    def share(self) -> float:
        """Return the number of sets as a share of the candidates."""
        return len(self.sets) / self.candidates if self.candidates else 0.0


def find_composed_sets(W_dec: Tensor, features: Tensor, cosine: Tensor, index: Tensor) -> ComposedSets:
    """Return the sets of two or three atoms that explain ``features``, each set once.

    Args:
        W_dec: (n, d) decoder rows of any norm.
        features: int64 (m,) features to explain, with directions that exist.
        cosine: float32 (m, k) cosines with their nearest others, descending.
        index: (m, k) which these are.
    """
    norms = finite_norms(W_dec)
    chunks = zip(*(torch.split(each, _CHUNK) for each in (features, cosine, index)), strict=True)
    sets = [_explaining_sets(W_dec, norms, *chunk) for chunk in chunks]
    rows = torch.cat(sets) if sets else torch.empty(0, 4, dtype=torch.int64)
    if not len(rows):
        return ComposedSets(rows, len(features))
    # A third atom that is missing (-1) looks up the last label, which no feature has.
    label = torch.cat([_copy_labels(len(W_dec), features, cosine, index), torch.tensor([-1])])
    _, which = torch.unique(label[rows].sort(dim=1).values, dim=0, return_inverse=True)
    first = torch.full((int(which.max()) + 1,), len(rows), dtype=torch.int64)
    first = first.scatter_reduce(0, which, torch.arange(len(rows)), reduce="amin")
    return ComposedSets(rows[first.sort().values], len(features))


def _copy_labels(n: int, features: Tensor, cosine: Tensor, index: Tensor) -> Tensor:
    """Return int64 (n,) labels that near-copies share, linked by cosines above `CLOSE_COSINE`."""
    row, column = (cosine > CLOSE_COSINE).cpu().nonzero(as_tuple=True)
    ends = features.cpu()[row].numpy(), index.cpu()[row, column].numpy()
    links = coo_array((torch.ones(len(row)).numpy(), ends), shape=(n, n))
    return torch.from_numpy(connected_components(links, directed=False)[1]).long()


def _explaining_sets(W_dec: Tensor, norms: Tensor, features: Tensor, cosine: Tensor, index: Tensor) -> Tensor:
    """Return int64 (sets, 4) on the CPU: one set for each feature that has any, pairs before triples."""
    atoms, chosen = _candidate_atoms(cosine, index)
    count = atoms.shape[1]
    if count < 2:
        return torch.empty(0, 4, dtype=torch.int64)
    # Most features are ruled out by a bound, for which half the precision does.
    hopeful = _squared_reach(_gram(W_dec, norms, features, atoms, chosen, torch.float32)) > CLOSE_COSINE**2 - _MARGIN
    if not bool(hopeful.any()):
        return torch.empty(0, 4, dtype=torch.int64)
    features, atoms = features[hopeful], atoms[hopeful]
    gram = _gram(W_dec, norms, features, atoms, chosen[hopeful], torch.float64)
    best = torch.full((len(features), 4), -1, dtype=torch.int64)
    open_rows = torch.arange(len(features))
    for size in (2, 3) if count > 2 else (2,):
        subsets = torch.tensor(list(combinations(range(1, count + 1), size)), device=gram.device)  # (subsets, size)
        reached, at = _squared_cone_cosine(gram[open_rows], subsets).max(dim=1)
        explained = (reached > CLOSE_COSINE**2).cpu()
        rows = open_rows[explained]
        best[rows, 0] = features[rows].cpu()
        best[rows, 1 : size + 1] = atoms[rows].gather(1, subsets[at[explained]] - 1).cpu()
        open_rows = open_rows[~explained]
        if not len(open_rows):
            break
    return best[best[:, 0] >= 0]


def _candidate_atoms(cosine: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return int64 (m, atoms) nearest directions that are no near-copies, and bool, True where one exists."""
    # Near-copies come first; after them the order is already by cosine.
    copies = (cosine > CLOSE_COSINE).sum(1, keepdim=True)
    place = copies + torch.arange(min(ATOMS, cosine.shape[1]), device=cosine.device)
    chosen = place < cosine.shape[1]
    return index.gather(1, place.clamp(max=max(cosine.shape[1] - 1, 0))).long(), chosen


def _gram(W_dec: Tensor, norms: Tensor, features: Tensor, atoms: Tensor, chosen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 (m, 1 + atoms, 1 + atoms) cosines of each feature, first, and its atoms.

    A missing atom is at right angles to everything.
    """
    members = torch.cat([features[:, None], atoms], dim=1)
    rows = W_dec.detach()[members].to(dtype)  # (m, 1 + atoms, d)
    scale = torch.cat([torch.ones_like(chosen[:, :1]), chosen], dim=1) / norms[members]
    gram = (rows @ rows.transpose(1, 2)).double() * scale[:, :, None] * scale[:, None, :]
    gram.diagonal(dim1=1, dim2=2).fill_(1.0)
    return gram


def _squared_reach(gram: Tensor) -> Tensor:
    """Return (m,) squared cosine that all atoms together reach with weights of any sign, an upper bound for cones.

    A ridge keeps copies of one direction solvable; it takes away less than the margin that callers leave.
    """
    ridge = _RIDGE * torch.eye(gram.shape[-1] - 1, dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram[:, 1:, 1:] + ridge)
    half: Tensor = torch.linalg.solve_triangular(factor, gram[:, 1:, :1], upper=False)
    reach: Tensor = half.square().sum((-2, -1))
    return reach


def _squared_cone_cosine(gram: Tensor, subsets: Tensor) -> Tensor:
    """Return (m, subsets) squared cosine that each subset reaches with positive weights, else 0."""
    c = gram[:, 0]
    i, j = subsets[:, 0], subsets[:, 1]
    a, b, g = c[:, i], c[:, j], gram[:, i, j]
    if subsets.shape[1] == 2:
        weights, determinant = [a - g * b, b - g * a], 1 - g * g
        reached = weights[0] * a + weights[1] * b
    else:
        k = subsets[:, 2]
        e, h, l_ = c[:, k], gram[:, i, k], gram[:, j, k]
        # Cramer's rule: columns of the adjugate of [[1, g, h], [g, 1, l], [h, l, 1]].
        gh, gl, hl = h * l_ - g, g * l_ - h, g * h - l_
        weights = [
            (1 - l_ * l_) * a + gh * b + gl * e,
            gh * a + (1 - h * h) * b + hl * e,
            gl * a + hl * b + (1 - g * g) * e,
        ]
        determinant = 1 - l_ * l_ + g * gh + h * gl
        reached = weights[0] * a + weights[1] * b + weights[2] * e
    positive = torch.stack(weights).amin(0) > 0
    return torch.where(positive & (determinant > _FLAT), reached / determinant.clamp_min(_FLAT), 0.0)
