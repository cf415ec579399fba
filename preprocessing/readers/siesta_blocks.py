"""From the sparse matrices of SIESTA to block operators in house conventions.

What SIESTA stores in row i, column (j, R), with components in columns 1 … 8 (uu, dd, Re ud, −Im ud, then the imaginary
parts of uu and dd, Re du, Im du):

=====  =====================================================
H      ⟨jR s'| H |i s⟩, the transpose of the place it is in
S      real, so the same either way
DM     ⟨i s'| ρ |jR s⟩, as placed
=====  =====================================================

Without spin–orbit coupling both readings agree. Real orbitals are in the order m = −l … l with the Condon–Shortley
sign: odd m changes sign on the way to the house order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hamnet.basis import Basis
from hamnet.blocks import BlockOperator
from hamnet.errors import HamnetError, ReaderError
from hamnet.structure import Structure

from .siesta_matrices import Pattern, SiestaCell

__all__ = ["BlockLayout", "density_pauli", "hamiltonian_pauli", "shifts_from_images", "shifts_from_vectors"]

_WORST_SHIFT_ERROR = 1e-3  # single precision leaves 1e-7 of a cell; a wrong geometry leaves more than this
_FARTHEST_CELL = 10_000  # no orbital reaches so far: such a vector is damage


def hamiltonian_pauli(columns: NDArray[np.float64]) -> NDArray:
    """Pauli components (0, x, y, z), (0, z) or (0) of ⟨i|H|jR⟩ from H as stored, (n_spin, nnz).

    Real for 1, 2 and 4 columns, complex for 8.
    """
    h = columns
    if len(h) < 8:
        return _real_pauli(h)
    return _pauli(h[0] - 1j * h[4], h[1] - 1j * h[5], h[6] - 1j * h[7], h[2] + 1j * h[3])


def density_pauli(columns: NDArray[np.float64]) -> NDArray:
    """Pauli components of ρ_ij(R) from DM as stored, (n_spin, nnz). Unpolarised: ρ_0 is half of what is stored.

    Without spin–orbit coupling the files hold Re ρ_μ only. Im ρ_xyz, which non-collinear states have (spin currents,
    up to 0.01), is lost; no operator with real components sees it.
    """
    d = columns
    if len(d) == 1:
        return d / 2
    if len(d) < 8:
        return _real_pauli(d)
    return _pauli(d[0] + 1j * d[4], d[1] + 1j * d[5], d[2] - 1j * d[3], d[6] + 1j * d[7])


def _real_pauli(c: NDArray) -> NDArray:
    if len(c) == 1:
        return c
    charge, z = (c[0] + c[1]) / 2, (c[0] - c[1]) / 2
    return np.stack([charge, z] if len(c) == 2 else [charge, c[2], c[3], z])


def _pauli(uu: NDArray, dd: NDArray, ud: NDArray, du: NDArray) -> NDArray:
    return np.stack([(uu + dd) / 2, (ud + du) / 2, 1j * (ud - du) / 2, (uu - dd) / 2])


def shifts_from_vectors(
    pattern: Pattern, vectors_ang: NDArray, orbital_atoms: NDArray, structure: Structure, path: Path
) -> NDArray[np.int64]:
    """(nnz, 3) cells R from the vectors between orbitals, r_j + R − r_i.

    Raises :class:`ReaderError` if they are not lattice vectors: positions or cell of another geometry.
    """
    i, j = orbital_atoms[pattern.rows], orbital_atoms[pattern.columns % pattern.n_orbitals]
    shift = (vectors_ang - structure.positions[j] + structure.positions[i]) @ np.linalg.inv(structure.cell)
    whole = np.rint(shift)
    worst = float(np.abs(shift - whole).max())
    if worst > _WORST_SHIFT_ERROR or np.abs(whole).max() > _FARTHEST_CELL:
        raise ReaderError(
            f"vectors between orbitals that miss the lattice by {worst:.2g} of a cell",
            expected="the geometry of the Hamiltonian in .XV",
            remedy="the positions moved on after H was written (relaxation, dynamics): repeat it as a single point",
            path=path,
        )
    return whole.astype(np.int64)


def shifts_from_images(
    pattern: Pattern, cell: SiestaCell, orbital_atoms: NDArray, structure: Structure
) -> NDArray[np.int64]:
    """(nnz, 3) cells R from the images of the auxiliary supercell.

    An image is only known up to a period of the supercell (atoms that lie outside the cell are given the image that
    comes first): of the possible R the one with the shortest |r_j + R − r_i| is the pair that SIESTA meant.
    """
    i, j = orbital_atoms[pattern.rows], orbital_atoms[pattern.columns % pattern.n_orbitals]
    image = pattern.columns // pattern.n_orbitals
    key, inverse = np.unique(np.stack([i, j, image], axis=1), axis=0, return_inverse=True)
    listed = cell.image_shifts[key[:, 2]]
    fractional = structure.fractional_positions
    between = fractional[key[:, 1]] - fractional[key[:, 0]]
    start = listed - cell.supercell * np.rint((listed + between) / cell.supercell).astype(np.int64)
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * cell.supercell
    candidates = start[:, None] + steps
    distance = np.linalg.norm((candidates + between[:, None]) @ structure.cell, axis=-1)
    nearest = candidates[np.arange(len(key)), distance.argmin(axis=1)]
    return nearest[inverse.ravel()]


def house_signs(basis: Basis, species: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n_orbitals,) −1 for odd m, else 1: SIESTA's orbitals against those of the house."""
    per_species = [
        np.concatenate([1.0 - 2.0 * (np.abs(np.arange(-l, l + 1)) % 2) for l in s.degrees]) for s in basis.species
    ]
    return np.concatenate([per_species[s] for s in species])


