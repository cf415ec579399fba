"""Multifrontal factorisation of a complex Hermitian matrix on the graph of atoms.

A = L D L† with block pivots. Each node of the elimination tree has a dense front: its own rows and those that its
elimination touches. A front is the sum of the entries of A in its own rows and of what its children pass on (Duff and
Reid, ACM Trans. Math. Softw. 9, 302 (1983)). Its own rows are eliminated in small blocks, each diagonalised: the
inverse of a block comes from its eigenvalues, and by Sylvester's law the negative ones of all blocks together are the
negative eigenvalues of A, exactly. Pivots are not exchanged between blocks, so solutions want a step of refinement.

Half the operations of an LU factorisation, all of them matrix products, and half the memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from .dissection import Tree, nested_dissection
from .factor import FactorStats
from .pencil import SparsePencil

__all__ = ["Multifrontal", "MultifrontalFactor"]

ComplexArray = NDArray[np.complex128]

# Rows of one block pivot: large enough for matrix products, small against a front.
_PIVOT = 64
# Columns of the Schur complement that are computed together: only those right of the diagonal are.
_PANEL = 384


@dataclass(frozen=True, slots=True, eq=False)
class _Front:
    """Symbolic front.

    rows : rows of A, own ones first, each part in the order of elimination. n_own : how many are eliminated here.
    source, target : places in the data of A and in the flat own rows (n_own, len(rows)) that they go to.
    children : (node, places of its remaining rows in `rows`).
    """

    rows: NDArray[np.int64]
    n_own: int
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    children: tuple[tuple[int, NDArray[np.int64]], ...]


class Multifrontal:
    """Symbolic factorisation of the pattern of a pencil: an :class:`.factor.Analysis`."""

    name = "multifrontal"

    def __init__(self, pencil: SparsePencil) -> None:
        sizes = np.diff(pencil.atom_offsets)
        tree = nested_dissection(pencil.atom_graph, sizes)
        self.dim = pencil.dim
        self.fronts = _fronts(pencil, tree)
        own = np.array([front.n_own for front in self.fronts], float)
        rest = np.array([len(front.rows) for front in self.fronts]) - own
        # Complex products, of a symmetric half: 4 real operations for each of n₁³/3 + n₁² n₂ + n₁ n₂².
        self.flops = float(4 * (own**3 / 3 + own**2 * rest + own * rest**2).sum())
        self.entries = int((own * (own + 1) / 2 + own * rest).sum())
        self.memory_bytes = 16.0 * (self.entries + _stack_peak(tree, own, rest))

    def factor(self, data: ComplexArray) -> MultifrontalFactor:
        start = time.perf_counter()
        blocks: list[_Block] = []
        passed: dict[int, ComplexArray] = {}
        negative = 0
        for node, front in enumerate(self.fronts):
            own, n = front.n_own, len(front.rows)
            matrix = np.zeros((n, n), np.complex128)
            matrix.reshape(-1)[front.target] = data[front.source]
            for child, places in front.children:
                _add(matrix, places, passed.pop(child))
            for first in range(0, own, _PIVOT):
                last = min(first + _PIVOT, own)
                block, below = _eliminated(matrix[first:last, first:], front.rows[first:])
                negative += below
                blocks.append(block)
                # Rows of this front first: they are the next pivots. Only what lies right of the diagonal is kept.
                row = matrix[first:last, last:]
                matrix[last:own, last:] -= row[:, : own - last].conj().T @ block.upper
            if own < n:
                rest = _schur(matrix, own, [b.upper for b in blocks[len(blocks) - -(-own // _PIVOT) :]])
                passed[node] = rest
        entries = sum(block.upper.size + block.inverse.size for block in blocks)
        return MultifrontalFactor(
            self.dim, tuple(blocks), negative, FactorStats(entries, 16 * entries, time.perf_counter() - start)
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """One block pivot: D⁻¹ (b, b), and the rows of L† right of it, (b, m), in the columns `right` of A."""

    rows: NDArray[np.int64]
    right: NDArray[np.int64]
    inverse: ComplexArray
    upper: ComplexArray


class MultifrontalFactor:
    """A = L D L†: a :class:`.factor.Factor`."""

    def __init__(self, dim: int, blocks: tuple[_Block, ...], negative: int, stats: FactorStats) -> None:
        self._dim, self._blocks = dim, blocks
        self.negative, self.stats = negative, stats

    def solve(self, b: ComplexArray) -> ComplexArray:
        x = np.array(b, dtype=np.complex128, order="C")
        if x.shape[0] != self._dim:
            raise ValueError(f"right-hand side of {x.shape[0]} rows, expected {self._dim}")
        flat = x.reshape(self._dim, -1)
        for block in self._blocks:
            flat[block.right] -= block.upper.conj().T @ flat[block.rows]
        for block in reversed(self._blocks):
            flat[block.rows] = block.inverse @ flat[block.rows] - block.upper @ flat[block.right]
        return x


def _eliminated(rows: ComplexArray, names: NDArray[np.int64]) -> tuple[_Block, int]:
    """The block pivot of the first rows of a matrix (of which the upper triangle counts), its negative eigenvalues."""
    size = len(rows)
    values, vectors = scipy.linalg.eigh(rows[:, :size], lower=False, check_finite=False)
    # A pivot of exactly zero would be an eigenvalue of a leading part: the smallest number in its place is a
    # perturbation below rounding, and shows in the residual.
    floor = np.finfo(float).eps * max(float(np.abs(values).max()), 1e-300)
    values = np.where(np.abs(values) < floor, np.copysign(floor, values), values)
    inverse = (vectors / values) @ vectors.conj().T
    return _Block(names[:size], names[size:], inverse, inverse @ rows[:, size:]), int((values < 0).sum())


def _schur(matrix: ComplexArray, own: int, uppers: list[ComplexArray]) -> ComplexArray:
    """What is left for the parent: A₂₂ − A₂₁ A₁₁⁻¹ A₁₂, the upper triangle."""
    n = matrix.shape[0]
    scaled = np.concatenate([upper[:, upper.shape[1] - (n - own) :] for upper in uppers])
    bare = matrix[:own, own:].conj().T
    rest = matrix[own:, own:].copy()
    for first in range(0, n - own, _PANEL):
        last = min(first + _PANEL, n - own)
        rest[first:last, first:] -= bare[first:last] @ scaled[:, first:]
    return rest


def _add(matrix: ComplexArray, places: NDArray[np.int64], part: ComplexArray) -> None:
    matrix[places[:, None], places] += part


def _stack_peak(tree: Tree, own: NDArray, rest: NDArray) -> float:
    """Largest number of entries of fronts and of what waits for their parents, at any time."""
    waiting = peak = 0.0
    children: dict[int, float] = {}
    for node, parent in enumerate(tree.parent.tolist()):
        peak = max(peak, waiting + (own[node] + rest[node]) ** 2 + rest[node] ** 2)
        waiting += rest[node] ** 2 - children.pop(node, 0.0)
        children[parent] = children.get(parent, 0.0) + rest[node] ** 2
    return peak


def _fronts(pencil: SparsePencil, tree: Tree) -> tuple[_Front, ...]:
    graph, offsets = pencil.atom_graph, pencil.atom_offsets
    order = np.empty(pencil.n_atoms, np.int64)
    order[np.concatenate(tree.vertices)] = np.arange(pencil.n_atoms)
    ends = np.cumsum([len(v) for v in tree.vertices])
    remaining: list[NDArray[np.int64]] = []
    children: list[list[int]] = [[] for _ in range(len(tree))]
    fronts: list[_Front] = []
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
        fronts.append(
            _Front(
                rows, n_own, source[kept], row[kept] * len(rows) + column[kept],
                tuple((c, place[_rows_of(offsets, remaining[c])]) for c in children[node]),
            )
        )  # fmt: skip
    return tuple(fronts)


def _rows_of(offsets: NDArray[np.int64], atoms: NDArray[np.int64]) -> NDArray[np.int64]:
    return _ranges(offsets[atoms], offsets[atoms + 1] - offsets[atoms])


def _ranges(starts: NDArray[np.int64], lengths: NDArray) -> NDArray[np.int64]:
    """Concatenated start, start + 1, … of each range."""
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
