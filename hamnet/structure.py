"""The crystal: cell, positions, species and the vector moments that the network takes as input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import StructureError

__all__ = ["Structure", "checked_rotation", "frozen"]

_SMALLEST_VOLUME_ANG3 = 1e-3


def frozen(values: ArrayLike, dtype: type) -> NDArray:
    """A read-only C-contiguous copy of `values`."""
    array = np.array(values, dtype=dtype, order="C")
    array.flags.writeable = False
    return array


def checked_rotation(rotation: ArrayLike) -> tuple[NDArray[np.float64], float]:
    """An orthogonal (3, 3) matrix and its determinant, +1 (proper) or −1 (improper)."""
    matrix = np.asarray(rotation, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.abs(matrix @ matrix.T - np.eye(3)).max() <= 1e-9:
        raise StructureError(f"rotation {matrix.tolist()}", expected="an orthogonal 3×3 matrix")
    return matrix, float(np.sign(np.linalg.det(matrix)))


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """A periodic crystal with vector moments.

    Attributes
    ----------
    cell : (3, 3) Å, rows are the lattice vectors, right-handed.
    positions : (n, 3) Å, Cartesian. They need not lie inside the cell: pair shifts refer to them as they are.
    numbers : (n,) atomic numbers.
    labels : species label of each atom; the key into :class:`hamnet.basis.Basis`.
    moments : (n, 3) μ_B, Cartesian, vector with size, or None where nothing is known about magnetism.
        Axial and odd under time reversal.
    pbc : (3,) periodic directions.
    grid_axes : (3, 3) Å, rows are the steps a_i / N_i of the DFT code's real-space grid, or None. The grid lowers the
        symmetry of a computed Hamiltonian below that of the crystal, by tens of meV where it is coarse. None means no
        grid: H with the symmetry of the crystal.
    """

    cell: NDArray[np.float64]
    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]
    labels: tuple[str, ...]
    moments: NDArray[np.float64] | None = None
    pbc: NDArray[np.bool_] = (True, True, True)  # type: ignore[assignment]
    grid_axes: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__  # the documented way to normalise fields of a frozen dataclass
        put(self, "cell", frozen(self.cell, np.float64))
        put(self, "positions", frozen(self.positions, np.float64))
        put(self, "numbers", frozen(self.numbers, np.int64))
        put(self, "labels", tuple(self.labels))
        put(self, "pbc", frozen(self.pbc, np.bool_))
        if self.moments is not None:
            put(self, "moments", frozen(self.moments, np.float64))
        if self.grid_axes is not None:
            put(self, "grid_axes", frozen(self.grid_axes, np.float64))
        self._validate()

    def _validate(self) -> None:
        n = len(self.positions) if self.positions.ndim else 0
        if self.cell.shape != (3, 3):
            raise StructureError(f"cell of shape {self.cell.shape}", expected="(3, 3), rows are lattice vectors")
        if self.positions.shape != (n, 3) or n == 0:
            raise StructureError(f"positions of shape {self.positions.shape}", expected="(n, 3) with n >= 1")
        if self.grid_axes is not None and self.grid_axes.shape != (3, 3):
            raise StructureError(f"grid axes of shape {self.grid_axes.shape}", expected="(3, 3), rows are grid steps")
        if self.numbers.shape != (n,) or len(self.labels) != n:
            raise StructureError(
                f"{len(self.numbers)} atomic numbers and {len(self.labels)} labels", expected=f"{n}, one per position"
            )
        if self.pbc.shape != (3,):
            raise StructureError(f"pbc of shape {self.pbc.shape}", expected="three flags, one per lattice vector")
        if self.moments is not None and self.moments.shape != (n, 3):
            raise StructureError(
                f"moments of shape {self.moments.shape}",
                expected=f"({n}, 3): one Cartesian vector in μ_B for each of the {n} atoms",
            )
        for name in ("cell", "positions", "moments", "grid_axes"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                where = np.argwhere(~np.isfinite(values))[0]
                raise StructureError(
                    f"{name}[{where[0]}, {where[1]}] is {values[tuple(where)]}", expected="a finite number"
                )
        volume = float(np.linalg.det(self.cell))
        if abs(volume) < _SMALLEST_VOLUME_ANG3:
            raise StructureError(
                f"singular cell, volume {volume:.3g} Å^3", expected="three independent lattice vectors"
            )
        if volume < 0:
            raise StructureError(
                f"left-handed cell, volume {volume:.3g} Å^3",
                expected="a right-handed set of lattice vectors",
                remedy="exchange two lattice vectors (and the cell shifts and k fractions that go with them)",
            )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def volume_ang3(self) -> float:
        return float(np.linalg.det(self.cell))

    @property
    def reciprocal_cell(self) -> NDArray[np.float64]:
        """(3, 3) 1/Å, rows b_i with a_i · b_j = 2π δ_ij."""
        return np.asarray(np.linalg.inv(self.cell).T * (2 * np.pi), dtype=np.float64)

    @property
    def fractional_positions(self) -> NDArray[np.float64]:
        return self.positions @ np.linalg.inv(self.cell)

    def with_moments(self, moments: ArrayLike | None) -> Self:
        """The same crystal with other moments, (n, 3) μ_B."""
        return replace(self, moments=moments)

    def rotated(self, rotation: ArrayLike) -> Self:
        """The crystal and its moments under the orthogonal matrix `rotation` (3, 3): r → Q r, m → det(Q) Q m.

        For an improper Q the lattice vectors become −Q a_i, the same lattice as a right-handed set; cell shifts then
        change sign. See :func:`hamnet.symmetry.rotate`.
        """
        matrix, handedness = checked_rotation(rotation)
        return replace(
            self,
            cell=handedness * self.cell @ matrix.T,
            positions=self.positions @ matrix.T,
            moments=None if self.moments is None else handedness * self.moments @ matrix.T,
            grid_axes=None if self.grid_axes is None else handedness * self.grid_axes @ matrix.T,
        )

    def translated(self, vector_ang: ArrayLike) -> Self:
        return replace(self, positions=self.positions + np.asarray(vector_ang, dtype=np.float64))

    def permuted(self, order: ArrayLike, shifts: ArrayLike | None = None) -> Self:
        """Atom a of the result is atom ``order[a]`` moved by the lattice vector ``shifts[a]`` (n, 3 integers)."""
        order = np.asarray(order, dtype=np.int64)
        if not np.array_equal(np.sort(order), np.arange(len(self))):
            raise ValueError(f"order {order.tolist()} is no permutation of {len(self)} atoms")
        moved = np.zeros((len(order), 3)) if shifts is None else np.asarray(shifts, dtype=np.float64)
        return replace(
            self,
            positions=self.positions[order] + moved @ self.cell,
            numbers=self.numbers[order],
            labels=tuple(self.labels[i] for i in order),
            moments=None if self.moments is None else self.moments[order],
        )
