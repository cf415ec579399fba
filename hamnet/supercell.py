"""Supercells by an integer matrix: structures and operators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .blocks import BlockOperator
from .errors import HamnetError, StructureError
from .structure import Structure

__all__ = ["supercell_matrix", "tile_operator", "tile_structure"]


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
    inside = grid[(_fold(grid, m, n)[0] == 0).all(axis=1)]
    assert len(inside) == n
    return m, inside, n


def _fold(cells: NDArray, matrix: NDArray, determinant: int) -> tuple[NDArray, NDArray]:
    """cells = supercell shift · matrix + rest, in exact integer arithmetic. Returns (shift, rest)."""
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


def tile_operator(operator: BlockOperator, matrix: ArrayLike) -> BlockOperator:
    """The same operator on the supercell of :func:`tile_structure`."""
    m, cells, n = _cells(matrix)
    pairs, n_atoms = operator.pairs, operator.pairs.n_atoms
    lowest = cells.min(axis=0)
    place = np.full(np.ptp(cells, axis=0) + 1, -1)
    place[tuple((cells - lowest).T)] = np.arange(n)
    # Pair (i, T) → (j, T + R): the column cell is a supercell shift and a cell inside.
    shift, rest = _fold((cells[:, None, :] + pairs.shift[None]).reshape(-1, 3), m, n)
    col_cell = place[tuple((rest - lowest).T)].reshape(n, -1)
    row = pairs.row[None] + n_atoms * np.arange(n)[:, None]
    col = pairs.col[None] + n_atoms * col_cell
    shift = shift.reshape(n, -1, 3)
    tiled, keys = [], []
    for group, block in zip(pairs.groups, operator.blocks, strict=True):
        tiled.append(block.repeat(n, 1, 1, 1))
        keys.append([a[:, group.pairs].reshape(-1, *a.shape[2:]) for a in (row, col, shift)])
    row, col, shift = (np.concatenate([k[a] for k in keys]) for a in range(3))
    return BlockOperator.from_unsorted(operator.basis, np.tile(pairs.species, n), row, col, shift, tiled)
