"""How a supercell stands on a primitive cell: which site and which cell each of its atoms belongs to.

Geometry alone decides; moments play no part. Atoms may stand off their sites, and the lattice may be strained: sites
are those of the primitive cell deformed to M⁻¹ A, where A are the lattice vectors of the supercell.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from hamnet.blocks import Pairs
from hamnet.errors import StructureError
from hamnet.structure import Structure, frozen
from hamnet.supercell import fold_cells
from hamnet.textures.commensurate import supercell_text

__all__ = [
    "TOLERANCE_ANG",
    "Tiling",
    "average_primitive",
    "match_primitive",
    "primitive_shifts",
    "smallest_cell",
]

TOLERANCE_ANG = 0.4
"""How far an atom may stand from its site."""

_LARGEST_STRAIN = 0.03
_LARGEST_FRACTION = 0.25
_FIRST_LOOK = 64


@dataclass(frozen=True, slots=True, eq=False)
class Tiling:
    """A supercell of N primitive cells.

    Attributes
    ----------
    primitive : the primitive cell.
    matrix : (3, 3) integers M, rows: lattice vectors of the supercell in units of the primitive ones, A = M a.
    cells : (N, 3) the primitive cells T inside the supercell, in units of the primitive lattice vectors.
    atoms : (N, n_sites) atom of the supercell on each site of each cell.
    shifts : (N, n_sites, 3) lattice vector R of the supercell by which this atom is away: it stands in cell T + R M.
    displacements_ang : (n, 3) of each atom of the supercell from its site; their mean is zero.
    strain : largest element of (M a)⁻¹ A − 1: how much the primitive lattice had to be deformed.
    """

    primitive: Structure
    matrix: NDArray[np.int64]
    cells: NDArray[np.int64]
    atoms: NDArray[np.int64]
    shifts: NDArray[np.int64]
    displacements_ang: NDArray[np.float64]
    strain: float

    def __post_init__(self) -> None:
        for name in ("matrix", "cells", "atoms", "shifts"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.int64))
        object.__setattr__(self, "displacements_ang", frozen(self.displacements_ang, np.float64))

    def __len__(self) -> int:
        """N, the number of primitive cells."""
        return len(self.cells)

    @property
    def largest_displacement_ang(self) -> float:
        return float(np.linalg.norm(self.displacements_ang, axis=1).max())


def match_primitive(structure: Structure, primitive: Structure, *, tolerance_ang: float = TOLERANCE_ANG) -> Tiling:
    """The tiling of `structure` by `primitive`, whose origin may lie anywhere and whose lattice may be strained by 3 %.

    Raises :class:`StructureError` where the lattice vectors are no whole multiples (with the nearest integer matrix
    and how far it is off), where species or numbers of atoms do not fit, and where an atom stands farther from its site
    than the tolerance.
    """
    matrix, strain = _nearest_matrix(structure, primitive)
    n_cells = round(float(np.linalg.det(matrix)))
    _check_counts(structure, primitive, matrix, n_cells)
    # In units of the primitive vectors as the supercell has them, strain included.
    here, there = structure.fractional_positions @ matrix, primitive.fractional_positions
    cell = np.linalg.inv(matrix) @ structure.cell
    other = structure.numbers[:, None] != primitive.numbers
    first = _rarest(structure)[0]

    def assign(origin: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        apart = here[:, None] - origin - there
        whole = np.rint(apart)
        vectors = (apart - whole) @ cell
        site = np.where(other, np.inf, np.linalg.norm(vectors, axis=2)).argmin(axis=1)
        atom = np.arange(len(site))
        return site, whole[atom, site].astype(np.int64), vectors[atom, site]

    def worst(origin: NDArray) -> float:
        return float(np.linalg.norm(assign(origin)[2], axis=1).max())

    origins = [here[first] - there[p] for p in np.flatnonzero(primitive.numbers == structure.numbers[first])]
    origin = min(origins, key=worst)
    for _ in range(3):  # the atom that was laid on its site may itself stand off it
        origin = origin + assign(origin)[2].mean(axis=0) @ np.linalg.inv(cell)
    site, cells, displacements = assign(origin)
    _check_displacements(structure, displacements, tolerance_ang)
    shift, rest = fold_cells(cells, matrix)
    inside, slot = np.unique(rest, axis=0, return_inverse=True)
    key = slot.ravel() * len(primitive) + site
    if len(inside) != n_cells or len(np.unique(key)) != len(key):
        atom = int(np.flatnonzero(np.bincount(key)[key] > 1)[0])
        twin = int(np.flatnonzero(key == key[atom])[1])
        raise StructureError(
            f"atoms {atom} and {twin} ({structure.labels[atom]}) on one site of the primitive cell",
            expected="one atom on each",
            remedy="give a smaller --tolerance, or the primitive cell that this supercell was made from",
        )
    order = np.argsort(key)
    return Tiling(
        primitive,
        matrix,
        inside,
        order.reshape(n_cells, -1),
        shift[order].reshape(n_cells, -1, 3),
        displacements,
        strain,
    )


def _nearest_matrix(structure: Structure, primitive: Structure) -> tuple[NDArray[np.int64], float]:
    ratio = structure.cell @ np.linalg.inv(primitive.cell)
    matrix = np.rint(ratio).astype(np.int64)
    regular = round(float(np.linalg.det(matrix))) > 0
    # structure.cell = M · primitive.cell · (1 + strain)
    strain = np.inf
    if regular:
        strain = float(np.abs(np.linalg.solve(matrix @ primitive.cell, structure.cell) - np.eye(3)).max())
    if strain > _LARGEST_STRAIN or np.abs(ratio - matrix).max() > _LARGEST_FRACTION:
        off = float(np.linalg.norm(matrix @ primitive.cell - structure.cell, axis=1).max())
        raise StructureError(
            f"a primitive cell that does not tile the supercell: the nearest integer matrix, "
            f"{supercell_text(matrix)}, misses a lattice vector by {off:.3g} Å"
            + (f" (strain {100 * strain:.2g} %)" if regular else ""),
            expected=f"whole multiples of the primitive vectors, strained by at most {100 * _LARGEST_STRAIN:g} %",
            remedy="give the primitive cell in the orientation of the supercell, or have it found (no --primitive)",
        )
    return matrix, strain


def _check_counts(structure: Structure, primitive: Structure, matrix: NDArray, n_cells: int) -> None:
    large, small = (dict(zip(*np.unique(s.numbers, return_counts=True), strict=True)) for s in (structure, primitive))
    if large != {z: n_cells * n for z, n in small.items()}:
        raise StructureError(
            f"{_formula(structure)} is not {n_cells} × {_formula(primitive)} (matrix {supercell_text(matrix)})",
            expected="a supercell with the species of the primitive cell, nothing left out, added or replaced",
        )


def _formula(structure: Structure) -> str:
    labels, counts = np.unique(structure.labels, return_counts=True)
    return " ".join(f"{label}{count}" for label, count in zip(labels.tolist(), counts.tolist(), strict=True))


def _check_displacements(structure: Structure, displacements: NDArray, tolerance_ang: float) -> None:
    distance = np.linalg.norm(displacements, axis=1)
    atom = int(np.argmax(distance))
    if distance[atom] > tolerance_ang:
        raise StructureError(
            f"atom {atom} ({structure.labels[atom]}) is {distance[atom]:.3g} Å from the nearest site of its species, "
            f"{np.count_nonzero(distance > tolerance_ang)} of {len(distance)} atoms are beyond the tolerance",
            expected=f"at most {tolerance_ang:g} Å",
            remedy="give the primitive cell of this crystal, or a larger --tolerance",
        )


def _rarest(structure: Structure) -> NDArray[np.int64]:
    """Atoms of the species with the fewest."""
    numbers, counts = np.unique(structure.numbers, return_counts=True)
    return np.flatnonzero(structure.numbers == numbers[np.argmin(counts)])


def average_primitive(
    structure: Structure, matrix: ArrayLike, *, tolerance_ang: float = TOLERANCE_ANG, periodic: ArrayLike = True
) -> Structure:
    """The primitive cell M⁻¹ A without moments, each site at the mean place of the atoms that share it.

    Raises :class:`StructureError` where the translations of M do not take the crystal to itself, with the matrix that
    was found to do so.
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    n_cells = round(float(np.linalg.det(matrix)))
    if n_cells < 1:
        raise StructureError(f"matrix {supercell_text(matrix)} with determinant {n_cells}", expected="1 or larger")
    cell = np.linalg.inv(matrix) @ structure.cell
    fractions = structure.fractional_positions @ matrix
    free = np.ones(len(structure), dtype=bool)
    sites, atoms = [], []
    # One turn for each site of the primitive cell: few.
    while free.any():
        atom = int(np.argmax(free))
        apart = fractions - fractions[atom]
        apart -= np.rint(apart)
        distance = np.linalg.norm(apart @ cell, axis=1)
        distance[~free | (structure.numbers != structure.numbers[atom])] = np.inf
        near = np.argsort(distance, kind="stable")[:n_cells]
        if not (distance[near] <= 2 * tolerance_ang).all() or len(near) < n_cells:
            raise StructureError(
                f"the matrix {supercell_text(matrix)} asks for {n_cells} copies of atom {atom} "
                f"({structure.labels[atom]}), there are {np.count_nonzero(distance <= 2 * tolerance_ang)}",
                expected="a matrix whose translations take the crystal to itself",
                remedy=f"the smallest cell of this crystal has the matrix "
                f"{supercell_text(smallest_cell(structure, tolerance_ang=tolerance_ang, periodic=periodic))}",
            )
        free[near] = False
        sites.append(fractions[atom] + apart[near].mean(axis=0))
        atoms.append(atom)
    return Structure(
        cell,
        np.array(sites) @ cell,
        structure.numbers[atoms],
        tuple(structure.labels[a] for a in atoms),
        pbc=structure.pbc,
    )


