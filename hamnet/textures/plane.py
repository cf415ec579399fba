"""The plane of a texture: two lattice vectors, a Cartesian frame with their normal, and the layers along it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamnet.errors import StructureError
from hamnet.structure import frozen

__all__ = ["PLANES", "Plane", "layers_of", "plane_of", "reduced_vectors", "shortest_image", "unit_vector"]

PLANES = {"ab": (0, 1, 2), "bc": (1, 2, 0), "ca": (2, 0, 1)}
"""Name of a plane: its two lattice vectors and the third one."""

_LAYER_GAP_ANG = 0.5
_NEARLY_PARALLEL = 0.1
_TIE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Two lattice vectors of a cell.

    Attributes
    ----------
    frame : (3, 3) rows x̂, ŷ, n̂: right-handed, n̂ along the vector product of the two vectors, x̂ the part inside the
        plane of Cartesian x for ``ab``, y for ``bc``, z for ``ca`` (of the next one, if that is along the normal).
    vectors : (2, 2) Å, the two lattice vectors in x̂, ŷ.
    inverse : (3, 3) of the cell; axes : places of the two vectors and of the third one in the cell.
    period_ang : of the stacking along n̂.
    """

    frame: NDArray[np.float64]
    vectors: NDArray[np.float64]
    inverse: NDArray[np.float64]
    axes: tuple[int, int, int]
    period_ang: float

    def points(self, positions: ArrayLike) -> NDArray[np.float64]:
        """(n, 2) Å, projections of (n, 3) along the normal."""
        return np.asarray(positions, dtype=np.float64) @ self.frame[:2].T

    def texture_points(self, positions: ArrayLike) -> NDArray[np.float64]:
        """(n, 2) Å, projections along the third lattice vector: a texture in these has the period of the cell."""
        fractions = np.asarray(positions, dtype=np.float64) @ self.inverse
        return fractions[:, self.axes[:2]] @ self.vectors

    def heights(self, positions: ArrayLike) -> NDArray[np.float64]:
        """(n,) Å along the normal."""
        return np.asarray(positions, dtype=np.float64) @ self.frame[2]


def unit_vector(vector: ArrayLike, name: str) -> NDArray[np.float64]:
    """The direction of (3,). Raises :class:`StructureError` for a vector without one; `name` says which it is."""
    vector = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(vector))
    if vector.shape != (3,) or not np.isfinite(length) or length == 0:
        raise StructureError(f"{name} {vector.tolist()}", expected="three numbers that are not all zero")
    return vector / length


def plane_of(cell: ArrayLike, name: str = "ab") -> Plane:
    """The plane ``ab``, ``bc`` or ``ca`` of a cell (3, 3) Å."""
    if name not in PLANES:
        raise StructureError(f"plane {name!r}", expected=f"one of {', '.join(PLANES)}")
    cell = np.asarray(cell, dtype=np.float64)
    first, second, third = PLANES[name]
    normal = unit_vector(np.cross(cell[first], cell[second]), "normal")
    seed = np.eye(3)[first]
    if np.linalg.norm(np.cross(normal, seed)) < _NEARLY_PARALLEL:
        seed = np.eye(3)[second]
    x = unit_vector(seed - (seed @ normal) * normal, "x axis of the plane")
    frame = np.stack([x, np.cross(normal, x), normal])
    return Plane(
        frozen(frame, np.float64),
        frozen(cell[[first, second]] @ frame[:2].T, np.float64),
        frozen(np.linalg.inv(cell), np.float64),
        (first, second, third),
        float(abs(cell[third] @ normal)),
    )


def reduced_vectors(vectors: ArrayLike) -> NDArray[np.float64]:
    """The two shortest vectors (2, 2) that span the same plane lattice, right-handed (Gauss's reduction)."""
    first, second = np.array(vectors, dtype=np.float64)
    while True:
        # Round-off must not choose between vectors of equal length, as there are in a hexagonal lattice.
        if second @ second < (1 - _TIE) * (first @ first):
            first, second = second, first
        shorter = second - np.rint((first @ second) / (first @ first)) * first
        if shorter @ shorter > (1 - _TIE) * (second @ second):
            return np.stack([first, second if first[0] * second[1] > first[1] * second[0] else -second])
        second = shorter


def shortest_image(difference: ArrayLike, vectors: ArrayLike) -> NDArray[np.float64]:
    """(…, 2) difference vectors in Å → their shortest periodic images in the lattice of `vectors` (2, 2)."""
    cell = reduced_vectors(vectors)
    fractions = np.asarray(difference, dtype=np.float64) @ np.linalg.inv(cell)
    wrapped = (fractions - np.rint(fractions)) @ cell
    best, length = wrapped, (wrapped**2).sum(axis=-1)
    # In a reduced cell the nearest image is this one or a next neighbour.
    for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        other = wrapped + i * cell[0] + j * cell[1]
        squared = (other**2).sum(axis=-1)
        closer = squared < length
        best, length = np.where(closer[..., None], other, best), np.where(closer, squared, length)
    return best


def layers_of(heights: ArrayLike, period_ang: float) -> list[NDArray[np.int64]]:
    """Atoms of each layer, from the lowest up: heights (n,) in Å, modulo the period, with gaps above 0.5 Å between."""
    heights = np.asarray(heights, dtype=np.float64) % period_ang
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order], append=heights[order[0]] + period_ang)
    # A layer at height 0 has atoms just above 0 and, by round-off, just below the period.
    first = 0 if gaps[-1] > _LAYER_GAP_ANG else (int(np.argmax(gaps > _LAYER_GAP_ANG)) + 1) % len(order)
    order, gaps = np.roll(order, -first), np.roll(gaps, -first)
    return np.split(order, np.flatnonzero(gaps[:-1] > _LAYER_GAP_ANG) + 1)
