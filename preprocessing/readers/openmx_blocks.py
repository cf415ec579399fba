"""From rows of matrix elements, as OpenMX stores them, to block operators in the house order.

Everything is done on whole rows: one index array takes a row to the blocks of one group of pairs (orbital order
included), another takes each element to its transposed partner in the reversed pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hamnet.basis import Basis, SpeciesBasis
from hamnet.blocks import BlockOperator, Pairs
from hamnet.errors import HamnetError, ReaderError

from .openmx_scfout import Scfout

__all__ = ["MAX_DEGREE", "BlockLayout", "pauli_rows", "vector_rows"]

# Place of each house orbital m = −l … l among OpenMX's:
# s | x, y, z | 3z²−r², x²−y², xy, xz, yz | 5z³−3z, x(5z²−1), y(5z²−1), z(x²−y²), xyz, x³−3xy², 3x²y−y³
_FILE_PLACE = ((0,), (1, 2, 0), (2, 4, 0, 3, 1), (6, 4, 2, 0, 1, 3, 5))
MAX_DEGREE = len(_FILE_PLACE) - 1
"""Largest l whose orbital order is known and checked."""


def _file_orbitals(species: SpeciesBasis) -> NDArray[np.int64]:
    """(n_orbitals,) place in the file of each house orbital of an atom."""
    slices = species.shell_slices()
    return np.concatenate(
        [s.start + np.array(_FILE_PLACE[l]) for s, l in zip(slices, species.degrees, strict=True)]
    ).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class BlockLayout:
    """Where the elements of each block stand in a row of matrix elements.

    Attributes
    ----------
    pairs : house order.
    order : pair p of `pairs` is pair ``order[p]`` of the file.
    elements : per group (n_pairs of the group, n_row, n_col), place in the row of each element in house order.
    mirror : (total,) place of the transposed element in the reversed pair, for each element of a row.
    """

    basis: Basis
    pairs: Pairs
    order: NDArray[np.int64]
    elements: tuple[NDArray[np.int64], ...]
    mirror: NDArray[np.int64]

    @classmethod
    def build(cls, raw: Scfout, basis: Basis, species: NDArray[np.int64]) -> BlockLayout:
        try:
            pairs, order = Pairs.build(species, raw.row, raw.col, raw.shift)
        except HamnetError as error:
            raise ReaderError(
                f"{error.found} (atoms from 0)",
                expected=error.expected,
                remedy="the neighbour lists are damaged; copy the file again, or repeat the run",
                path=raw.path,
                place="records natn, ncn and atv_ijk",
            ) from error
        n_orbitals, file_orbitals = basis.n_orbitals, [_file_orbitals(s) for s in basis.species]
        start = raw.start[order]
        elements, mirror = [], np.empty(int(raw.start[-1]), np.int64)
        for group in pairs.groups:
            n_row, n_col = n_orbitals[group.row_species], n_orbitals[group.col_species]
            here, there = start[group.pairs], start[pairs.partner[group.pairs]]
            inner = file_orbitals[group.row_species][:, None] * n_col + file_orbitals[group.col_species]
            elements.append(here[:, None, None] + inner)
            i, j = np.arange(n_row)[:, None], np.arange(n_col)
            mirror[here[:, None, None] + (i * n_col + j)] = there[:, None, None] + (j * n_row + i)
        return cls(basis, pairs, order, tuple(elements), mirror)

    def operator(self, rows: NDArray) -> BlockOperator:
        """The operator whose Pauli components are `rows` (n_spin, total), real or complex."""
        n_spin, total = rows.shape
        flat, step = rows.reshape(-1), total * np.arange(n_spin)[:, None, None]
        blocks = (flat.take(index[:, None] + step) for index in self.elements)
        return BlockOperator(self.basis, self.pairs, tuple(torch.from_numpy(block) for block in blocks))

    def reversed(self, rows: NDArray) -> NDArray:
        """Transposed elements of the reversed pairs: row[(j, i, −R)]^T at the place of (i, j, R)."""
        return rows.take(self.mirror, axis=-1)


def pauli_rows(rows: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """(1 or 2, total) components 0 (and z) of one (both spins) or two (↑, ↓) rows."""
    if len(rows) == 1:
        return rows * scale
    return np.stack([rows[0] + rows[1], rows[0] - rows[1]]) * (scale / 2)


def vector_rows(
    layout: BlockLayout,
    diagonal: NDArray[np.float64],
    diagonal_imag: NDArray[np.float64],
    mixed: NDArray[np.float64],
    mixed_imag: NDArray[np.float64],
    scale: float,
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Components 0, x, y, z of a non-collinear operator, as stored and Hermitian.

    O↓↑ is not stored; it is O↑↓†, taken from the reversed pair, so that x and y are Hermitian in any case:
    with O↑↓ = a + ib and a', b' of the reversed pair transposed,
    O_x = (a + a')/2 + i(b − b')/2 and O_y = −(b + b')/2 + i(a − a')/2.

    Parameters
    ----------
    diagonal, diagonal_imag : (2, total) Re and Im of ↑↑, ↓↓.
    mixed, mixed_imag : (total,) Re and Im of ↑↓.
    scale : unit of the result.

    Returns
    -------
    (4, total) as stored, (4, total) with 0 and z made Hermitian.
    """
    total = len(mixed)
    parts = np.empty((6, total))
    for place, pair in ((0, diagonal), (2, diagonal_imag)):
        np.add(pair[0], pair[1], out=parts[place])
        np.subtract(pair[0], pair[1], out=parts[place + 1])
    parts[4], parts[5] = mixed, mixed_imag
    parts *= scale / 2
    sum_re, difference_re, sum_im, difference_im, a, b = parts
    mirrored = layout.reversed(parts)
    stored = np.empty((4, total), np.complex128)
    stored[0].real, stored[0].imag = sum_re, sum_im
    stored[3].real, stored[3].imag = difference_re, difference_im
    np.add(a, mirrored[4], out=stored[1].real)
    np.subtract(b, mirrored[5], out=stored[1].imag)
    np.add(b, mirrored[5], out=stored[2].real)
    np.negative(stored[2].real, out=stored[2].real)
    np.subtract(a, mirrored[4], out=stored[2].imag)
    hermitian = np.empty_like(stored)
    hermitian[1:3] = stored[1:3]
    for component, re, im in ((0, 0, 2), (3, 1, 3)):
        np.add(parts[re], mirrored[re], out=hermitian[component].real)
        np.subtract(parts[im], mirrored[im], out=hermitian[component].imag)
        hermitian[component] *= 0.5
    return stored, hermitian
