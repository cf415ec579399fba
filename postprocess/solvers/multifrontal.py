"""Multifrontal factorisation of a complex Hermitian matrix on the graph of atoms.

A = L D L† with block pivots. Each node of the elimination tree has a dense front: its own rows and those that its
elimination touches. A front is the sum of the entries of A in its own rows and of what its children pass on (Duff and
Reid, ACM Trans. Math. Softw. 9, 302 (1983)). Its own rows are eliminated in small blocks, each diagonalised: the
inverse of a block comes from its eigenvalues, and by Sylvester's law the negative ones of all blocks together are the
negative eigenvalues of A, exactly. Rows are not exchanged; a block that is almost singular takes in the next one.
Solutions may still want a step of refinement.

Half the operations of an LU factorisation, all of them matrix products, and half the memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dissection import Tree, elimination_tree
from .factor import FactorStats, require_numbers
from .pencil import SparsePencil

__all__ = [
    "PANEL_ROWS",
    "PIVOT_ROWS",
    "Front",
    "Multifrontal",
    "MultifrontalFactor",
    "add_child",
    "stack_peak",
    "symbolic_fronts",
]

ComplexArray = NDArray[np.complex128]

# Rows of one block pivot: large enough for matrix products, small against a front.
PIVOT_ROWS = 64
# Rows whose pivots act on the rest together; rows of the rest that are computed together, right of the diagonal only.
PANEL_ROWS = 384
# Pivots with eigenvalues smaller than this share of the largest would amplify rounding.
_SMALL_PIVOT = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Front:
    """Symbolic front.

    rows : rows of A, own ones first, each part in the order of elimination. n_own : how many are eliminated here.
    source, target : places in the data of A and in the flat own rows (n_own, len(rows)) that they go to.
    children : (node, runs of its remaining rows: from where, to where in `rows`, how many).
    """

    rows: Tensor
    n_own: int
    source: NDArray[np.integer]
    target: Tensor
    children: tuple[tuple[int, list[tuple[int, int, int]]], ...]


class Multifrontal:
    """Symbolic factorisation of the pattern of a pencil: an :class:`.factor.Analysis`.

    device : where fronts are computed and factors are kept.
    """

    name = "multifrontal"

    def __init__(self, pencil: SparsePencil, device: torch.device | str = "cpu") -> None:
        sizes = np.diff(pencil.atom_offsets)
        tree = elimination_tree(pencil.atom_graph, sizes)
        self.dim, self.device = pencil.dim, torch.device(device)
        self.fronts = symbolic_fronts(pencil, tree, self.device)
        own = np.array([front.n_own for front in self.fronts], float)
        rest = np.array([len(front.rows) for front in self.fronts]) - own
        # Complex products, of a symmetric half: 4 real operations for each of n₁³/3 + n₁² n₂ + n₁ n₂².
        self.flops = float(4 * (own**3 / 3 + own**2 * rest + own * rest**2).sum())
        self.entries = int((own * (own + 1) / 2 + own * rest).sum())
        self.memory_bytes = 16.0 * (self.entries + stack_peak(tree, own * (own + rest) + rest**2, rest))

    def factor(self, data: ComplexArray) -> MultifrontalFactor:
        start = time.perf_counter()
        require_numbers(data)
        factors: list[_FrontFactor] = []
        passed: dict[int, Tensor] = {}
        for node, front in enumerate(self.fronts):
            own, n = front.n_own, len(front.rows)
            top = torch.zeros((own, n), dtype=torch.complex128, device=self.device)
            rest = torch.zeros((n - own, n - own), dtype=torch.complex128, device=self.device)
            top.view(-1)[front.target] = torch.from_numpy(data[front.source]).to(self.device)
            for child, runs in front.children:
                _add_split(top, rest, passed.pop(child), runs)
            factors.append(_FrontFactor(front.rows, own, _eliminated(top, rest)))
            if own < n:
                passed[node] = rest
        pivots = [pivot for factor in factors for pivot in factor.pivots]
        entries = sum(pivot.upper.numel() + pivot.inverse.numel() for pivot in pivots)
        stats = FactorStats(entries, 16 * entries, time.perf_counter() - start)
        return MultifrontalFactor(self.dim, tuple(factors), sum(pivot.negative for pivot in pivots), stats)


@dataclass(frozen=True, slots=True, eq=False)
class _Pivot:
    """A block pivot D: its first row in the front, its inverse (b, b), its rows of L† right of it (b, m), its negative
    eigenvalues."""

    first: int
    inverse: Tensor
    upper: Tensor
    negative: int


@dataclass(frozen=True, slots=True, eq=False)
class _FrontFactor:
    rows: Tensor
    n_own: int
    pivots: tuple[_Pivot, ...]


class MultifrontalFactor:
    """A = L D L†: a :class:`.factor.Factor`."""

    def __init__(self, dim: int, fronts: tuple[_FrontFactor, ...], negative: int, stats: FactorStats) -> None:
        self._dim, self._fronts = dim, fronts
        self.negative, self.stats = negative, stats

    def solve(self, b: ComplexArray) -> ComplexArray:
        if b.shape[0] != self._dim:
            raise ValueError(f"right-hand side of {b.shape[0]} rows, expected {self._dim}")
        # Right-hand sides as rows: matrix products with so few columns are half as fast. b† first, so that the factor
        # is never conjugated.
        x = torch.from_numpy(np.ascontiguousarray(b.reshape(self._dim, -1).conj().T, dtype=np.complex128))
        x = x.to(self._fronts[0].rows.device)
        for front in self._fronts:
            part = x[:, front.rows]
            for pivot in front.pivots:
                first, last = pivot.first, pivot.first + len(pivot.inverse)
                part[:, last:].addmm_(part[:, first:last], pivot.upper, alpha=-1)
            x[:, front.rows] = part
        x = x.conj().resolve_conj()
        for front in reversed(self._fronts):
            part = x[:, front.rows]
            for pivot in reversed(front.pivots):
                first, last = pivot.first, pivot.first + len(pivot.inverse)
                part[:, first:last] = part[:, first:last] @ pivot.inverse.mT - part[:, last:] @ pivot.upper.mT
            x[:, front.rows[: front.n_own]] = part[:, : front.n_own]
        return np.ascontiguousarray(x.mT.cpu().numpy()).reshape(b.shape)


def _eliminated(top: Tensor, rest: Tensor) -> tuple[_Pivot, ...]:
    """Eliminate the own rows `top` (own, n) of a front; `rest` (n − own, n − own) becomes what the parent gets.

    Of both only the upper triangle counts: rest ← A₂₂ − A₂₁ A₁₁⁻¹ A₁₂.
    """
    own, pivots = len(top), []
    for start in range(0, own, PANEL_ROWS):
        end = min(start + PANEL_ROWS, own)
        panel, first = [], start
        while first < end:
            pivot = _pivot(top, first, end)
            first += len(pivot.inverse)
            top[first:end, first:].addmm_(top[pivot.first : first, first:end].mH, pivot.upper, alpha=-1)
            panel.append(pivot)
        pivots += panel
        if end == top.shape[1]:
            break
        bare, upper = top[start:end, end:], torch.cat([pivot.upper[:, end - top.shape[1] :] for pivot in panel])
        for matrix, behind in ((top[end:, end:], 0), (rest, own - end)):
            for row in range(0, len(matrix), PANEL_ROWS):
                left = bare[:, behind + row : behind + min(row + PANEL_ROWS, len(matrix))]
                matrix[row : row + PANEL_ROWS, row:].addmm_(left.mH, upper[:, behind + row :], alpha=-1)
    return tuple(pivots)


def _pivot(top: Tensor, first: int, end: int) -> _Pivot:
    """The block pivot at row `first`: some rows, or more of those before `end` where these are almost singular."""
    size = min(PIVOT_ROWS, end - first)
    while True:
        values, vectors = torch.linalg.eigh(top[first : first + size, first : first + size], UPLO="U")
        largest = values.abs().max()
        if first + size == end or values.abs().min() > _SMALL_PIVOT * largest:
            break
        size = min(size + PIVOT_ROWS, end - first)
        # What the elimination of the larger block starts from has not been touched: nothing is undone.
    # A pivot of exactly zero would be an eigenvalue of a leading part: the smallest number in its place is a
    # perturbation below rounding, and shows in the residual.
    floor = torch.finfo(torch.float64).eps * largest.clamp(min=1e-300)
    values = torch.where(values.abs() < floor, torch.copysign(floor, values), values)
    inverse = (vectors / values) @ vectors.mH
    return _Pivot(first, inverse, inverse @ top[first : first + size, first + size :], int((values < 0).sum()))


def add_child(matrix: Tensor, part: Tensor, runs: list[tuple[int, int, int]]) -> None:
    """Add the upper triangle of what a child passed on; runs keep the order, so above stays above the diagonal."""
    for number, (row, to_row, n_rows) in enumerate(runs):
        for column, to_column, n_columns in runs[number:]:
            target = matrix[to_row : to_row + n_rows, to_column : to_column + n_columns]
            target += part[row : row + n_rows, column : column + n_columns]


def _add_split(top: Tensor, rest: Tensor, part: Tensor, runs: list[tuple[int, int, int]]) -> None:
    """:func:`add_child` for a front that is kept as its own rows and the square of the others."""
    own = len(top)
    split = []
    for start, to, size in runs:
        ahead = min(max(own - to, 0), size)
        split += [run for run in ((start, to, ahead), (start + ahead, to + ahead, size - ahead)) if run[2]]
    for number, (row, to_row, n_rows) in enumerate(split):
        target, corner = (top, 0) if to_row < own else (rest, own)
        for column, to_column, n_columns in split[number:]:
            i, j = to_row - corner, to_column - corner
            target[i : i + n_rows, j : j + n_columns] += part[row : row + n_rows, column : column + n_columns]


def stack_peak(tree: Tree, fronts: NDArray, rest: NDArray) -> float:
    """Largest number of entries, at any time, of `fronts` (n_nodes,) and of what waits, (rest, rest), for parents."""
    waiting = peak = 0.0
    children: dict[int, float] = {}
    for node, parent in enumerate(tree.parent.tolist()):
        peak = max(peak, waiting + fronts[node])
        waiting += rest[node] ** 2 - children.pop(node, 0.0)
        children[parent] = children.get(parent, 0.0) + rest[node] ** 2
    return peak


def symbolic_fronts(pencil: SparsePencil, tree: Tree, device: torch.device) -> tuple[Front, ...]:
    """The fronts of a pattern, children before their parents."""
    graph, offsets = pencil.atom_graph, pencil.atom_offsets
    order = np.empty(pencil.n_atoms, np.int64)
    order[np.concatenate(tree.vertices)] = np.arange(pencil.n_atoms)
    ends = np.cumsum([len(v) for v in tree.vertices])
    remaining: list[NDArray[np.int64]] = []
    children: list[list[int]] = [[] for _ in range(len(tree))]
    fronts: list[Front] = []
    for node, own in enumerate(tree.vertices):
        touched = np.unique(np.concatenate([graph[own].indices, *(remaining[c] for c in children[node])]))
        later = touched[order[touched] >= ends[node]]
        later = later[np.argsort(order[later])]
        remaining.append(later)
        if tree.parent[node] >= 0:
            children[int(tree.parent[node])].append(node)
        atoms = np.concatenate([own, later])
        rows = _rows_of(offsets, atoms)
        n_own = int((offsets[own + 1] - offsets[own]).sum())
        place = np.full(pencil.dim, -1, np.int64)
        place[rows] = np.arange(len(rows))
        source = _ranges(pencil.indptr[rows[:n_own]].astype(np.int64), np.diff(pencil.indptr)[rows[:n_own]])
        row = np.repeat(np.arange(n_own), np.diff(pencil.indptr)[rows[:n_own]])
        column = place[pencil.indices[source]]
        # Columns eliminated before are not in the front, and below the diagonal nothing is read.
        kept = column >= row
        target = row[kept] * len(rows) + column[kept]
        # There are as many of these as elements of H: 32 bits where they are enough.
        narrow = np.int32 if n_own * len(rows) < 2**31 else np.int64
        fronts.append(
            Front(
                torch.from_numpy(rows).to(device), n_own, source[kept].astype(pencil.indices.dtype),
                torch.from_numpy(target.astype(narrow)).to(device),
                tuple((c, _runs(place[_rows_of(offsets, remaining[c])])) for c in children[node]),
            )
        )  # fmt: skip
    return tuple(fronts)


def _runs(places: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(first, places[first], length) of each run of consecutive places."""
    starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    lengths = np.diff(starts, append=len(places))
    return list(zip(starts.tolist(), places[starts].tolist(), lengths.tolist(), strict=True))


def _rows_of(offsets: NDArray[np.int64], atoms: NDArray[np.int64]) -> NDArray[np.int64]:
    return _ranges(offsets[atoms], offsets[atoms + 1] - offsets[atoms])


def _ranges(starts: NDArray[np.int64], lengths: NDArray) -> NDArray[np.int64]:
    """Concatenated start, start + 1, … of each range."""
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
