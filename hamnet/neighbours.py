"""Which atom pairs there are: by distance, and from the ranges of the basis."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .basis import Basis
from .blocks import Pairs
from .errors import StructureError
from .structure import Structure

__all__ = ["basis_pairs", "check_distances", "pairs_within"]


def _images(structure: Structure, cutoff_ang: float) -> tuple[NDArray, NDArray, NDArray]:
    """Atoms of all cells that reach to within the cutoff of a home atom: (atom, shift (n, 3), position)."""
    fractional = structure.fractional_positions
    # Distance between lattice planes along each reciprocal vector decides how many cells the cutoff spans.
    heights = 1 / np.linalg.norm(np.linalg.inv(structure.cell), axis=0)
    low = np.floor(fractional.min(axis=0) - fractional.max(axis=0) - cutoff_ang / heights).astype(int)
    reach = np.where(structure.pbc, -low, 0)
    cells = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))))
    shift = np.repeat(cells, len(structure), axis=0)
    atom = np.tile(np.arange(len(structure)), len(cells))
    position = structure.positions[atom] + shift @ structure.cell
    corner_low = structure.positions.min(axis=0) - cutoff_ang
    corner_high = structure.positions.max(axis=0) + cutoff_ang
    near = ((position >= corner_low) & (position <= corner_high)).all(axis=1)
    return atom[near], shift[near], position[near]


def pairs_within(structure: Structure, cutoff_ang: NDArray | float) -> tuple[NDArray, NDArray, NDArray]:
    """(row, col, shift) of all pairs with |r_j + R − r_i| ≤ cutoff, self pairs (i, i, 0) included.

    `cutoff_ang` is one number or a symmetric (n_atoms, n_atoms)-like outer sum given as per-atom radii (n_atoms,):
    the cutoff of a pair is then the sum of the two radii.
    """
    radii = np.broadcast_to(
        np.asarray(cutoff_ang, dtype=np.float64) / (2 if np.ndim(cutoff_ang) == 0 else 1), (len(structure),)
    )
    largest = 2 * float(radii.max())
    atom, shift, position = _images(structure, largest)
    tree, home = cKDTree(position), cKDTree(structure.positions)
    found = home.sparse_distance_matrix(tree, largest, output_type="ndarray")
    row, image, distance = found["i"], found["j"], found["v"]
    keep = distance <= radii[row] + radii[atom[image]]
    row, image = row[keep].astype(np.int64), image[keep]
    return row, atom[image], shift[image]


def basis_pairs(structure: Structure, basis: Basis) -> Pairs:
    """The pairs whose Hamiltonian block a DFT code with this basis stores.

    Two atoms are joined if their orbitals touch (r_i + r_j), or if both touch a projector of a third atom or of one of
    the two (r_i + p_c, r_j + p_c) where the code counts such pairs (``projector_cutoff_ang`` > 0).
    """
    species = basis.species_of(structure)
    orbital = np.array([s.cutoff_ang for s in basis.species])[species]
    row, col, shift = pairs_within(structure, orbital)
    projector = np.array([s.projector_cutoff_ang for s in basis.species])[species]
    if projector.any():
        row, col, shift = _with_projector_pairs(structure, orbital, projector, row, col, shift)
    return Pairs.build(species, row, col, shift)[0]


def _with_projector_pairs(structure, orbital, projector, row, col, shift) -> tuple[NDArray, NDArray, NDArray]:
    # Legs i → c with |r_ic| ≤ r_i + p_c; two legs that end on one projector c make the pair (i, j).
    i, c, cell = pairs_within(structure, float(2 * max(orbital.max(), projector.max())))
    leg = structure.positions[c] + cell @ structure.cell - structure.positions[i]
    keep = (np.linalg.norm(leg, axis=1) <= orbital[i] + projector[c]) & (projector[c] > 0)
    i, c, cell = i[keep], c[keep], cell[keep]
    order = np.argsort(c, kind="stable")
    i, c, cell = i[order], c[order], cell[order]
    count = np.bincount(c, minlength=len(structure))
    start = np.concatenate([[0], np.cumsum(count)])
    parts = [np.column_stack([row, col, shift])]
    for a in range(len(structure)):
        legs = np.arange(start[a], start[a + 1])
        first, second = (m.ravel() for m in np.meshgrid(legs, legs, indexing="ij"))
        # i sits in cell −cell_i as seen from c; pair shift = cell_i − cell_j.
        parts.append(np.column_stack([i[first], i[second], cell[first] - cell[second]]))
        if len(parts) > 64:
            parts = [np.unique(np.concatenate(parts), axis=0)]
    unique = np.unique(np.concatenate(parts), axis=0)
    return unique[:, 0], unique[:, 1], unique[:, 2:]


def check_distances(structure: Structure, *, smallest_ang: float = 0.4) -> None:
    """Raise :class:`StructureError` where two atoms (or an atom and its image) are closer than `smallest_ang`."""
    row, col, shift = pairs_within(structure, smallest_ang)
    other = (row != col) | shift.any(axis=1)
    if other.any():
        i, j, cell = row[other][0], col[other][0], shift[other][0]
        distance = np.linalg.norm(structure.positions[j] + cell @ structure.cell - structure.positions[i])
        raise StructureError(
            f"atoms {i} ({structure.labels[i]}) and {j} ({structure.labels[j]}) overlap: {distance:.3f} Å apart",
            expected=f"more than {smallest_ang} Å",
            remedy="atom indices count from 0; check units (Å) and fractional against Cartesian coordinates",
        )
