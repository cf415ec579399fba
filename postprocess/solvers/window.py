"""All states in an energy window, and the proof that they are all.

The inertia of H − aS and H − bS counts the states below a and b. States are searched for around shifts inside the
window, and accepted only if as many are found as the counts say; where some are missing, the window is split and
searched again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import SolverError

from .factor import Analysis, CertifiedFactor, SingularFactorError, certified_factor
from .lanczos import Lanczos, states_near
from .pencil import BlochPencil

__all__ = ["Window", "checked_residual_ev", "count_below", "factor_off_states", "nearest_window", "solve_window"]

ComplexArray = NDArray[np.complex128]

# States that one shift is asked for: more of them cost more iterations than a further factorisation.
_PER_SHIFT = 50
# Edges stay so far from states: far above the error of the states, far below their spacing.
_EDGE_GAP_EV = 1e-6
_MOVES = 8
# Steps that tell how the states lie around a shift; smaller matrices are solved in about as many.
_SCOUTING_STEPS, _SCOUTED_DIM = 12, 1000
# A shift lies in a gap if the nearest state is further away than this share of where the last one lies.
_IN_GAP = 0.5
# A side without states out to so many times that distance has none of the nearest. A window that missed some widens.
_BESIDE, _WIDER = 1.2, 1.25
# Vectors with a larger residual |Hc − ESc| / |c| are no states: converged ones have 1e-6 and less.
_LARGEST_RESIDUAL_EV = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The states of one k and channel with low_ev < E < high_ev.

    Attributes
    ----------
    k_frac, channel : where.
    low_ev, high_ev : edges, moved off states by a few µeV where they touched one.
    energies_ev : (n,) ascending.
    vectors : (dim, n), c†Sc = 1, rows (orbital, spin).
    first : states below low_ev, so that energies_ev[i] is level first + i (from 0) of this k.
    residual_ev : largest |Hc − ESc| / √(c†c).
    n_factors, n_solves : factorisations and block solutions that it took.
    """

    k_frac: NDArray[np.float64]
    channel: int
    low_ev: float
    high_ev: float
    energies_ev: NDArray[np.float64]
    vectors: ComplexArray
    first: int
    residual_ev: float
    n_factors: int
    n_solves: int


def factor_off_states(
    analysis: Analysis, at: BlochPencil, energy_ev: float, *, gap_ev: float = 0.0, direction: int = 1
) -> tuple[CertifiedFactor, int]:
    """A factorisation at `energy_ev` with a certified inertia, and how many it took.

    A shift that hits a state, or lies within gap_ev of one, is moved in `direction` (±1) by a few µeV.
    Raises :class:`SolverError` where no shift near by will do.
    """
    step = max(_EDGE_GAP_EV, gap_ev)
    factor = None
    for move in range(_MOVES):
        shift = energy_ev + direction * step * (3**move - 1) / 2
        try:
            factor = certified_factor(analysis, at, shift)
        except SingularFactorError:
            continue
        if factor.inertia.certified and factor.inertia.nearest_ev > gap_ev:
            return factor, move + 1
    if factor is None:
        raise SolverError(f"a singular matrix at {energy_ev:.6f} eV and beside it", expected="a regular pencil (H, S)")
    raise SolverError(
        f"no certain count of states at {energy_ev:.6f} eV or {abs(factor.sigma_ev - energy_ev):.2g} eV beside it "
        f"(nearest state {factor.inertia.nearest_ev:.2g} eV off, error {factor.inertia.backward_error_ev:.2g} eV)",
        expected="a spacing of states above the error of the factorisation",
        remedy="take another energy, or check that the overlap is positive definite",
    )


def count_below(analysis: Analysis, at: BlochPencil, energy_ev: float) -> int:
    """States below an energy, which is moved by µeV if it hits a state."""
    return factor_off_states(analysis, at, energy_ev)[0].inertia.negative


def solve_window(
    analysis: Analysis,
    at: BlochPencil,
    low_ev: float,
    high_ev: float,
    *,
    tolerance_ev: float = 1e-8,
    per_shift: int = _PER_SHIFT,
) -> Window:
    """All states with low_ev < E < high_ev."""
    if not low_ev < high_ev:
        raise SolverError(f"energy window {low_ev:g} … {high_ev:g} eV", expected="the lower end first")
    lower, n_low = factor_off_states(analysis, at, low_ev, gap_ev=_EDGE_GAP_EV, direction=-1)
    low, below = lower.sigma_ev, lower.inertia.negative
    del lower  # a factor is what memory goes into
    upper, n_high = factor_off_states(analysis, at, high_ev, gap_ev=_EDGE_GAP_EV, direction=1)
    high, above = upper.sigma_ev, upper.inertia.negative
    del upper
    parts = _Parts([], n_low + n_high, 0)
    _search(analysis, at, (low, below), (high, above), parts, tolerance_ev, per_shift)
    return _joined(at, (low, below), (high, above), parts)


