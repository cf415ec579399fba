"""The linear tetrahedron method: weights of the corners, analytic in the energy.

Inside a tetrahedron with corner energies e₁ ≤ e₂ ≤ e₃ ≤ e₄ energies and matrix elements are linear. The volume is that
of one tetrahedron = 1, so that a full one gives ¼ to each corner. P. E. Blöchl, O. Jepsen and O. K. Andersen,
Phys. Rev. B 49, 16223 (1994), doi:10.1103/PhysRevB.49.16223, appendices B and C (without their correction for metals,
which is not linear interpolation).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["density_weights", "occupied_weights", "tetrahedra"]


def tetrahedra(size: tuple[int, int, int], reciprocal_cell: ArrayLike) -> NDArray[np.int64]:
    """(6 n_k, 4) flat mesh indices of the corners of all tetrahedra, around the whole (periodic) zone.

    Each parallelepiped of the mesh is cut along its shortest diagonal, as this interpolates over the least distance.
    With one point along a direction the method is that of triangles, or of the straight line.
    """
    size_array = np.asarray(size)
    edges = np.asarray(reciprocal_cell) / size_array[:, None]
    signs = np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    # The length of a direction without points does not matter.
    diagonals = np.linalg.norm(signs @ np.where(size_array[:, None] > 1, edges, 0), axis=1)
    sign = signs[int(np.argmin(np.round(diagonals, 9)))]
    # From one end of the diagonal to the other, one edge after another, in each of the 6 orders.
    walks = np.array(
        [np.cumsum([[0, 0, 0], *np.eye(3, dtype=int)[list(p)]], axis=0) for p in itertools.permutations(range(3))]
    )
    corners = np.where(sign > 0, walks, 1 - walks)  # (6, 4, 3)
    origin = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1).reshape(-1, 1, 1, 3)
    place = (origin + corners) % size_array
    flat = np.ravel_multi_index(tuple(np.moveaxis(place, -1, 0)), size)
    return flat.reshape(-1, 4)


def _fractions(energy: NDArray, corners: NDArray) -> tuple[NDArray, ...]:
    """(E − e_j)/(e_i − e_j), the weight of corner i on the edge from j, for each i ≠ j that the formulas use.

    Where two corners are equal the ratio is set to 0; no formula uses it at such an energy.
    """
    e1, e2, e3, e4 = corners.T

    def along(low: NDArray, high: NDArray) -> NDArray:
        return np.divide(energy - low, high - low, out=np.zeros_like(energy), where=high > low)

    return along(e1, e2), along(e1, e3), along(e1, e4), along(e2, e3), along(e2, e4), along(e3, e4)


def occupied_weights(energy: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 4) ∫ λ_i θ(E − e) over the tetrahedron: weights of the corners in an integral over the filled part.

    energy (n,), corners (n, 4) ascending. The sum over corners is the filled fraction. A tetrahedron with four equal
    corners is empty below and full at its energy.
    """
    f12, f13, f14, f23, f24, f34 = _fractions(energy, corners)
    e1, e2, e3, e4 = corners.T
    result = np.zeros((len(energy), 4))
    # Below e2 a small tetrahedron is filled.
    part = (energy >= e1) & (energy < e2)
    c, a, b, d = (f12 * f13 * f14 / 4)[part], f12[part], f13[part], f14[part]
    result[part] = c[:, None] * np.stack([4 - a - b - d, a, b, d], axis=1)
    # Between e2 and e3 three of them.
    part = (energy >= e2) & (energy < e3)
    a13, a14, a23, a24 = f13[part], f14[part], f23[part], f24[part]
    c1 = a14 * a13 / 4
    c2 = a14 * a23 * (1 - a13) / 4
    c3 = a23 * a24 * (1 - a14) / 4
    result[part] = np.stack(
        [
            c1 + (c1 + c2) * (1 - a13) + (c1 + c2 + c3) * (1 - a14),
            c1 + c2 + c3 + (c2 + c3) * (1 - a23) + c3 * (1 - a24),
            (c1 + c2) * a13 + (c2 + c3) * a23,
            (c1 + c2 + c3) * a14 + c3 * a24,
        ],
        axis=1,
    )
    # Above e3 all but a small one.
    part = (energy >= e3) & (energy < e4)
    a, b, d = 1 - f14[part], 1 - f24[part], 1 - f34[part]
    c = a * b * d / 4
    result[part] = 0.25 - c[:, None] * np.stack([a, b, d, 4 - a - b - d], axis=1)
    result[energy >= e4] = 0.25
    return result


def density_weights(energy: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 4) ∫ λ_i δ(E − e) over the tetrahedron in 1/eV, the derivative of :func:`occupied_weights`.

    The sum over corners is the density of states. A tetrahedron with four equal corners has a δ there and gives 0.
    """
    f12, f13, f14, f23, f24, f34 = _fractions(energy, corners)
    e1, e2, e3, e4 = corners.T
    result = np.zeros((len(energy), 4))
    part = (energy >= e1) & (energy < e2)
    a, b, d = f12[part], f13[part], f14[part]
    g = a * b / (e4 - e1)[part]
    result[part] = g[:, None] * np.stack([3 - a - b - d, a, b, d], axis=1)
    part = (energy >= e2) & (energy < e3)
    a13, a14, a23, a24 = f13[part], f14[part], f23[part], f24[part]
    width = (e4 - e1)[part]
    # The cut is a quadrangle of two triangles, with corners on the edges 13, 23, 14 and on 23, 24, 14.
    g1, g2 = a13 * (1 - a23) / width, a23 * (1 - a24) / width
    result[part] = np.stack(
        [
            g1 * (2 - a13 - a14) + g2 * (1 - a14),
            g1 * (1 - a23) + g2 * (2 - a23 - a24),
            g1 * (a13 + a23) + g2 * a23,
            g1 * a14 + g2 * (a14 + a24),
        ],
        axis=1,
    )
    part = (energy >= e3) & (energy < e4)
    a, b, d = 1 - f14[part], 1 - f24[part], 1 - f34[part]
    g = b * d / (e4 - e1)[part]
    result[part] = g[:, None] * np.stack([a, b, d, 3 - a - b - d], axis=1)
    return result
