"""Whether a spiral fits a supercell, and the nearest cells and wave vectors that do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import lcm

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from hamnet.errors import StructureError
from hamnet.structure import Structure

__all__ = [
    "Commensurate",
    "check_commensurate",
    "nearest_commensurate",
    "primitive_cells",
    "smallest_supercell",
    "supercell_text",
]

_LARGEST_DENOMINATOR = 1000
_SAME_POSITION_ANG = 1e-3
_SEARCHED_ATOMS = 500


@dataclass(frozen=True, slots=True)
class Commensurate:
    """A supercell (three rows of integers), a wave vector that fits it, and its distance from the one asked for."""

    matrix: tuple[tuple[int, ...], ...]
    q_frac: tuple[Fraction, ...]
    distance_per_ang: float

    def __str__(self) -> str:
        return (
            f"q = {' '.join(map(str, self.q_frac))} in the supercell {supercell_text(self.matrix)}"
            + (f" ({self.distance_per_ang:.2g}/Å off)" if self.distance_per_ang else "")
        )  # fmt: skip


def supercell_text(matrix: ArrayLike) -> str:
    """A matrix as the command line takes it: three numbers if it is diagonal, else nine, row by row."""
    matrix = np.asarray(matrix)
    numbers = np.diag(matrix) if np.array_equal(matrix, np.diag(np.diag(matrix))) else matrix.ravel()
    return " ".join(str(n) for n in numbers.tolist())


def check_commensurate(q_frac: Sequence[Fraction], matrix: ArrayLike, structure: Structure) -> None:
    """Raise :class:`StructureError` unless the supercell M of `structure` holds whole turns of the spiral.

    q, in fractions of the reciprocal vectors of `structure`, must make M q whole along every periodic lattice vector.
    The error names the nearest wave vectors and cells that do.
    """
    rows = np.asarray(matrix).tolist()
    turns = [sum((n * q for n, q in zip(row, q_frac, strict=True)), Fraction()) for row in rows]
    if all(t.denominator == 1 or not periodic for t, periodic in zip(turns, structure.pbc, strict=True)):
        return
    near = nearest_commensurate(q_frac, matrix, structure.cell)
    told = ", ".join(f"{float(t):.6g}" for t in turns)
    raise StructureError(
        f"a spiral with q = {' '.join(map(str, q_frac))} makes {told} turns along the vectors of the supercell "
        f"{supercell_text(matrix)}",
        expected="whole turns along each of them",
        remedy="the nearest that fit: " + "; ".join(map(str, near)),
    )


def nearest_commensurate(q_frac: Sequence[Fraction], matrix: ArrayLike, cell: ArrayLike) -> list[Commensurate]:
    """Fits near a spiral and a supercell, smallest cell first.

    They are: the nearest q of this supercell (q = 0 only if there is no other); where q has denominators up to 1000,
    the diagonal supercell for it whose size is nearest, and the smallest supercell at all; for a diagonal supercell,
    the best q of those at most half as long again.
    """
    matrix, q = np.asarray(matrix, dtype=np.int64), np.array([float(f) for f in q_frac])
    reciprocal = 2 * np.pi * np.linalg.inv(np.asarray(cell, dtype=np.float64)).T
    found: dict[tuple, Commensurate] = {}

    def add(rows: NDArray[np.int64], whole: Sequence[Fraction]) -> None:
        distance = float(np.linalg.norm((np.array([float(f) for f in whole]) - q) @ reciprocal))
        key = tuple(tuple(int(n) for n in row) for row in rows.tolist())
        found.setdefault((key, tuple(whole)), Commensurate(key, tuple(whole), distance if distance > 1e-12 else 0.0))

    for rows in (matrix, *_longer(matrix, q)):
        add(rows, _nearest_q(rows, q, reciprocal))
    if all(f.denominator <= _LARGEST_DENOMINATOR for f in q_frac):
        sizes = [f.denominator for f in q_frac]
        if np.array_equal(matrix, np.diag(np.diag(matrix))):
            sizes = [d * max(1, round(int(n) / d)) for n, d in zip(np.diag(matrix), sizes, strict=True)]
        add(np.diag(sizes), q_frac)
        smallest = smallest_supercell(q_frac, cell)
        if round(np.linalg.det(smallest)) < np.prod(sizes):
            add(smallest, q_frac)
    fits = sorted(found.values(), key=lambda c: (round(np.linalg.det(np.array(c.matrix))), c.distance_per_ang))
    # Another spiral altogether is no advice, unless there is no other.
    size = float(np.linalg.norm(q @ reciprocal))
    return [fit for fit in fits if fit.distance_per_ang < size / 2] or [min(fits, key=lambda fit: fit.distance_per_ang)]


def _nearest_q(matrix: NDArray[np.int64], q: NDArray[np.float64], reciprocal: NDArray) -> list[Fraction]:
    """The wave vector of the supercell that is nearest to q, other than whole numbers if there is one."""
    below = np.floor(matrix @ q).astype(int)
    candidates = [_solve(matrix, below + np.array(step)) for step in product((-1, 0, 1, 2), repeat=3)]

    def order(candidate: list[Fraction]) -> tuple[bool, float]:
        off = (np.array([float(f) for f in candidate]) - q) @ reciprocal
        return all(f.denominator == 1 for f in candidate), float(np.linalg.norm(off))

    return min(candidates, key=order)


def _solve(matrix: NDArray[np.int64], turns: NDArray) -> list[Fraction]:
    """q of M q = turns, exactly."""
    determinant = round(np.linalg.det(matrix))
    adjugate = np.rint(determinant * np.linalg.inv(matrix)).astype(np.int64)
    return [Fraction(int(n), determinant) for n in adjugate @ turns.astype(np.int64)]


def _longer(matrix: NDArray[np.int64], q: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """For a diagonal supercell, the lengths up to half as long again whose wave vectors come nearest to q."""
    if not np.array_equal(matrix, np.diag(np.diag(matrix))):
        return []
    best = []
    for n, component in zip(np.diag(matrix).tolist(), q.tolist(), strict=True):
        if component == round(component):
            best.append(n)
            continue
        lengths = np.arange(max(2, n - n // 2), max(3, n + n // 2) + 1)
        off = np.abs(np.rint(component * lengths) / lengths - component) + 1e-9 * np.abs(lengths - n)
        best.append(int(lengths[np.argmin(off)]))
    return [np.diag(best)]


def smallest_supercell(q_frac: Sequence[Fraction], cell: ArrayLike) -> NDArray[np.int64]:
    """The supercell with the fewest atoms that holds whole turns of q: rows of integers, short vectors, right-handed.

    Lattice vectors n with q·n whole form a lattice whose index is the common denominator D of q.
    """
    common = lcm(*(f.denominator for f in q_frac))
    rows = [[int(i == j) for j in range(3)] for i in range(3)]
    phases = [int(f * common) % common for f in q_frac]
    # Euclid's algorithm on the phases, with the same steps on the rows; the row of the one phase left is then repeated.
    while sum(phase > 0 for phase in phases) > 1:
        least = min((i for i in range(3) if phases[i]), key=lambda i: phases[i])
        for i in range(3):
            if i != least:
                times, phases[i] = divmod(phases[i], phases[least])
                rows[i] = [a - times * b for a, b in zip(rows[i], rows[least], strict=True)]
    matrix = np.array(rows, dtype=np.int64)
    for i, phase in enumerate(phases):
        if phase:
            matrix[i] *= Fraction(phase, common).denominator
    return _shortened(matrix, np.asarray(cell, dtype=np.float64))


def _shortened(matrix: NDArray[np.int64], cell: NDArray[np.float64]) -> NDArray[np.int64]:
    """The same lattice with shorter vectors: each is reduced by the others until none gets shorter."""
    steps = [np.array(s) for s in product((-1, 0, 1), repeat=2) if any(s)]
    shorter = True
    while shorter:
        shorter = False
        for i in range(3):
            others = np.delete(matrix, i, axis=0)
            basis = others @ cell
            near = np.rint(np.linalg.lstsq(basis.T, matrix[i] @ cell, rcond=None)[0]).astype(np.int64)
            candidates = [matrix[i] - near @ others, *(matrix[i] - (near + s) @ others for s in steps)]
            lengths = [float(np.linalg.norm(c @ cell)) for c in candidates]
            if min(lengths) < np.linalg.norm(matrix[i] @ cell) - 1e-9:
                matrix[i], shorter = candidates[int(np.argmin(lengths))], True
    # Along +a, +b, +c as far as they go, and right-handed.
    matrix = matrix[np.lexsort(tuple(-np.abs(matrix).T[::-1]))]
    matrix = matrix * np.where((matrix.sum(axis=1) < 0)[:, None], -1, 1)
    return matrix if np.linalg.det(matrix) > 0 else matrix[[1, 0, 2]]


def primitive_cells(structure: Structure) -> int:
    """How many primitive cells the cell holds, moments left aside; 1 for cells that are too large to be looked at."""
    numbers, counts = np.unique(structure.numbers, return_counts=True)
    rare = np.flatnonzero(structure.numbers == numbers[np.argmin(counts)])
    if len(structure) > _SEARCHED_ATOMS:
        return 1
    fractions = structure.fractional_positions
    tree = KDTree(fractions - np.floor(fractions), boxsize=np.nextafter(1, 2))
    count = 0
    for atom in rare:
        moved = fractions + fractions[atom] - fractions[rare[0]]
        found = tree.query(moved - np.floor(moved))[1]
        apart = moved - fractions[found]
        apart = np.linalg.norm((apart - np.rint(apart)) @ structure.cell, axis=1)
        count += bool((apart < _SAME_POSITION_ANG).all() and (structure.numbers[found] == structure.numbers).all())
    return count
