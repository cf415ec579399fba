"""Layers of one kind of magnetic atom, and textures on them, for tests of textures."""

from __future__ import annotations

import numpy as np

from hamnet.structure import Structure
from hamnet.textures.plane import plane_of
from hamnet.textures.solitons import skyrmion_lattice

HEXAGONAL = np.array([[3.7, 0, 0], [-1.85, 3.7 * np.sqrt(3) / 2, 0], [0, 0, 12.0]])
SITES = {
    "triangular": [[0.1, 0.2, 0.5]],
    "honeycomb": [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]],
    "kagome, buckled": [[0.5, 0, 0.51], [0, 0.5, 0.49], [0.5, 0.5, 0.5]],
}


def crystal_of(sites: str = "triangular", cell: np.ndarray = HEXAGONAL) -> Structure:
    fractions = np.array(SITES[sites])
    n = len(fractions)
    return Structure(cell, fractions @ cell, np.full(n, 28), ("Ni",) * n)


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def skyrmions(crystal: Structure, **options) -> np.ndarray:
    """Directions of one skyrmion in the middle of the cell, Cartesian."""
    plane = plane_of(crystal.cell)
    centre = options.pop("centre", plane.vectors.sum(axis=0) / 2)
    local = skyrmion_lattice(plane.texture_points(crystal.positions), plane.vectors, centre, **options)
    return local @ plane.frame
