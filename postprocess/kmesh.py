"""Regular meshes in the Brillouin zone, whole: E(k) = E(−k) holds for no general magnet, so nothing is folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamnet.errors import ConfigError
from hamnet.structure import Structure, frozen

__all__ = ["KMesh", "k_mesh", "mesh_size"]


@dataclass(frozen=True, slots=True, eq=False)
class KMesh:
    """All points of a mesh, of equal weight.

    Attributes
    ----------
    size : points along each reciprocal vector.
    k_frac : (n_k, 3), last direction fastest, so that values reshape to ``size``.
    """

    size: tuple[int, int, int]
    k_frac: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "k_frac", frozen(self.k_frac, np.float64))

    def __len__(self) -> int:
        return len(self.k_frac)


def k_mesh(size: Sequence[int], *, gamma_centred: bool = True) -> KMesh:
    """Mesh of n₁ × n₂ × n₃ points: k = r/n with Γ, or Monkhorst and Pack's k = (2r − n + 1)/2n, r = 0 … n − 1.

    Both are the same for odd n, up to order. Monkhorst and Pack, Phys. Rev. B 13, 5188 (1976), eq. (3),
    doi:10.1103/PhysRevB.13.5188. Raises :class:`ConfigError` for sizes below 1.
    """
    if len(size) != 3 or any(int(n) != n or n < 1 for n in size):
        raise ConfigError(
            f"mesh {' × '.join(map(str, size))}",
            expected="three integers, 1 or larger",
            remedy="use 1 along directions without dispersion, e.g. 12 12 1 for a slab",
        )
    n1, n2, n3 = (int(n) for n in size)
    axes = [np.arange(n) / n if gamma_centred else (2 * np.arange(n) - n + 1) / (2 * n) for n in (n1, n2, n3)]
    k_frac = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return KMesh((n1, n2, n3), k_frac)


def mesh_size(
    structure: Structure, density_ang: float, periodic: ArrayLike = (True, True, True)
) -> tuple[int, int, int]:
    """Mesh with `density_ang` points per 1/Å along each reciprocal vector, and one where nothing is periodic."""
    if not density_ang > 0:
        raise ConfigError(f"k-point density {density_ang} Å", expected="a positive number of points per 1/Å")
    lengths = np.linalg.norm(structure.reciprocal_cell, axis=1)
    wanted = np.maximum(1, np.ceil(density_ang * lengths - 1e-9).astype(int))
    n1, n2, n3 = np.where(np.asarray(periodic, dtype=bool), wanted, 1).tolist()
    return n1, n2, n3
