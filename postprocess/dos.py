"""Density of states on a mesh: Gaussian or linear tetrahedra, total and projected.

Both methods give the number of states N(E) in closed form. The density on a grid is the mean over each grid interval,
D = [N(E + δ/2) − N(E − δ/2)] / δ: its sum times δ is the number of states in the window to rounding, however narrow a
band or a width is against the grid, and a flat band is an interval of the right area.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from hamnet.errors import ConfigError
from hamnet.structure import frozen

from .bands import Bands
from .kmesh import KMesh
from .tetrahedron import density_weights, occupied_weights, tetrahedra

__all__ = ["DensityOfStates", "Method", "density_of_states", "number_of_states", "spin_weights", "tetrahedron_density"]

Method = Literal["gaussian", "tetrahedron", "quartic"]

# Terms that are evaluated at a time: some 100 MB of work space.
_CHUNK = 2**20
# ndtr(−8.3) is the rounding of 1.
_GAUSSIAN_REACH = 8.3


@dataclass(frozen=True, slots=True, eq=False)
class DensityOfStates:
    """Per cell; states of a Hamiltonian without spin count twice.

    Attributes
    ----------
    energies_ev : (n_e,) absolute, centres of equal intervals.
    total : (n_channel, n_e) states/eV. Channels are ↑, ↓ for a collinear Hamiltonian, else one.
    integrated : (n_channel, n_e) states below each energy, counted from the lowest state and not from the window.
    projected : (n_projections, n_channel, n_e) states/eV.
    labels : of the projections.
    method, width_ev : how; the width is the Gaussian's standard deviation, 0 for tetrahedra. ``quartic`` is that of
        :mod:`postprocess.solvers.broadened`, without single states.
    """

    energies_ev: NDArray[np.float64]
    total: NDArray[np.float64]
    integrated: NDArray[np.float64]
    projected: NDArray[np.float64]
    labels: tuple[str, ...]
    method: Method
    width_ev: float

    def __post_init__(self) -> None:
        for name in ("energies_ev", "total", "integrated", "projected"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.float64))

    @property
    def step_ev(self) -> float:
        return float(self.energies_ev[1] - self.energies_ev[0])

    @property
    def integral(self) -> float:
        """States in the window: all of them if the window holds them all."""
        return float(self.total.sum() * self.step_ev)


def spin_weights(bands: Bands, axis: ArrayLike) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """(n_k, n_channel, n, 2) shares (1 ± ⟨σ·axis⟩)/2 of each state along and against a direction, and their labels."""
    if bands.spin is None:
        raise ConfigError("bands without ⟨σ⟩", expected="solve_bands(..., spin=True)")
    unit = np.asarray(axis, dtype=np.float64) / np.linalg.norm(axis)
    along = bands.spin @ unit
    return np.stack([(1 + along) / 2, (1 - along) / 2], axis=-1), ("↑", "↓")


def density_of_states(
    bands: Bands,
    mesh: KMesh,
    reciprocal_cell: ArrayLike,
    *,
    window_ev: tuple[float, float] | None = None,
    n_points: int = 2000,
    method: Method = "tetrahedron",
    width_ev: float = 0.05,
    weights: NDArray[np.float64] | None = None,
    labels: tuple[str, ...] = (),
) -> DensityOfStates:
    """Density of states of bands on a whole mesh.

    Parameters
    ----------
    reciprocal_cell : (3, 3) of the structure, chooses the shape of the tetrahedra.
    window_ev : absolute lower and upper end; default: all states and a margin.
    weights, labels : (n_k, n_channel, n, n_projections) shares of each state; default: the Mulliken weights of `bands`.

    Raises :class:`ConfigError` for a window, number of points or width that makes no sense.
    """
    if weights is None:
        weights, labels = bands.weights, bands.groups
    if method == "gaussian" and not width_ev > 0:
        raise ConfigError(f"Gaussian width {width_ev} eV", expected="a positive width")
    if n_points < 2:
        raise ConfigError(f"{n_points} energies", expected="2 or more")
    margin = 10 * width_ev if method == "gaussian" else 0.1
    low, high = window_ev or (float(bands.energies_ev.min()) - margin, float(bands.energies_ev.max()) + margin)
    if not low < high:
        raise ConfigError(f"energy window {low:g} … {high:g} eV", expected="the lower end first")
    # Edges and centres of the intervals in turn.
    grid = np.linspace(low, high, 2 * n_points + 1)
    states = number_of_states(bands, mesh, reciprocal_cell, grid, method=method, width_ev=width_ev, weights=weights)
    density = np.diff(states[..., ::2], axis=-1) * n_points / (high - low)
    return DensityOfStates(
        grid[1::2],
        density[0],
        states[0, :, 1::2],
        density[1:],
        labels,
        method,
        width_ev if method == "gaussian" else 0.0,
    )


def number_of_states(
    bands: Bands,
    mesh: KMesh,
    reciprocal_cell: ArrayLike,
    energies_ev: ArrayLike,
    *,
    method: Method = "tetrahedron",
    width_ev: float = 0.05,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """(1 + n_projections, n_channel, n_e) states per cell below each energy (ascending); the first is the total.

    Of bands of a window, levels below it are counted in the total, not in the projections.
    """
    grid = np.atleast_1d(np.asarray(energies_ev, dtype=np.float64))
    n_k, n_channel, n = bands.energies_ev.shape
    if n_k != len(mesh):
        raise ConfigError(f"states at {n_k} k", expected=f"the {len(mesh)} k of the mesh")
    result = []
    for channel in range(n_channel):
        levels = bands.energies_ev[:, channel]
        shares = np.ones((n_k * n, 1))
        if weights is not None:
            shares = np.concatenate([shares, weights[:, channel].reshape(n_k * n, -1)], axis=1)
        if method == "gaussian":
            result.append(_smeared(levels, width_ev, grid, shares))
        else:
            result.append(_linear(levels, tetrahedra(mesh.size, reciprocal_cell), grid, shares))
    states = np.stack(result, axis=1)
    states[0] += bands.first
    return states * bands.electrons_per_state


def _smeared(levels: NDArray, width_ev: float, grid: NDArray, shares: NDArray) -> NDArray[np.float64]:
    """(n_shares, n_e) with a step ½ erfc((ε − E)/√2σ) for each level."""

    def kernel(energy: NDArray, level: NDArray) -> NDArray:
        return ndtr((energy[:, None] - level) / width_ev)

    rows = levels.reshape(-1, 1)
    members = np.arange(len(rows))[:, None]
    return _count(rows, members, _GAUSSIAN_REACH * width_ev, kernel, grid, shares) / len(levels)


def _linear(levels: NDArray, corners: NDArray, grid: NDArray, shares: NDArray) -> NDArray[np.float64]:
    """(n_shares, n_e) with linear interpolation of each band inside each tetrahedron."""
    n = levels.shape[1]
    result = np.zeros((shares.shape[1], len(grid)))
    for some in _portions(corners, n):
        rows = np.moveaxis(levels[some], 1, 2).reshape(-1, 4)
        members = np.moveaxis(some[:, :, None] * n + np.arange(n), 1, 2).reshape(-1, 4)
        order = np.argsort(rows, axis=1)
        rows, members = np.take_along_axis(rows, order, axis=1), np.take_along_axis(members, order, axis=1)
        result += _count(rows, members, 0.0, occupied_weights, grid, shares)
    return result / len(corners)


def _count(
    rows: NDArray,
    members: NDArray,
    reach_ev: float,
    kernel: Callable[[NDArray, NDArray], NDArray],
    grid: NDArray,
    shares: NDArray,
) -> NDArray[np.float64]:
    """(n_shares, n_e) sum over rows of energies and their members of kernel(E, row) · shares[members].

    rows (n, m) ascending. The kernel is 0 below the first energy of a row − reach and 1/m above the last + reach; it is
    evaluated between them only.
    """
    n_e, m = len(grid), rows.shape[1]
    first = np.searchsorted(grid, rows[:, 0] - reach_ev, side="right")
    last = np.searchsorted(grid, rows[:, -1] + reach_ev, side="left")
    full = np.flatnonzero(last < n_e)
    steps = _gather(np.repeat(last[full], m), members[full].ravel(), np.full(m * len(full), 1 / m), n_e, shares)
    result = np.cumsum(steps, axis=0)
    inside = np.maximum(last - first, 0)
    ends = np.cumsum(inside)
    bounds = np.searchsorted(ends, np.arange(0, max(1, ends[-1]), _CHUNK), side="left").tolist()
    for start, stop in zip(bounds, [*bounds[1:], len(rows)], strict=True):
        row = np.repeat(np.arange(start, stop), inside[start:stop])
        place = np.arange(len(row)) - np.repeat(ends[start:stop] - inside[start:stop], inside[start:stop])
        place += (ends[start - 1] if start else 0) + first[row]
        values = kernel(grid[place], rows[row])
        result += _gather(np.repeat(place, m), members[row].ravel(), values.ravel(), n_e, shares)
    return result.T


def _gather(place: NDArray, member: NDArray, values: NDArray, n_e: int, shares: NDArray) -> NDArray[np.float64]:
    """(n_e, n_shares) Σ values · shares[member] by place."""
    return scipy.sparse.coo_matrix((values, (place, member)), shape=(n_e, len(shares))) @ shares


def tetrahedron_density(bands: Bands, mesh: KMesh, reciprocal_cell: ArrayLike, energy_ev: float) -> float:
    """States/eV per cell at one energy, all channels, by linear tetrahedra: the derivative of N(E) and no mean."""
    corners = tetrahedra(mesh.size, reciprocal_cell)
    total = 0.0
    for some in _portions(corners, bands.energies_ev[0].size):
        levels = bands.energies_ev[some].reshape(*some.shape, -1)
        levels = np.sort(np.moveaxis(levels, 1, 2).reshape(-1, 4), axis=1)
        levels = levels[(levels[:, 0] <= energy_ev) & (energy_ev < levels[:, 3])]
        total += float(density_weights(np.full(len(levels), energy_ev), levels).sum())
    return total / len(corners) * bands.electrons_per_state


def _portions(corners: NDArray[np.int64], n_states: int) -> Iterator[NDArray[np.int64]]:
    step = max(1, _CHUNK // (4 * n_states))
    for start in range(0, len(corners), step):
        yield corners[start : start + step]
