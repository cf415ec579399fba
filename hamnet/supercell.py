"""Supercells by an integer matrix: structures and operators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .blocks import BlockOperator, Pairs
from .errors import HamnetError, StructureError
from .structure import Structure

__all__ = ["RepeatedOperator", "fold_cells", "repeat_operator", "supercell_matrix", "tile_operator", "tile_structure"]


def _cells(matrix: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The matrix, the integer cells inside the supercell (n, 3), and its determinant."""
    m = np.asarray(matrix)
    if m.shape != (3, 3) or not np.array_equal(m, np.rint(m)):
        raise HamnetError(f"supercell matrix {np.asarray(matrix).tolist()}", expected="a 3×3 matrix of integers")
    m = np.rint(m).astype(np.int64)
    n = int(np.rint(np.linalg.det(m)))
    if n <= 0:
        raise HamnetError(
            f"supercell matrix with determinant {n}", expected="a positive determinant (a right-handed cell)"
        )
    corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]) @ m
    ranges = [np.arange(low, high + 1) for low, high in zip(corners.min(axis=0), corners.max(axis=0), strict=True)]
    grid = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = grid[(fold_cells(grid, m)[0] == 0).all(axis=1)]
    assert len(inside) == n
    return m, inside, n


def fold_cells(cells: NDArray, matrix: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """cells (n, 3) = shift · matrix + rest, in exact integer arithmetic. Returns (shift, rest), both (n, 3).

    `rest` is the same for cells that a lattice vector of the supercell joins. The determinant must be positive.
    """
    determinant = int(np.rint(np.linalg.det(matrix)))
    adjugate = np.rint(determinant * np.linalg.inv(matrix)).astype(np.int64)
    shift = (cells @ adjugate) // determinant
    return shift, cells - shift @ matrix


def supercell_matrix(cell: ArrayLike, of_cell: ArrayLike, *, tolerance_ang: float = 1e-3) -> NDArray[np.int64]:
    """The integer M with cell = M · of_cell. Raises :class:`StructureError` if there is none within the tolerance."""
    cell, of_cell = np.asarray(cell, dtype=np.float64), np.asarray(of_cell, dtype=np.float64)
    matrix = np.rint(cell @ np.linalg.inv(of_cell))
    apart = float(np.abs(matrix @ of_cell - cell).max())
    if apart > tolerance_ang:
        raise StructureError(
            f"a cell whose lattice vectors miss those of every supercell by {apart:.3g} Å",
            expected=f"whole multiples of the lattice vectors, to {tolerance_ang} Å",
        )
    return matrix.astype(np.int64)


def tile_structure(structure: Structure, matrix: ArrayLike) -> Structure:
    """The supercell with lattice vectors A = M a. Copies of one cell are contiguous; atom order inside stays."""
    m, cells, n = _cells(matrix)
    offsets = (cells @ structure.cell)[:, None, :]
    return replace(
        structure,
        cell=m @ structure.cell,
        positions=(structure.positions[None] + offsets).reshape(-1, 3),
        numbers=np.tile(structure.numbers, n),
        labels=structure.labels * n,
        moments=None if structure.moments is None else np.tile(structure.moments, (n, 1)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class RepeatedOperator:
    """An operator whose blocks are copies of those of a smaller one, not written out.

    Attributes
    ----------
    pairs : pairs of the large cell; their groups are those of `origin`, in the same order.
    origin : operator of the small cell.
    index : (n_pairs,) which pair of the origin has the block of each pair.
    """

    pairs: Pairs
    origin: BlockOperator
    index: NDArray[np.int64]

    def blocks(self, group: int, pairs: slice = slice(None)) -> Tensor:
        """(n, n_spin, n_row, n_col) of some pairs, counted inside the group."""
        here, first = self.pairs.groups[group].pairs, self.origin.pairs.groups[group].pairs.start
        place = torch.as_tensor(self.index[here][pairs] - first, device=self.origin.device)
        return self.origin.blocks[group][place]

    def whole(self) -> BlockOperator:
        """The operator with all blocks in memory."""
        blocks = tuple(self.blocks(group) for group in range(len(self.pairs.groups)))
        return BlockOperator(self.origin.basis, self.pairs, blocks)

    def permuted(self, order: ArrayLike, shifts: ArrayLike) -> Self:
        """As :meth:`hamnet.blocks.BlockOperator.permuted`: atom a is atom ``order[a]`` moved by ``shifts[a]``."""
        order, moved = np.asarray(order, np.int64), np.asarray(shifts, np.int64)
        new_of_old = np.argsort(order)
        row, col = new_of_old[self.pairs.row], new_of_old[self.pairs.col]
        shift = self.pairs.shift - moved[col] + moved[row]
        pairs, place = Pairs.build(self.pairs.species[order], row, col, shift)
        return replace(self, pairs=pairs, index=self.index[place])


def repeat_operator(operator: BlockOperator, matrix: ArrayLike) -> RepeatedOperator:
    """The same operator on the supercell of :func:`tile_structure`, its blocks not copied."""
    m, cells, n = _cells(matrix)
    pairs, n_atoms = operator.pairs, operator.pairs.n_atoms
    lowest = cells.min(axis=0)
    place = np.full(np.ptp(cells, axis=0) + 1, -1)
    place[tuple((cells - lowest).T)] = np.arange(n)
    # Pair (i, T) → (j, T + R): the column cell is a supercell shift and a cell inside.
    shift, rest = fold_cells((cells[:, None, :] + pairs.shift[None]).reshape(-1, 3), m)
    col_cell = place[tuple((rest - lowest).T)].reshape(n, -1)
    row = (pairs.row[None] + n_atoms * np.arange(n)[:, None]).ravel()
    col = (pairs.col[None] + n_atoms * col_cell).ravel()
    tiled, order = Pairs.build(np.tile(pairs.species, n), row, col, shift)
    return RepeatedOperator(tiled, operator, order % len(pairs))


def tile_operator(operator: BlockOperator, matrix: ArrayLike) -> BlockOperator:
    """The same operator on the supercell of :func:`tile_structure`."""
    return repeat_operator(operator, matrix).whole()