def nearest_window(
    analysis: Analysis, at: BlochPencil, energy_ev: float, count: int, *, tolerance_ev: float = 1e-8
) -> Window:
    """At least the `count` states nearest to an energy, in a window whose edges lie in gaps.

    From inside bands the states are searched for around the energy itself. From a gap, which they are almost equally
    far from, this would take long: there a few steps tell where they lie, and they are searched for from the edges of
    the window, which have to be counted at anyway. A side of the gap that has nothing near is left out.
    """
    if count >= at.dim - 2:
        raise SolverError(f"{count} states of a matrix of dimension {at.dim}", expected="fewer")
    factor, n_factors = factor_off_states(analysis, at, energy_ev)
    asked = min(count + 6, at.dim)
    search = Lanczos(factor, asked)
    if at.dim > _SCOUTED_DIM:
        for _ in range(_SCOUTING_STEPS):
            search.step()
        energies, numbers = search.density()
        away = energies - factor.sigma_ev
        nearest, reach = _distances(np.abs(away), numbers, count)
        if nearest > _IN_GAP * reach:
            shift, n_solves = (factor.sigma_ev, factor.inertia.negative), search.n_solves
            sides = [sign for sign in (-1, 1) if ((sign * away > 0) & (np.abs(away) < _BESIDE * reach)).any()]
            del factor, search
            return _from_edges(analysis, at, shift, count, reach, sides, (n_factors, n_solves), tolerance_ev)
    found = search.states(tolerance_ev=tolerance_ev)
    energies = found.energies_ev
    if not found.complete or len(energies) < count + 2:
        raise SolverError(
            f"{len(energies)} of {asked} states near {energy_ev:g} eV converged",
            expected="all of them",
            remedy="ask for a window of energies instead of a number of states",
        )
    shift = factor.sigma_ev, factor.inertia.negative
    del factor, search
    inside, edges = _edges(energies, shift[0], count)
    counts = []
    for edge in edges:
        if edge == shift[0]:
            counts.append(shift)
            continue
        checked, more = factor_off_states(analysis, at, edge)
        counts.append((checked.sigma_ev, checked.inertia.negative))
        n_factors += more
        del checked
    if counts[1][1] - counts[0][1] == inside.stop - inside.start:
        parts = _Parts([found.vectors[:, inside]], n_factors, found.n_solves)
    else:
        parts = _Parts([], n_factors, found.n_solves)
        _search(analysis, at, counts[0], counts[1], parts, tolerance_ev, _PER_SHIFT)
    return _joined(at, counts[0], counts[1], parts)


def _edges(energies: NDArray[np.float64], sigma_ev: float, count: int) -> tuple[slice, tuple[float, float]]:
    """The states of a window with the `count` nearest to sigma, and its edges.

    Levels beyond the last may be missing copies: each edge lies in the widest gap between the `count` nearest states
    and the distance of the last one. With all states on one side of sigma, in a gap, sigma is the other edge.
    """
    away = np.abs(energies - sigma_ev)
    reach = float(away.max())
    places = np.concatenate([[sigma_ev - reach], energies, [sigma_ev + reach]])
    wanted = 1 + np.flatnonzero(away <= np.partition(away, count - 1)[count - 1])
    gaps = np.diff(places)
    first, last = int(np.argmax(gaps[: wanted[0]])), int(wanted[-1] + np.argmax(gaps[wanted[-1] :]))
    low, high = (float(places[n] + places[n + 1]) / 2 for n in (first, last))
    low, high = (sigma_ev if energies[0] > sigma_ev else low), (sigma_ev if energies[-1] < sigma_ev else high)
    return slice(first, last), (low, high)


def _distances(away: NDArray[np.float64], numbers: NDArray[np.float64], count: int) -> tuple[float, float]:
    """Distance of the nearest state, and that within which about `count` and a few more lie.

    away : (n,) distances of energies, ascending. numbers : (n,) of the states that each stands for.
    """
    # Half of the states that an energy stands for lie before it.
    within = np.cumsum(numbers) - numbers / 2
    return float(np.interp(0.5, within, away)), float(np.interp(1.05 * count + 3, within, away))


