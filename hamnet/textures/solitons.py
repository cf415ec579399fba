"""Textures of a plane with whirls in it: lattices of skyrmions, and of vortices with antivortices.

Points (n, 2) and vectors (2, 2) are in Å in the frame x̂, ŷ of the plane, directions (n, 3) in x̂, ŷ, n̂.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamnet.errors import StructureError

from .plane import reduced_vectors, shortest_image

__all__ = ["skyrmion_lattice", "vortex", "vortex_lattice"]

_SMALLEST_ANG = 1e-9
_TAIL = 23.0
"""Skyrmion fields below e^−23 = 1e-10 of the one at the radius are left out."""


def skyrmion_lattice(
    points: ArrayLike,
    vectors: ArrayLike,
    centres: ArrayLike,
    *,
    radius_ang: float,
    width_ang: float,
    vorticity: int = 1,
    helicity_rad: float = 0.0,
    polarity: int = -1,
) -> NDArray[np.float64]:
    """(n, 3) skyrmions at `centres` (k, 2) Å in each cell of a plane lattice, each of charge vorticity × polarity.

    One skyrmion has m_z = polarity at its centre and −polarity far away, azimuth Φ = vorticity · φ + helicity, and
    tan(θ/2) = sinh(R/w) / sinh(r/w), a 360° wall: m_z = 0 at r = R (Wang, Yuan and Wang, Commun. Phys. 1, 31 (2018)).
    Several add their stereographic fields e^{iΦ} tan(θ/2), so that the texture is smooth and periodic, and its charge
    is that of its skyrmions exactly; where they are close, m_z = 0 is no longer at R.

    Parameters
    ----------
    vorticity : 1 for skyrmions, −1 for antiskyrmions, any integer but 0.
    helicity_rad : for vorticity 1: 0 or π Néel (moments out of or into the centre), ±π/2 Bloch.

    Raises :class:`StructureError` where skyrmions would overlap.
    """
    points, centres = np.asarray(points, dtype=np.float64), np.atleast_2d(np.asarray(centres, dtype=np.float64))
    if vorticity == 0 or polarity not in (-1, 1) or not width_ang > 0 or not radius_ang > 0:
        raise StructureError(
            f"vorticity {vorticity}, polarity {polarity}, radius {radius_ang:g} Å, width {width_ang:g} Å",
            expected="a vorticity other than 0, polarity 1 or −1, radius and width above 0",
        )
    nearest = _nearest_distance(centres, vectors)
    largest = max(radius_ang, width_ang)
    if 2 * largest >= nearest:
        raise StructureError(
            f"skyrmions of radius {radius_ang:g} Å and width {width_ang:g} Å at a distance of {nearest:.4g} Å",
            expected=f"radius and width below {nearest / 2:.4g} Å, or a distance above {2 * largest:g} Å",
            remedy=f"use a supercell more than {2 * largest / nearest:.3g} times as wide, or fewer skyrmions in it",
        )
    cell = reduced_vectors(vectors)
    heights = abs(np.linalg.det(cell)) / np.linalg.norm(cell[::-1], axis=1)
    reach = radius_ang + _TAIL * width_ang
    first, second = (int(np.ceil(reach / height)) for height in heights)
    field = np.zeros(len(points), dtype=np.complex128)
    inverse = np.linalg.inv(cell)
    for centre in centres:
        fractions = (points - centre) @ inverse
        home = (fractions - np.rint(fractions)) @ cell
        for i in range(-first, first + 1):
            for j in range(-second, second + 1):
                x, y = (home + i * cell[0] + j * cell[1]).T
                r = np.maximum(np.hypot(x, y), _SMALLEST_ANG)
                # sinh(R/w)/sinh(r/w) without overflow.
                scale = np.expm1(-2 * radius_ang / width_ang) / np.expm1(-2 * r / width_ang)
                size = np.exp(np.clip((radius_ang - r) / width_ang, -300, 300)) * scale
                field += size * np.exp(1j * vorticity * np.arctan2(y, x))
    field *= np.exp(1j * helicity_rad)
    squared = np.abs(field) ** 2
    in_plane = 2 * field / (1 + squared)
    return np.stack([in_plane.real, in_plane.imag, polarity * (squared - 1) / (squared + 1)], axis=1)


def _nearest_distance(centres: NDArray[np.float64], vectors: ArrayLike) -> float:
    """Shortest distance in Å between any two of the centres, periodic images included."""
    shortest = float(np.linalg.norm(reduced_vectors(vectors)[0]))
    if len(centres) > 1:
        first, second = np.triu_indices(len(centres), k=1)
        apart = shortest_image(centres[first] - centres[second], vectors)
        shortest = min(shortest, float(np.linalg.norm(apart, axis=1).min()))
    return shortest


def vortex_lattice(
    points: ArrayLike,
    vectors: ArrayLike,
    *,
    core_ang: float,
    helicity_rad: float = np.pi / 2,
    polarity: int = 1,
    anti_polarity: int = 1,
) -> NDArray[np.float64]:
    """(n, 3) two vortices and two antivortices in each cell, alternating like the fields of a chess board.

    The windings of a periodic plane add up to zero, and an elliptic function has at least two zeros and two poles: this
    is the smallest periodic arrangement. In the plane m follows the argument of
    f = ϑ1(z − a)ϑ1(z − b) / [ϑ1(z − c)ϑ1(z − d)], a harmonic angle, as exchange alone wants it. Vortices are the zeros
    (¼, ¼), (¾, ¾), antivortices the poles (¾, ¼), (¼, ¾) of the reduced cell. f changes sign by half a diagonal: the
    second vortex turns the other way. At a core m_z = ± sech(r/core), and the part in the plane is tanh(r/core). The
    charge of a cell is polarity − anti_polarity.

    Parameters
    ----------
    helicity_rad : angle between m and the radius at the first vortex; ±π/2 for closed flux.
    polarity, anti_polarity : m_z at the cores of vortices and antivortices.

    Raises :class:`StructureError` for cores that do not fit between each other.
    """
    points, cell = np.asarray(points, dtype=np.float64), reduced_vectors(vectors)
    # (2, 2): places of the vortices; of the antivortices. Their sums agree, as those of f must.
    places = np.array([[0.25, 0.25], [0.75, 0.75]]) @ cell
    others = np.array([[0.75, 0.25], [0.25, 0.75]]) @ cell
    cores = np.concatenate([places, others])
    distance = _nearest_distance(cores, cell)
    if not 0 < 4 * core_ang <= distance:
        raise StructureError(
            f"vortex cores of {core_ang:g} Å at a distance of {distance:.4g} Å",
            expected=f"a positive size of at most a quarter of it, {distance / 4:.4g} Å",
            remedy="use a larger supercell or smaller cores",
        )
    angle = _elliptic_angle(points, cell, places, others)
    # The argument of f at the first vortex, less the azimuth: found at a point beside it.
    beside = places[0] + 1e-4 * core_ang * np.array([[1.0, 0], [-1.0, 0]])
    seen = _elliptic_angle(beside, cell, places, others) - np.array([0, np.pi])
    angle += helicity_rad - np.angle(np.exp(1j * seen).sum())
    return _with_cores(angle, points, cell, cores, [polarity, polarity, anti_polarity, anti_polarity], core_ang)


def vortex(
    points: ArrayLike, centre: ArrayLike, *, core_ang: float, helicity_rad: float = np.pi / 2, polarity: int = 1
) -> NDArray[np.float64]:
    """(n, 3) one vortex at `centre` (2,) Å: no texture of a periodic plane, it jumps at the boundary of the cell."""
    if not core_ang > 0:
        raise StructureError(f"vortex core of {core_ang:g} Å", expected="a positive size")
    x, y = (np.asarray(points, dtype=np.float64) - np.asarray(centre, dtype=np.float64)).T
    r, angle = np.hypot(x, y) / core_ang, np.arctan2(y, x) + helicity_rad
    return np.stack([np.tanh(r) * np.cos(angle), np.tanh(r) * np.sin(angle), polarity * _sech(r)], axis=1)


def _sech(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 2 * np.exp(-x) / (1 + np.exp(-2 * x))


def _with_cores(
    angle: NDArray[np.float64],
    points: NDArray[np.float64],
    cell: NDArray[np.float64],
    cores: NDArray[np.float64],
    polarities: list[int],
    core_ang: float,
) -> NDArray[np.float64]:
    """(n, 3) in-plane angles with m_z at the cores: exactly ±1 at each of them, smooth everywhere."""
    r = np.linalg.norm(shortest_image(points[None] - cores[:, None], cell), axis=-1) / core_ang
    along, up = np.tanh(r), _sech(r)
    in_plane = along.prod(axis=0)
    z = sum(p * up[k] * np.delete(along, k, axis=0).prod(axis=0) for k, p in enumerate(polarities))
    directions = np.stack([in_plane * np.cos(angle), in_plane * np.sin(angle), z], axis=1)
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _elliptic_angle(
    points: NDArray[np.float64], cell: NDArray[np.float64], zeros: NDArray[np.float64], poles: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) argument of the elliptic function with these simple zeros and poles (k, 2), whose sums agree."""
    length = complex(*cell[0])
    tau = complex(*cell[1]) / length
    middle = np.concatenate([zeros, poles]).mean(axis=0)
    fractions = (points - middle) @ np.linalg.inv(cell)
    home = (fractions - np.rint(fractions)) @ cell + middle
    angle = np.zeros(len(points))
    for sign, places in ((1, zeros), (-1, poles)):
        for place in places:
            x, y = (home - place).T
            angle += sign * _theta1_angle((x + 1j * y) / length, tau)
    return angle


def _theta1_angle(z: NDArray[np.complex128], tau: complex) -> NDArray[np.float64]:
    """arg ϑ1(z|τ) up to a constant, by its product (DLMF 20.5.1); Im τ ≥ √3/2 of a reduced cell needs few factors."""
    # ϑ1 ∝ sin πz Π (1 − q^{2n} e^{2πiz}) (1 − q^{2n} e^{−2πiz}); the larger exponential of the sine is taken out.
    sense = np.where(z.imag >= 0, 1, -1)
    angle = -sense * np.pi * z.real + sense * np.pi / 2 + np.angle(1 - np.exp(2j * np.pi * sense * z))
    factors = int(np.ceil(6 / tau.imag + np.abs(z.imag).max() / tau.imag))
    for n in range(1, factors + 1):
        for way in (1, -1):
            angle += np.angle(1 - np.exp(2j * np.pi * (n * tau + way * z)))
    return angle
