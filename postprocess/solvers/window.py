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
from .lanczos import states_near
from .pencil import BlochPencil

__all__ = ["Window", "checked_residual_ev", "count_below", "factor_off_states", "nearest_window", "solve_window"]

ComplexArray = NDArray[np.complex128]

# States that one shift is asked for: more of them cost more iterations than a further factorisation.
_PER_SHIFT = 50
# Edges stay so far from states: far above the error of the states, far below their spacing.
_EDGE_GAP_EV = 1e-6
_MOVES = 8
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
    return _searched(analysis, at, (low, below), (high, above), n_low + n_high, tolerance_ev, per_shift)


def nearest_window(
    analysis: Analysis, at: BlochPencil, energy_ev: float, count: int, *, tolerance_ev: float = 1e-8
) -> Window:
    """At least the `count` states nearest to an energy, in a window whose edges lie in gaps."""
    if count >= at.dim - 2:
        raise SolverError(f"{count} states of a matrix of dimension {at.dim}", expected="fewer")
    asked = min(count + 6, at.dim)
    factor, n_factors = factor_off_states(analysis, at, energy_ev)
    found = states_near(factor, asked, tolerance_ev=tolerance_ev)
    energies = found.energies_ev
    if not found.complete or len(energies) < count + 2:
        raise SolverError(
            f"{len(energies)} of {asked} states near {energy_ev:g} eV converged",
            expected="all of them",
            remedy="ask for a window of energies instead of a number of states",
        )
    shift = factor.sigma_ev, factor.inertia.negative
    del factor
    # Levels beyond the last may be missing copies: the edges lie inside, in the widest of the outermost gaps.
    spare = max(1, (len(energies) - count) // 2)
    gaps = np.diff(energies)
    first = int(np.argmax(gaps[:spare]))
    last = len(gaps) - spare + int(np.argmax(gaps[len(gaps) - spare :]))
    # With all states on one side of the shift, in a gap, it is an edge that has been counted already.
    above, below = bool(energies[0] > shift[0]), bool(energies[-1] < shift[0])
    first, last = -1 if above else first, len(gaps) if below else last
    counts = []
    for place, known in ((first, above), (last, below)):
        if known:
            counts.append(shift)
            continue
        checked, more = factor_off_states(analysis, at, float(energies[place] + energies[place + 1]) / 2)
        counts.append((checked.sigma_ev, checked.inertia.negative))
        n_factors += more
        del checked
    chosen = slice(first + 1, last + 1)
    if counts[1][1] - counts[0][1] == last - first:
        residual = checked_residual_ev(at, energies[chosen], found.vectors[:, chosen])
        return Window(
            at.k_frac, at.channel, counts[0][0], counts[1][0], energies[chosen], found.vectors[:, chosen],
            counts[0][1], residual, n_factors, found.n_solves,
        )  # fmt: skip
    return _searched(analysis, at, counts[0], counts[1], n_factors, tolerance_ev, _PER_SHIFT)


def _searched(
    analysis: Analysis,
    at: BlochPencil,
    lower: tuple[float, int],
    upper: tuple[float, int],
    n_factors: int,
    tolerance_ev: float,
    per_shift: int,
) -> Window:
    """The window between two energies with known counts below them."""
    n_solves = 0
    vectors = [np.zeros((at.dim, 0), np.complex128)]
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
        middle, taken = factor_off_states(analysis, at, (low + high) / 2)
        n_factors += taken
        if wanted <= per_shift:
            found = states_near(middle, wanted, window_ev=(low, high), tolerance_ev=tolerance_ev)
            n_solves += found.n_solves
            if found.complete:
                vectors.append(found.vectors)
                continue
        half = (middle.sigma_ev, middle.inertia.negative)
        del middle
        open_intervals += [(half, (high, above)), ((low, below), half)]
    # States of neighbouring shifts are orthogonal only as far as they have converged.
    levels, states = _joined(at, vectors)
    residual = checked_residual_ev(at, levels, states)
    return Window(at.k_frac, at.channel, lower[0], upper[0], levels, states, lower[1], residual, n_factors, n_solves)


def _joined(at: BlochPencil, parts: list[ComplexArray]) -> tuple[NDArray[np.float64], ComplexArray]:
    """Energies, ascending, and orthonormal vectors of all parts: Löwdin's, and the mean of H in each."""
    states = np.concatenate(parts, axis=1)
    along = at.apply_s(states)
    for _ in range(2 if len(parts) > 2 else 0):
        # (1 + δ)^−½ to first order, twice: δ is small, for each part is orthonormal and its states have converged.
        states = states @ (1.5 * np.eye(states.shape[1]) - 0.5 * (states.conj().T @ along))
        along = at.apply_s(states)
    levels = np.einsum("im,im->m", states.conj(), at.h @ states).real
    order = np.argsort(levels)
    return levels[order], states[:, order]


def checked_residual_ev(at: BlochPencil, energies: NDArray[np.float64], x: ComplexArray) -> float:
    """Largest |Hc − ESc| / |c| of states. Raises :class:`SolverError` where these are none."""
    missed = at.h @ x - at.apply_s(x) * energies
    found = float((np.linalg.norm(missed, axis=0) / np.linalg.norm(x, axis=0)).max(initial=0.0))
    if not found < _LARGEST_RESIDUAL_EV:
        raise SolverError(
            f"vectors with a residual of {found:.2g} eV", expected=f"states, to {_LARGEST_RESIDUAL_EV:g} eV",
            remedy="take another back-end; vectors of another program: solve again with a smaller tolerance",
        )  # fmt: skip
    return found
