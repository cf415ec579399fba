"""Topological charge of a periodic layer of moments.

B. Berg and M. Lüscher, Nucl. Phys. B 190, 412 (1981): the oriented solid angles of the moments at the corners of all
triangles of a closed surface add up to an integer times 4π. Here the surface is the periodic layer, and the triangles
are those of Delaunay, so that any number of magnetic atoms in a primitive cell will do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import Delaunay

from hamnet.errors import StructureError

from .plane import Plane, layers_of, reduced_vectors

__all__ = ["LayerCharge", "layer_charges", "periodic_triangles", "solid_angles"]

_JITTER = 1e-5
_EXCEPTIONAL = 1e-9
_THICKEST_ANG = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class LayerCharge:
    """A layer of magnetic atoms.

    atoms : (n,) their places in the structure. height_ang : mean along the normal.
    charge : topological charge of the periodic layer; None where it is not defined: neighbours with opposite or
        vanishing moments, or atoms that form no layer. largest_angle_deg : between moments of neighbours; the charge
        is that of a continuous texture only where it is far below 180.
    """

    atoms: NDArray[np.int64]
    height_ang: float
    charge: float | None
    largest_angle_deg: float | None


def layer_charges(positions: ArrayLike, moments: ArrayLike, plane: Plane) -> list[LayerCharge]:
    """The charge Q = 1/4π ∫ m·(∂x m × ∂y m) of each layer, of moments (n, 3) at positions (n, 3) Å, lowest first.

    x, y, and the plane's normal n̂ are right-handed: a skyrmion with its core against n̂ has Q = −1.
    """
    positions, moments = np.asarray(positions, dtype=np.float64), np.asarray(moments, dtype=np.float64)
    heights, points, results = plane.heights(positions), plane.points(positions), []
    sizes = np.linalg.norm(moments, axis=1)
    for atoms in layers_of(heights, plane.period_ang):
        turns = np.exp(2j * np.pi * heights[atoms] / plane.period_ang).sum()
        height = float(np.angle(turns) / (2 * np.pi) * plane.period_ang % plane.period_ang)
        apart = (heights[atoms] - height + plane.period_ang / 2) % plane.period_ang
        if np.ptp(apart) > _THICKEST_ANG or (sizes[atoms] == 0).any():
            results.append(LayerCharge(atoms, height, None, None))
            continue
        corners = (moments[atoms] / sizes[atoms, None])[periodic_triangles(points[atoms], plane.vectors)]
        angles, defined = solid_angles(*np.moveaxis(corners, 1, 0))
        largest = np.degrees(np.arccos(np.clip((corners * np.roll(corners, 1, axis=1)).sum(axis=2).min(), -1, 1)))
        charge = round(float(angles.sum() / (4 * np.pi)), 9) + 0.0 if defined.all() else None
        results.append(LayerCharge(atoms, height, charge, float(largest)))
    return results


def solid_angles(
    first: NDArray[np.float64], second: NDArray[np.float64], third: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Oriented solid angles (t,) of spherical triangles with unit corners (t, 3), and where they are defined.

    tan(Ω/2) = m1·(m2 × m3) / (1 + m1·m2 + m2·m3 + m3·m1), −2π < Ω < 2π. Not defined are the exceptional configurations
    of Berg and Lüscher, whose corners lie on a great circle and not on one half of it.
    """
    volume = (first * np.cross(second, third)).sum(axis=1)
    rest = 1 + (first * second).sum(axis=1) + (second * third).sum(axis=1) + (third * first).sum(axis=1)
    return 2 * np.arctan2(volume, rest), (np.abs(volume) > _EXCEPTIONAL) | (rest > _EXCEPTIONAL)


def periodic_triangles(points: ArrayLike, vectors: ArrayLike) -> NDArray[np.int64]:
    """(2n, 3) Delaunay triangles of points (n, 2) Å and all their images under `vectors` (2, 2), one of each kind.

    Corners are places in `points`, counterclockwise. Raises :class:`StructureError` for points on top of each other.
    """
    points, cell = np.asarray(points, dtype=np.float64), reduced_vectors(vectors)
    n, area = len(points), abs(np.linalg.det(cell))
    spacing, inverse = float(np.sqrt(area / n)), np.linalg.inv(cell)
    heights = area / np.linalg.norm(cell[::-1], axis=1)
    generator = np.random.default_rng(0)
    fractions = points @ inverse
    # On a lattice the diagonals of squares are free to choose, and must be chosen alike in all images: displacements
    # far below the spacing decide. They are the same at every call, and enter no number but this choice.
    shaken = (fractions - np.floor(fractions)) + _JITTER * spacing * generator.uniform(-1, 1, (n, 2)) @ inverse
    for margin in spacing * 4.0 * 2.0 ** np.arange(6):
        reach = np.ceil(margin / heights).astype(int)
        shifts = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 2)
        images = (shaken[None] + shifts[:, None]).reshape(-1, 2)
        near = np.flatnonzero(((images > -margin / heights) & (images < 1 + margin / heights)).all(axis=1))
        simplices = Delaunay(images[near] @ cell).simplices
        # Of all images of a triangle the one whose middle lies in the home cell is kept.
        middle = images[near][simplices].mean(axis=1) - generator.random(2) * spacing / heights
        triangles = near[simplices[(np.floor(middle) == 0).all(axis=1)]] % n
        if len(triangles) == 2 * n:  # Euler: a torus of n points has 2n triangles
            return triangles.astype(np.int64)
    raise StructureError(
        f"{n} magnetic atoms of a layer without a periodic triangulation",
        expected="atoms that do not lie on top of each other in the plane",
    )