def smallest_cell(
    structure: Structure, *, tolerance_ang: float = TOLERANCE_ANG, periodic: ArrayLike = True
) -> NDArray[np.int64]:
    """(3, 3) M such that M⁻¹ A is the smallest cell of the ideal lattice; 1 if the crystal has no translation inside.

    A translation counts if it takes every atom to within twice the tolerance of one of its species. Averaged over all
    atoms the displacements drop out, so each translation is an exact fraction of the lattice vectors.

    periodic : (3,) directions of the lattice; others (the vacuum of a slab) keep their vector.
    """
    fractions, n = structure.fractional_positions, len(structure)
    rare = _rarest(structure)
    largest = gcd(*np.unique(structure.numbers, return_counts=True)[1].tolist())
    steps = fractions[rare[1:]] - fractions[rare[0]]
    steps = steps - np.rint(steps)
    steps = steps[np.argsort(np.linalg.norm(steps @ structure.cell, axis=1), kind="stable")]
    crystal = _Torus(structure)
    basis = n * np.eye(3, dtype=np.int64)  # of the translations, in units of A / n
    for step in steps:
        if round(n**3 / abs(np.linalg.det(basis))) == largest:
            break
        inside = step * n @ np.linalg.inv(basis)
        if np.linalg.norm((inside - np.rint(inside)) @ (basis / n) @ structure.cell) <= 2 * tolerance_ang:
            continue
        exact = crystal.translation(step, 2 * tolerance_ang)
        if exact is not None:
            basis = _lattice_basis(np.vstack([basis, exact]))
    return _reduced(structure, basis / n, np.broadcast_to(np.asarray(periodic, dtype=bool), 3))


