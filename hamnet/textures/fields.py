"""Textures that need no more than an axis: ferromagnet, spiral, random directions, and pairs of domain walls."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamnet.errors import StructureError

from .plane import unit_vector

__all__ = ["domain_walls", "ferromagnet", "perpendicular_frame", "random_cone", "random_directions", "spiral"]

_PARALLEL = 1e-6


def ferromagnet(n_atoms: int, direction: ArrayLike) -> NDArray[np.float64]:
    """(n_atoms, 3), all along `direction` (3,)."""
    return np.tile(unit_vector(direction, "direction"), (n_atoms, 1))


def perpendicular_frame(axis: ArrayLike) -> NDArray[np.float64]:
    """(3, 3) rows e1, e2, axis: right-handed; e1 is the part of x perpendicular to the axis (of y for an axis x)."""
    axis = unit_vector(axis, "axis")
    seed = np.array([1.0, 0, 0]) if np.linalg.norm(axis[1:]) > _PARALLEL else np.array([0, 1.0, 0])
    first = unit_vector(seed - (seed @ axis) * axis, "axis")
    return np.stack([first, np.cross(axis, first), axis])


def spiral(
    fractions: ArrayLike, q_frac: ArrayLike, axis: ArrayLike, *, phase_rad: float = 0.0, cone_rad: float = np.pi / 2
) -> NDArray[np.float64]:
    """(n, 3) m = sin α (cos φ e1 + sin φ e2) + cos α n with φ = 2π q·r + phase.

    Parameters
    ----------
    fractions : (n, 3) positions in fractions of the lattice vectors whose reciprocal vectors `q_frac` (3,) counts.
    axis : n, about which the moments turn by +2π q·R from cell to cell; e1, e2: :func:`perpendicular_frame`.
    cone_rad : α, angle between moments and axis; π/2 is the flat spiral.
    """
    phase = 2 * np.pi * (np.asarray(fractions, dtype=np.float64) @ np.asarray(q_frac, dtype=np.float64)) + phase_rad
    local = np.stack(
        [np.sin(cone_rad) * np.cos(phase), np.sin(cone_rad) * np.sin(phase), np.full_like(phase, np.cos(cone_rad))],
        axis=1,
    )
    return local @ perpendicular_frame(axis)


def random_directions(n_atoms: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(n_atoms, 3), uniform on the sphere."""
    return random_cone(n_atoms, (0, 0, 1), np.pi, generator)


def random_cone(n_atoms: int, axis: ArrayLike, angle_rad: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """(n_atoms, 3), uniform on the cap of the sphere within `angle_rad` of the axis."""
    if not 0 <= angle_rad <= np.pi:
        raise StructureError(f"cone angle {np.degrees(angle_rad):g}°", expected="0 … 180°, from the axis")
    along = 1 - (1 - np.cos(angle_rad)) * generator.random(n_atoms)
    azimuth = 2 * np.pi * generator.random(n_atoms)
    across = np.sqrt(np.clip(1 - along**2, 0, None))
    local = np.stack([across * np.cos(azimuth), across * np.sin(azimuth), along], axis=1)
    return local @ perpendicular_frame(axis)


def domain_walls(
    distance_ang: ArrayLike,
    period_ang: float,
    *,
    count: int,
    width_ang: float,
    normal: ArrayLike,
    axis: ArrayLike,
    kind: Literal["bloch", "neel"] = "bloch",
    chirality: int = 1,
    wound: bool = True,
) -> NDArray[np.float64]:
    """(n, 3) domains along ± `axis` with `count` equidistant walls in a period, the first at period / (2 count).

    A single wall at s = 0 is m = −tanh(s/Δ) axis ± sech(s/Δ) e, the Landau–Lifshitz profile of width Δ = √(A/K); its
    full width is πΔ. Walls add their angles, θ = Σ 2 arctan exp((s − s_k)/Δ), images included.

    Parameters
    ----------
    distance_ang : (n,) s along the walls' normal.
    kind : e is along the normal (``neel``) or along axis × normal (``bloch``).
    chirality : ±1, the sign of m·e in the first wall.
    wound : all walls turn in one sense, as a Dzyaloshinskii–Moriya interaction wants it; else every second turns back.

    Raises :class:`StructureError` for an odd count, walls that overlap, or an axis along the normal.
    """
    if count < 2 or count % 2:
        near = [n for n in (count - 1, count + 1) if n >= 2]
        raise StructureError(
            f"{count} domain walls in a periodic cell",
            expected=f"an even number, such as {' or '.join(map(str, near)) or 2}: domains alternate",
        )
    spacing = period_ang / count
    if not 0 < np.pi * width_ang <= spacing:
        raise StructureError(
            f"{count} walls of width {width_ang:g} Å (each takes π times that) in {period_ang:.4g} Å",
            expected=f"a positive width of at most {spacing / np.pi:.4g} Å, or a period of at least "
            f"{count * np.pi * max(width_ang, 0):.4g} Å",
            remedy="use a longer supercell, narrower or fewer walls",
        )
    axis, normal = unit_vector(axis, "axis of the domains"), unit_vector(normal, "normal")
    across = normal - (normal @ axis) * axis
    if np.linalg.norm(across) < _PARALLEL:
        raise StructureError(
            "domains along the normal of their walls",
            expected="another axis: Bloch and Néel walls are not defined for head-to-head domains",
        )
    across = unit_vector(across, "normal")
    if kind == "bloch":
        across = np.cross(axis, across)
    s = np.asarray(distance_ang, dtype=np.float64)
    s = s - period_ang * np.floor(s / period_ang)
    # Beyond 40 Δ a wall is 0 or π to rounding, and whole periods add multiples of 2π.
    images = int(np.ceil(40 * width_ang / period_ang))
    angle = np.zeros_like(s)
    for k in range(-images * count, (images + 1) * count):
        sense = 1 if wound or k % 2 == 0 else -1
        angle += sense * 2 * np.arctan(np.exp(np.clip((s - (k + 0.5) * spacing) / width_ang, -700, 700)))
    # Images on the left are complete turns only in pairs of walls: `images · count` is even.
    return np.cos(angle)[:, None] * axis + chirality * np.sin(angle)[:, None] * across