def _from_edges(
    analysis: Analysis,
    at: BlochPencil,
    shift: tuple[float, int],
    count: int,
    reach: float,
    sides: list[int],
    cost: tuple[int, int],
    tolerance_ev: float,
) -> Window:
    """At least `count` states around a counted shift in a gap: each side from the edge of the window.

    reach : distance in eV within which they are expected; it grows until they are found.
    """
    parts, edges = _Parts([], *cost), {-1: shift, 1: shift}
    while edges[1][1] - edges[-1][1] < count:
        for side in sides:
            factor, taken = factor_off_states(
                analysis, at, shift[0] + side * reach, gap_ev=_EDGE_GAP_EV, direction=side
            )
            parts.n_factors += taken
            before, edges[side] = edges[side], (factor.sigma_ev, factor.inertia.negative)
            interval = (edges[side], before) if side < 0 else (before, edges[side])
            _search(analysis, at, *interval, parts, tolerance_ev, 2 * count, at_edge=factor)
            del factor
        reach *= _WIDER
        sides = [-1, 1]
    return _joined(at, edges[-1], edges[1], parts)


@dataclass(slots=True)
class _Parts:
    """States that were found, shift by shift, and what they took so far."""

    vectors: list[ComplexArray]
    n_factors: int
    n_solves: int


def _search(
    analysis: Analysis,
    at: BlochPencil,
    lower: tuple[float, int],
    upper: tuple[float, int],
    parts: _Parts,
    tolerance_ev: float,
    per_shift: int,
    at_edge: CertifiedFactor | None = None,
) -> None:
    """Add all states between two energies with known counts below them; at_edge: a factorisation at one of them."""
    open_intervals = [(lower, upper)]
    while open_intervals:
        (low, below), (high, above) = open_intervals.pop()
        wanted = above - below
        if wanted < 0:
            raise SolverError(
                f"{below} states below {low:.6f} eV and {above} below {high:.6f} eV", expected="a count that grows",
                remedy="check that the overlap is positive definite",
            )  # fmt: skip
        if wanted == 0:
            continue
        if high - low < _EDGE_GAP_EV:
            raise SolverError(
                f"{wanted} states within {high - low:.1g} eV of {low:.6f} eV that were not all found",
                expected="levels with fewer copies, or further apart",
            )
        if at_edge is None:
            inside, taken = factor_off_states(analysis, at, (low + high) / 2)
            parts.n_factors += taken
        else:
            inside, at_edge = at_edge, None
        if wanted <= per_shift:
            found = states_near(inside, wanted, window_ev=(low, high), tolerance_ev=tolerance_ev)
            parts.n_solves += found.n_solves
            if found.complete:
                parts.vectors.append(found.vectors)
                continue
        middle = (inside.sigma_ev, inside.inertia.negative)
        del inside
        if low < middle[0] < high:
            open_intervals += [(middle, (high, above)), ((low, below), middle)]
        else:
            open_intervals.append(((low, below), (high, above)))


def _joined(at: BlochPencil, lower: tuple[float, int], upper: tuple[float, int], parts: _Parts) -> Window:
    """The window between two counted energies: energies ascending, vectors of all parts orthonormal (Löwdin's), with
    the mean of H in each."""
    states = np.concatenate([np.zeros((at.dim, 0), np.complex128), *parts.vectors], axis=1)
    h_states, s_states = at.h @ states, at.apply_s(states)
    # States of neighbouring shifts are orthogonal only as far as they have converged.
    for _ in range(2 if len(parts.vectors) > 1 else 0):
        # (1 + δ)^−½ to first order, twice: δ is small, for each part is orthonormal and its states have converged.
        turn = 1.5 * np.eye(states.shape[1]) - 0.5 * (states.conj().T @ s_states)
        states, h_states, s_states = states @ turn, h_states @ turn, s_states @ turn
    levels = np.einsum("im,im->m", states.conj(), h_states).real
    residual = _checked(h_states - s_states * levels, states)
    order = np.argsort(levels)
    levels, states = levels[order], states[:, order]
    return Window(
        at.k_frac, at.channel, lower[0], upper[0], levels, states, lower[1], residual, parts.n_factors, parts.n_solves
    )


def checked_residual_ev(at: BlochPencil, energies: NDArray[np.float64], x: ComplexArray) -> float:
    """Largest |Hc − ESc| / |c| of states. Raises :class:`SolverError` where these are none."""
    return _checked(at.h @ x - at.apply_s(x) * energies, x)


def _checked(missed: ComplexArray, x: ComplexArray) -> float:
    found = float((np.linalg.norm(missed, axis=0) / np.linalg.norm(x, axis=0)).max(initial=0.0))
    if not found < _LARGEST_RESIDUAL_EV:
        raise SolverError(
            f"vectors with a residual of {found:.2g} eV", expected=f"states, to {_LARGEST_RESIDUAL_EV:g} eV",
            remedy="take another back-end; vectors of another program: solve again with a smaller tolerance",
        )  # fmt: skip
    return found