class _Torus:
    """The atoms of a cell, to look up which of them a translation meets."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        # Scaled by the lengths of the vectors, so that the nearest atom in a long cell is the nearest in space.
        self.lengths = np.linalg.norm(structure.cell, axis=1)
        self.fractions = structure.fractional_positions
        self.members = [np.flatnonzero(structure.numbers == z) for z in np.unique(structure.numbers)]
        self.trees = [KDTree(self._home(self.fractions[m]), boxsize=self.lengths * (1 + 1e-15)) for m in self.members]

    def _home(self, fractions: NDArray) -> NDArray:
        return np.minimum((fractions - np.floor(fractions)) * self.lengths, self.lengths * (1 - 1e-15))

    def translation(self, step: NDArray, tolerance_ang: float) -> NDArray[np.int64] | None:
        """n times the exact translation near `step` (fractions), None if it does not take the crystal to itself."""
        total = np.zeros(3, dtype=np.int64)
        for tree, members in zip(self.trees, self.members, strict=True):
            for part in (members[:_FIRST_LOOK], members):
                moved = self.fractions[part] + step
                found = members[tree.query(self._home(moved))[1]]
                apart = moved - self.fractions[found]
                whole = np.rint(apart)
                distance = np.linalg.norm((apart - whole) @ self.structure.cell, axis=1)
                if (distance > tolerance_ang).any() or len(np.unique(found)) != len(found):
                    return None
            total += whole.sum(axis=0).astype(np.int64)
        return total


def _lattice_basis(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """A triangular basis (3, 3) of the lattice that rows of integers span: Hermite's normal form, by Euclid."""
    rows = rows.copy()
    for column in range(3):
        while (rest := np.flatnonzero(rows[column + 1 :, column]) + column + 1).size:
            pivot = min([column, *rest], key=lambda i: abs(rows[i, column]) or np.inf)
            rows[[column, pivot]] = rows[[pivot, column]]
            rows[column + 1 :] -= (rows[column + 1 :, column] // rows[column, column])[:, None] * rows[column]
    return rows[:3]


def _reduced(structure: Structure, basis: NDArray, periodic: NDArray[np.bool_]) -> NDArray[np.int64]:
    """M of the lattice with this basis: along the supercell's own vectors where these allow, else of short vectors."""
    from ase.geometry import minkowski_reduce

    whole = np.rint(np.linalg.inv(basis)).astype(np.int64)
    along = np.gcd.reduce(whole, axis=1)
    if along.prod() == round(abs(np.linalg.det(whole))):
        return np.diag(along)
    cell = basis @ structure.cell
    if np.linalg.det(cell) < 0:
        cell[0] *= -1
    if periodic.any():
        cell = minkowski_reduce(cell, pbc=periodic)[0]  # type: ignore[arg-type]
    return np.rint(structure.cell @ np.linalg.inv(cell)).astype(np.int64)


def primitive_shifts(pairs: Pairs, tiling: Tiling) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of atoms as pairs of sites: (row site, column site (n_pairs,), shift (n_pairs, 3) in primitive cells)."""
    n_atoms = tiling.atoms.size
    site, cell = np.empty(n_atoms, dtype=np.int64), np.empty((n_atoms, 3), dtype=np.int64)
    site[tiling.atoms] = np.arange(tiling.atoms.shape[1])
    cell[tiling.atoms] = tiling.cells[:, None] + tiling.shifts @ tiling.matrix
    shift = cell[pairs.col] + pairs.shift @ tiling.matrix - cell[pairs.row]
    return site[pairs.row], site[pairs.col], shift
