"""Charges and moments on atoms: of single states, of energy windows, of all occupied states; the density matrix.

Mulliken populations, each bond shared half to its two atoms (:func:`hamnet.sample.mulliken`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hamnet.blocks import BlockOperator
from hamnet.errors import ConfigError, SolverError
from hamnet.occupations import occupations
from hamnet.structure import frozen
from hamnet.units import BOLTZMANN_EV_PER_K
from hamnet.verify import spin_populations

from ..grouping import Grouping
from .broadened import ResolventTask, check_memory, resolvent_cost, spin_components
from .chebyshev import spectrum_ends
from .pencil import SparsePencil
from .states import States
from .tasks import CountTask, Runner

__all__ = [
    "Populations",
    "contour_populations",
    "density_matrix",
    "local_states",
    "occupied_density",
    "population_labels",
    "state_populations",
    "window_populations",
]

# Occupations farther from μ than so many kT are 1 or 0 to 1e-9.
_REACH_KT = 20.0
# Elements of c c† that are formed at a time: some 100 MB.
_CHUNK = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Populations:
    """Per cell. electrons : (n_groups,). spin : (n_groups, 3) x, y, z, μ_B."""

    electrons: NDArray[np.float64]
    spin: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name in ("electrons", "spin"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.float64))


def state_populations(states: States, pencil: SparsePencil, grouping: Grouping) -> NDArray[np.float64]:
    """(n, n_groups, 4) electrons and spin x, y, z of each state; two electrons in each where there is no spin."""
    if states.vectors is None:
        raise ValueError("states without vectors: solve with Keep(vectors=True)")
    vectors = states.vectors
    along = pencil.at(states.k_frac, states.channel).apply_s(vectors)
    found = spin_populations(
        torch.from_numpy(vectors),
        torch.from_numpy(along),
        torch.from_numpy(grouping.of_orbital.copy()),
        len(grouping.labels),
        spinor=pencil.spinor,
        sign=1.0 - 2 * states.channel if pencil.n_spin == 2 else 0.0,
    )
    return pencil.electrons_per_state * found.numpy()


def population_labels(grouping: Grouping) -> tuple[str, ...]:
    """Labels of the weights of :func:`local_states`."""
    return tuple(f"{label}{part}" for label in grouping.labels for part in ("", " x", " y", " z"))


def local_states(states: Sequence[States], pencil: SparsePencil, grouping: Grouping) -> list[States]:
    """States with populations as weights (n, 4 n_groups): electrons and spin x, y, z of a state, group by group.

    With these weights :func:`postprocess.dos.density_of_states` gives the spin-resolved local density of states, in
    states/eV and μ_B/eV; labels: :func:`population_labels`.
    """
    share = 1 / pencil.electrons_per_state
    return [
        replace(state, weights=share * state_populations(state, pencil, grouping).reshape(len(state), -1))
        for state in states
    ]


def window_populations(states: Sequence[States], pencil: SparsePencil, grouping: Grouping) -> Populations:
    """Electrons that the states of windows at (k, channel) could hold, and their spin, mean over the k.

    The local density of states, integrated over the window.
    """
    total = sum((state_populations(state, pencil, grouping).sum(axis=0) for state in states), np.zeros(4))
    mean = total * pencil.n_channels / len(states)
    return Populations(mean[:, 0], mean[:, 1:])


# -- density matrix ----------------------------------------------------------------------------------------------------


def occupied_density(
    states: Sequence[States],
    pencil: SparsePencil,
    hamiltonian: BlockOperator,
    fermi_ev: float,
    *,
    temperature_k: float = 0.0,
) -> BlockOperator:
    """Density matrix on the pairs of H, from windows at (k, channel) of a whole mesh that hold all occupied states.

    Charges and moments: :func:`hamnet.sample.mulliken` with the overlap. Raises :class:`SolverError` where a window
    begins above occupied states or ends below the occupied tail.
    """
    reach = _REACH_KT * BOLTZMANN_EV_PER_K * temperature_k
    for state in states:
        if state.first > 0:
            raise SolverError(
                f"{state.first} states below the window at k = {_text(state.k_frac)}",
                expected="a window from below the lowest state, for a density matrix",
                remedy=f"begin at {spectrum_ends(pencil.at(state.k_frac, state.channel)).low_ev:.0f} eV",
            )
        if state.high_ev < fermi_ev + reach:
            raise SolverError(
                f"a window up to {state.high_ev:.4f} eV",
                expected=f"up to {fermi_ev + reach:.4f} eV, where all is empty",
            )
    filled = [occupations(state.energies_ev, fermi_ev, temperature_k) for state in states]
    return density_matrix(states, pencil, hamiltonian, filled)


def density_matrix(
    states: Sequence[States],
    pencil: SparsePencil,
    hamiltonian: BlockOperator,
    filled: Sequence[NDArray[np.float64]],
) -> BlockOperator:
    """ρ_ij(R) = 1/N_k Σ_nk f c_i c_j* e^{−ik·R} in Pauli components, on the pairs of H, of any states.

    Parameters
    ----------
    states : with vectors, at (k, channel), channel fastest. filled : f of each state, 0 … 1.
    """
    pairs, n_k = hamiltonian.pairs, len(states) // pencil.n_channels
    s = 2 if pencil.spinor else 1
    blocks = []
    for group in pairs.groups:
        row, col, shift = (getattr(pairs, name)[group.pairs] for name in ("row", "col", "shift"))
        (first_row, rows), (first_col, cols) = (_rows(pencil, atoms) for atoms in (row, col))
        channels = np.zeros((len(row), pencil.n_channels, rows, cols), np.complex128)
        step = max(1, _CHUNK // (rows * cols + (rows + cols) * max(len(state) for state in states)))
        for state, f in zip(states, filled, strict=True):
            if state.vectors is None:
                raise ValueError("states without vectors: solve with Keep(vectors=True)")
            phase = np.exp(-2j * np.pi * shift @ state.k_frac) / n_k
            for start in range(0, len(row), step):
                some = slice(start, start + step)
                left = state.vectors[first_row[some, None] + np.arange(rows)] * f
                right = state.vectors[first_col[some, None] + np.arange(cols)].conj()
                channels[some, state.channel] += phase[some, None, None] * (left @ right.swapaxes(1, 2))
        blocks.append(torch.from_numpy(_pauli(channels.reshape(len(row), -1, rows // s, s, cols // s, s), pencil)))
    return BlockOperator(hamiltonian.basis, pairs, tuple(blocks))


def _rows(pencil: SparsePencil, atoms: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """First row of each atom, all of one species, and how many rows it has."""
    first = pencil.atom_offsets[atoms]
    return first, int(pencil.atom_offsets[atoms[0] + 1] - first[0])


def _pauli(blocks: NDArray[np.complex128], pencil: SparsePencil) -> NDArray[np.complex128]:
    """(n, n_spin, n_row, n_col) from (n, n_channels, n_row, s, n_col, s)."""
    if pencil.spinor:
        up, flip, flop, down = (blocks[:, 0, :, x, :, y] for x in (0, 1) for y in (0, 1))
        return np.stack([up + down, flip + flop, 1j * (flip - flop), up - down], axis=1) / 2
    channels = blocks[:, :, :, 0, :, 0]
    if pencil.n_spin == 2:
        return np.stack([channels[:, 0] + channels[:, 1], channels[:, 0] - channels[:, 1]], axis=1) / 2
    return channels


# -- without states ----------------------------------------------------------------------------------------------------


def contour_populations(
    runner: Runner,
    k_frac: ArrayLike,
    fermi_ev: float,
    *,
    half_gap_ev: float = 0.1,
    n_points: int = 20,
    tolerance: float = 1e-5,
    on_progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Populations:
    """Charges and moments of all states below an energy in a gap, from elements of resolvents: no state is solved for.

    ρ = (1/πi) ∫ G(z) dz, Hermitian part, over the half circle from μ to below all states (Zeller, Deutz and Dederichs,
    Solid State Commun. 44, 993 (1982)). Gauss–Legendre points crowd at μ by a sinh map, so that their number grows with
    the logarithm of the gap. The number of electrons is compared with the inertia at μ.

    Parameters
    ----------
    runner : whose `keep.membership` tells the groups, such as atoms. k_frac : (n_k, 3), a whole mesh.
    fermi_ev : in a gap of at least ± half_gap_ev at all k. n_points : complex factorisations at each k and channel.
    tolerance : of the number of electrons per cell.

    Raises :class:`SolverError` where the two numbers of electrons differ: μ lies in no such gap, or points are too few.
    """
    if not half_gap_ev > 0 or n_points < 2:
        raise ConfigError(f"half a gap of {half_gap_ev} eV, {n_points} points", expected="a positive energy, 2 or more")
    pencil = runner.pencil
    points = [(a, b, c) for a, b, c in np.atleast_2d(np.asarray(k_frac, np.float64)).tolist()]
    places = [(k, channel) for k in points for channel in range(pencil.n_channels)]
    check_memory(pencil)
    if say is not None:
        cost = resolvent_cost(pencil, elements=True)
        say(f"{len(places)} factorisations and {n_points * len(places)} complex ones at {len(points)} k: {cost}")
    counts = runner.run([CountTask(*place, fermi_ev) for place in places])
    x, weights = np.polynomial.legendre.leggauss(n_points)
    tasks, factors = [], []
    for k, channel in places:
        # The far end is as far below all states as these are below μ: there the points may lie wide apart.
        radius = fermi_ev - spectrum_ends(pencil.at(k, channel)).low_ev
        if not radius > 0:
            raise SolverError(f"μ = {fermi_ev:g} eV below all states", expected="an energy with states below")
        # θ = θ₀ sinh(a t), t = 0 … 1, of z = centre + radius e^{iθ}, is π at its end.
        least = half_gap_ev / radius
        a = np.arcsinh(np.pi / least)
        t = (x + 1) / 2
        turn = np.exp(1j * least * np.sinh(a * t))
        z = fermi_ev - radius + radius * turn
        tasks += [ResolventTask(k, channel, value.real, value.imag, 0, 0) for value in z.tolist()]
        factors.append(radius * turn / np.pi * weights / 2 * least * a * np.cosh(a * t))
    results = np.stack(runner.run(tasks, on_progress=on_progress))[:, 0]  # (n, n_groups, s, s)
    results = results.reshape(len(points), pencil.n_channels, n_points, *results.shape[1:])
    weights = np.array(factors).reshape(len(points), pencil.n_channels, n_points)
    matrices = np.einsum("kcp,kcpgxy->kcgxy", weights, results) / len(points)
    summed = pencil.electrons_per_state * spin_components(matrices, pencil.n_spin).sum(axis=(0, 1))
    counted = sum(counts) / len(points) * pencil.electrons_per_state
    found = float(summed[:, 0].sum())
    if not abs(found - counted) < tolerance:
        raise SolverError(
            f"{found:.6f} electrons by the contour, {counted:g} counted below {fermi_ev:.4f} eV",
            expected=f"the same to {tolerance:g}",
            remedy="take more points, or an energy in a gap, farther from all states",
        )
    return Populations(summed[:, 0], summed[:, 1:])


def _text(k_frac: NDArray[np.float64]) -> str:
    return " ".join(f"{k:.4g}" for k in k_frac)