@dataclass(frozen=True, slots=True, eq=False)
class BlockLayout:
    """Where each stored element goes: the pairs, and its place in their blocks.

    Elements that are stored twice for one (i, j, R) are added up, as SIESTA's own Bloch sum does.
    """

    basis: Basis
    species: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    shift: NDArray[np.int64]
    pair_of: NDArray[np.int64]
    local_row: NDArray[np.int64]
    local_col: NDArray[np.int64]
    signs: NDArray[np.float64]

    @classmethod
    def of(
        cls, pattern: Pattern, shifts: NDArray, basis: Basis, species: NDArray, orbital_atoms: NDArray
    ) -> BlockLayout:
        """The layout of elements with cells `shifts` (nnz, 3)."""
        rows, cols = pattern.rows, pattern.columns % pattern.n_orbitals
        i, j = orbital_atoms[rows], orbital_atoms[cols]
        # One integer for (species, species, i, j, R): sorting rows of a table takes twenty times as long.
        low, n_atoms = shifts.min(axis=0), len(species)
        extent = (len(basis), len(basis), n_atoms, n_atoms, *(int(e) for e in shifts.max(axis=0) - low + 1))
        keys = np.ravel_multi_index((species[i], species[j], i, j, *(shifts - low).T), extent)
        unique, pair_of = np.unique(keys, return_inverse=True)
        _, _, row, col, *shift = np.unravel_index(unique, extent)
        offsets = basis.orbital_offsets(species)
        signs = house_signs(basis, species)
        return cls(
            basis=basis,
            species=species,
            row=row,
            col=col,
            shift=np.stack(shift, axis=-1) + low,
            pair_of=pair_of.ravel(),
            local_row=rows - offsets[i],
            local_col=cols - offsets[j],
            signs=signs[rows] * signs[cols],
        )

    def operator(self, pauli: NDArray, path: Path) -> BlockOperator:
        """The operator with Pauli components (n_component, nnz).

        Raises :class:`ReaderError` if the pattern is not closed under reversal of pairs.
        """
        kinds = np.column_stack([self.species[self.row], self.species[self.col]])
        n_orbitals = self.basis.n_orbitals
        starts = np.flatnonzero(np.r_[True, (kinds[1:] != kinds[:-1]).any(axis=1)])
        ends = np.r_[starts[1:], len(kinds)]
        values = pauli * self.signs
        blocks = []
        for start, end in zip(starts, ends, strict=True):
            n_row, n_col = (int(n_orbitals[s]) for s in kinds[start])
            here = (self.pair_of >= start) & (self.pair_of < end)
            place = ((self.pair_of[here] - start) * n_row + self.local_row[here]) * n_col + self.local_col[here]
            block = torch.from_numpy(np.zeros((len(pauli), int(end - start) * n_row * n_col), dtype=values.dtype))
            block.index_add_(1, torch.from_numpy(place), torch.from_numpy(values[:, here]))
            blocks.append(block.reshape(len(pauli), -1, n_row, n_col).transpose(0, 1).contiguous())
        try:
            return BlockOperator.from_unsorted(self.basis, self.species, self.row, self.col, self.shift, blocks)
        except HamnetError as error:
            raise ReaderError(
                error.found, expected=error.expected, remedy="the matrix file is damaged", path=path
            ) from error
