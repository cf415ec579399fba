"""Which atom pairs there are: by distance, and from the ranges of the basis."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from .basis import Basis
from .blocks import Pairs
from .errors import StructureError
from .structure import Structure

__all__ = ["basis_pairs", "check_distances", "pairs_within"]

_TOUCH_ANG = 1e-8
"""A pair at its cutoff to within this counts as inside, so that round-off (a turned or moved copy) does not decide."""

_JOIN_ROWS = 2_000_000
"""Pairs of legs that are joined at once: about 100 MB."""

_Triples = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""(row (n,), col (n,), shift (n, 3))."""


def pairs_within(structure: Structure, cutoff_ang: ArrayLike) -> _Triples:
    """(row, col, shift) of all pairs with |r_j + R − r_i| ≤ cutoff, self pairs (i, i, 0) included.

    Both directions of each pair are there, whatever round-off does.

    Parameters
    ----------
    cutoff_ang : one number in Å, or radii (n_atoms,) of the atoms: the cutoff of a pair is then the sum of two radii.

    Returns
    -------
    row (n,), col (n,), shift (n, 3); in no particular order.
    """
    cutoff = np.asarray(cutoff_ang, dtype=np.float64)
    radii = np.broadcast_to(cutoff / 2 if cutoff.ndim == 0 else cutoff, (len(structure),))
    atom, shift, position = _images(structure, 2 * float(radii.max()) + _TOUCH_ANG)
    found = KDTree(structure.positions).sparse_distance_matrix(
        KDTree(position), 2 * float(radii.max()) + _TOUCH_ANG, output_type="ndarray"
    )
    row, image, distance = found["i"].astype(np.int64), found["j"], found["v"]
    col, shift = atom[image], shift[image]
    # One direction of each pair is decided by its distance, the other one follows.
    x, y, z = shift.T
    ahead = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    half = np.where(row == col, ahead, row < col) & (distance <= radii[row] + radii[col] + _TOUCH_ANG)
    row, col, shift = row[half], col[half], shift[half]
    own = np.arange(len(structure))
    return (
        np.concatenate([own, row, col]),
        np.concatenate([own, col, row]),
        np.concatenate([np.zeros((len(own), 3), np.int64), shift, -shift]),
    )


def _images(structure: Structure, cutoff_ang: float) -> tuple[NDArray, NDArray, NDArray]:
    """Atoms of all cells that reach to within the cutoff of a home atom: (atom, shift (n, 3), position (n, 3) Å)."""
    fractional = structure.fractional_positions
    # Distance between lattice planes along each reciprocal vector decides how many cells the cutoff spans.
    heights = 1 / np.linalg.norm(np.linalg.inv(structure.cell), axis=0)
    reach = np.floor(np.ptp(fractional, axis=0) + cutoff_ang / heights).astype(np.int64)
    reach = np.where(structure.pbc, reach, 0)
    cells = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    position = (structure.positions + (cells @ structure.cell)[:, None]).reshape(-1, 3)
    low, high = structure.positions.min(axis=0) - cutoff_ang, structure.positions.max(axis=0) + cutoff_ang
    near = np.flatnonzero(((position >= low) & (position <= high)).all(axis=1)).astype(np.int64)
    return near % len(structure), cells[near // len(structure)], position[near]


def basis_pairs(structure: Structure, basis: Basis) -> Pairs:
    """The pairs whose Hamiltonian block a DFT code with this basis stores.

    Two atoms are joined if their orbitals touch, |r_ij| ≤ r_i + r_j. Where the code counts pairs through projectors
    (``projector_cutoff_ang`` > 0) they are also joined if both touch the projector of one atom c, which may be one of
    the two: |r_ic| ≤ r_i + p_c and |r_jc| ≤ r_j + p_c.
    """
    species = basis.species_of(structure)
    orbital = np.array([s.cutoff_ang for s in basis.species])[species]
    row, col, shift = pairs_within(structure, orbital)
    projector = np.array([s.projector_cutoff_ang for s in basis.species])[species]
    if projector.any():
        row, col, shift = _with_projector_pairs(structure, orbital, projector, (row, col, shift))
    return Pairs.build(species, row, col, shift)[0]


def _with_projector_pairs(structure: Structure, orbital: NDArray, projector: NDArray, direct: _Triples) -> _Triples:
    # Legs i → (c, R) with |r_ic| ≤ r_i + p_c. Two legs that end on one projector make the pair (i, j).
    i, c, cell = pairs_within(structure, float(orbital.max() + projector.max()))
    length = np.linalg.norm(structure.positions[c] + cell @ structure.cell - structure.positions[i], axis=1)
    keep = (length <= orbital[i] + projector[c] + _TOUCH_ANG) & (projector[c] > 0)
    order = np.flatnonzero(keep)[np.argsort(c[keep], kind="stable")]
    i, c, cell = i[order], c[order], cell[order]
    count = np.bincount(c, minlength=len(structure))
    # Each pair as one integer: to sort those is many times faster than to sort rows of five.
    reach = 2 * max(int(np.abs(cell).max(initial=0)), int(np.abs(direct[2]).max(initial=0)))
    sizes = (len(structure), len(structure), 2 * reach + 1, 2 * reach + 1, 2 * reach + 1)

    def key(row: NDArray, col: NDArray, shift: NDArray) -> NDArray[np.int64]:
        return np.ravel_multi_index((row, col, *(shift + reach).T), sizes)

    known, recent = key(*direct), []
    # Leg a with every leg b of the same projector, in portions of whole projectors.
    first_leg = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
    portion = np.cumsum(count**2) // _JOIN_ROWS
    for number in np.unique(portion):
        centres = np.flatnonzero(portion == number)
        legs = np.arange(int(first_leg[centres[0]]), int(first_leg[centres[-1] + 1]))
        partners = count[c[legs]]
        a = np.repeat(legs, partners)
        b = np.arange(len(a)) - np.repeat(np.cumsum(partners) - partners, partners) + first_leg[c[a]]
        # Seen from c, atom i sits in cell −cell_i: the pair's shift is cell_i − cell_j.
        recent.append(np.unique(key(i[a], i[b], cell[a] - cell[b])))
        if sum(map(len, recent)) > max(len(known), _JOIN_ROWS):
            known, recent = np.unique(np.concatenate([known, *recent])), []
    row, col, *shift = np.unravel_index(np.unique(np.concatenate([known, *recent])), sizes)
    return row, col, np.stack(shift, axis=1) - reach


def check_distances(structure: Structure, *, smallest_ang: float = 0.4) -> None:
    """Raise :class:`StructureError` where two atoms (or an atom and its image) are closer than `smallest_ang`."""
    row, col, shift = pairs_within(structure, smallest_ang)
    other = (row != col) | shift.any(axis=1)
    if other.any():
        i, j, cell = row[other][0], col[other][0], shift[other][0]
        distance = np.linalg.norm(structure.positions[j] + cell @ structure.cell - structure.positions[i])
        image = f" in cell {tuple(cell.tolist())}" if cell.any() else ""
        raise StructureError(
            f"atoms {i} ({structure.labels[i]}) and {j} ({structure.labels[j]}){image} overlap: {distance:.3f} Å apart",
            expected=f"more than {smallest_ang} Å",
            remedy="atom indices count from 0; check units (Å) and fractional against Cartesian coordinates",
        )
