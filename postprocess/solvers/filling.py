"""The Fermi level of a large cell: counts of states bracket it, one window of states settles it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from hamnet.errors import SolverError
from hamnet.units import BOLTZMANN_EV_PER_K

from ..fermi import FermiLevel, fermi_level
from .levels import joined
from .pencil import SparsePencil
from .states import States
from .tasks import CountTask, Runner, WindowTask

__all__ = ["sparse_fermi_level"]

# Bisection ends when so many states per k are left: one shift finds them all.
_STATES_PER_K = 40
# A first bracket about a level that someone named, and about one that is only guessed, in eV.
_NEAR_EV, _FAR_EV = 0.5, 2.0
# Occupations farther from μ than so many kT are 1 or 0 to 1e-9.
_REACH_KT = 20.0


def sparse_fermi_level(
    runner: Runner,
    k_frac: ArrayLike,
    n_electrons: float,
    *,
    hint_ev: float | None = None,
    temperature_k: float = 0.0,
    say: Callable[[str], None] | None = None,
) -> tuple[FermiLevel, list[States]]:
    """Fermi level over all points of a mesh (n_k, 3) of equal weight, and the states that it was read from.

    Counts N(E) of all k bisect the energy until the bracket holds few states; these are solved for and filled.

    Parameters
    ----------
    n_electrons : per cell. hint_ev : a level near by, as that of the tile; without one the levels of single orbitals
        give a first guess. temperature_k : of the occupation; states within 20 kT are solved for, at 300 K many.
    say : told each count.

    Raises :class:`SolverError` where the states cannot hold the electrons.
    """
    pencil = runner.pencil
    points = [tuple(map(float, k)) for k in np.atleast_2d(np.asarray(k_frac, dtype=np.float64))]
    places = [(k, channel) for k in points for channel in range(pencil.n_channels)]
    most = pencil.dim * pencil.n_channels * pencil.electrons_per_state
    if not 0 < n_electrons < most:
        raise SolverError(
            f"{n_electrons} electrons for {most} states per cell", expected=f"between 0 and {most}",
            remedy="give the number of valence electrons with --electrons",
        )  # fmt: skip
    wanted = n_electrons / pencil.electrons_per_state * len(points)

    def counted(energy: float) -> int:
        total = int(sum(runner.run([CountTask(k, channel, energy) for k, channel in places])))  # type: ignore[arg-type]
        if say is not None:
            electrons = total / len(points) * pencil.electrons_per_state
            say(f"{electrons:.6g} of {n_electrons:g} electrons below {energy:.4f} eV")
        return total

    start = _guess(pencil, points[0], wanted / len(points)) if hint_ev is None else hint_ev
    low, high = _bracket(counted, start, wanted, _FAR_EV if hint_ev is None else _NEAR_EV)
    low, high = _narrowed(counted, low, high, wanted, _STATES_PER_K * len(places))
    reach = _REACH_KT * BOLTZMANN_EV_PER_K * temperature_k
    states = runner.run([WindowTask(k, channel, low[0] - reach, high[0] + reach) for k, channel in places])  # type: ignore[arg-type]
    while True:
        level = fermi_level(joined(states, pencil.n_channels, pencil.n_spin), n_electrons, temperature_k=temperature_k)
        wider = [] if level.vbm_ev is None else _without_edge(states, level)
        if not wider:
            return level, states
        # A k at which the gap may be the smallest, and only one of its edges, or none, is in the window.
        width = high[0] - low[0]
        low, high = (low[0] - width, low[1]), (high[0] + width, high[1])
        tasks = [WindowTask(*places[number], low[0], high[0]) for number in wider]  # type: ignore[arg-type]
        for number, found in zip(wider, runner.run(tasks), strict=True):
            states[number] = found


def _without_edge(states: list[States], level: FermiLevel) -> list[int]:
    """Numbers of k and channels whose own gap might be smaller than the direct gap that is known."""
    found = []
    for number, state in enumerate(states):
        energies = state.energies_ev
        below, above = energies[energies < level.energy_ev], energies[energies > level.energy_ev]
        least = min(above, default=state.high_ev) - max(below, default=state.low_ev)
        if not (len(below) and len(above)) and least < level.direct_gap_ev:
            found.append(number)
    return found


def _guess(pencil: SparsePencil, k_frac: tuple, filled: float) -> float:
    """The energy below which that many single orbitals lie: no more than a place to begin."""
    diagonals = []
    for channel in range(pencil.n_channels):
        at = pencil.at(k_frac, channel)
        h, s = (np.asarray(np.real(m.diagonal()), np.float64) for m in (at.h, at.s_orbital))
        diagonals.append(h / np.repeat(s, len(h) // len(s)))
    levels = np.sort(np.concatenate(diagonals))
    return float(levels[min(int(filled), len(levels) - 1)])


Point = tuple[float, int]


def _bracket(counted: Callable[[float], int], start: float, wanted: float, step: float) -> tuple[Point, Point]:
    """Two energies with fewer and more states below them than wanted."""
    low, high = (start - step, counted(start - step)), (start + step, counted(start + step))
    while low[1] >= wanted:
        high = low if low[1] > wanted else high
        step *= 2
        low = (low[0] - step, counted(low[0] - step))
    while high[1] <= wanted:
        low = high if high[1] < wanted else low
        step *= 2
        high = (high[0] + step, counted(high[0] + step))
    return low, high


def _narrowed(
    counted: Callable[[float], int], low: Point, high: Point, wanted: float, enough: int
) -> tuple[Point, Point]:
    """The bracket with few states in it; at least one below the level that is wanted, and one above."""
    gap: tuple[float, float] | None = None  # lowest and highest energy with exactly the wanted count
    while high[1] - low[1] > enough:
        if gap is None:
            middle = (low[0] + high[0]) / 2
        elif wanted - low[1] > high[1] - wanted:
            middle = (low[0] + gap[0]) / 2
        else:
            middle = (gap[1] + high[0]) / 2
        if not low[0] + 1e-9 < middle < high[0] - 1e-9:
            break  # a level of so many copies: they are filled as they are
        count = counted(middle)
        if count < wanted:
            low = (middle, count)
        elif count > wanted:
            high = (middle, count)
        else:
            gap = (middle, middle) if gap is None else (min(gap[0], middle), max(gap[1], middle))
    return low, high
