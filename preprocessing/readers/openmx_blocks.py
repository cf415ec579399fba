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

__all__ = ["MAX_DEGREE", "BlockLayout", "make_hermitian", "pauli_rows", "vector_rows"]

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
    elements : per group (n_pairs of the group, n_row, n_col), place in the row of each element in house order.
    mirror : (total,) place of the transposed element in the reversed pair, for each element of a row.
    """

    basis: Basis
    pairs: Pairs
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
        return cls(basis, pairs, tuple(elements), mirror)

    def operator(self, rows: NDArray) -> BlockOperator:
        """The operator whose Pauli components are `rows` (n_spin, total), real or complex."""
        blocks = []
        for index in self.elements:
            n_pairs, n_row, n_col = index.shape
            block = np.empty((n_pairs, len(rows), n_row, n_col), rows.dtype)
            for component, row in enumerate(rows):
                block[:, component] = row.take(index)
            blocks.append(torch.from_numpy(block))
        return BlockOperator(self.basis, self.pairs, tuple(blocks))

    def reversed(self, row: NDArray, out: NDArray | None = None) -> NDArray:
        """Transposed elements of the reversed pairs: row[(j, i, −R)]^T at the place of (i, j, R)."""
        # Every place is inside the row; `clip` spares a check and lets `out` be written without a copy.
        return row.take(self.mirror, out=out, mode="clip")


def pauli_rows(rows: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """(1 or 2, total) components 0 (and z) of one (both spins) or two (↑, ↓) rows."""
    if len(rows) == 1:
        return rows * scale
    return np.stack([rows[0] + rows[1], rows[0] - rows[1]]) * (scale / 2)


def vector_rows(
    layout: BlockLayout,
    diagonal: NDArray[np.float64],
    diagonal_imag: NDArray[np.float64] | None,
    mixed: NDArray[np.float64],
    mixed_imag: NDArray[np.float64],
    scale: float,
) -> NDArray[np.complex128]:
    """(4, total) components 0, x, y, z of a non-collinear operator.

    O↓↑ is not stored; it is O↑↓†, taken from the reversed pair, so that x and y are Hermitian in any case:
    with O↑↓ = a + ib and a', b' of the reversed pair transposed,
    O_x = (a + a')/2 + i(b − b')/2 and O_y = −(b + b')/2 + i(a − a')/2.

    Parameters
    ----------
    diagonal, diagonal_imag : (2, total) Re and Im of ↑↑, ↓↓; None where the imaginary part is not stored.
    mixed, mixed_imag : (total,) Re and Im of ↑↓.
    scale : unit of the result.
    """
    result = np.empty((4, len(mixed)), np.complex128)
    re, im = result.real, result.imag
    np.add(*diagonal, out=re[0])
    np.subtract(*diagonal, out=re[3])
    if diagonal_imag is None:
        im[0], im[3] = 0, 0
    else:
        np.add(*diagonal_imag, out=im[0])
        np.subtract(*diagonal_imag, out=im[3])
    mirrored, mirrored_imag = layout.reversed(mixed), layout.reversed(mixed_imag)
    np.add(mixed, mirrored, out=re[1])
    np.subtract(mixed_imag, mirrored_imag, out=im[1])
    np.add(mixed_imag, mirrored_imag, out=re[2])
    np.negative(re[2], out=re[2])
    np.subtract(mixed, mirrored, out=im[2])
    flat = result.view(np.float64)
    flat *= scale / 2
    return result


def make_hermitian(layout: BlockLayout, rows: NDArray) -> None:
    """(O + O†)/2 of the components in `rows`, real or complex, in place."""
    mirrored = np.empty_like(rows[0])
    for row in rows:
        layout.reversed(row, out=mirrored)
        row += np.conjugate(mirrored, out=mirrored)
        row *= 0.5
