"""Bands: energies at given k with the spin and the orbital character of each state."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamnet.bloch import n_channels
from hamnet.blocks import BlockOperator
from hamnet.eigen import Eigenstates, eigenstates, eigenvalues
from hamnet.errors import SolverError
from hamnet.structure import frozen

from .characters import mulliken_weights, spinor_spin
from .grouping import Grouping

__all__ = ["Bands", "DenseCost", "dense_cost", "solve_bands"]

Progress = Callable[[int, int], None]
"""Called with (k points done, all)."""


@dataclass(frozen=True, slots=True, eq=False)
class Bands:
    """States at a list of k.

    Attributes
    ----------
    k_frac : (n_k, 3).
    energies_ev : (n_k, n_channel, n) absolute, ascending. Two channels (↑, ↓) for a collinear Hamiltonian, else one.
    n_spin : 1, 2 or 4, as in :class:`hamnet.blocks.BlockOperator`; with 1 every state holds two electrons.
    spin : (n_k, n_channel, n, 3) ⟨σ⟩ = c†(σ ⊗ S)c, or None. Collinear channels are ±1 along z; 0 without spin.
    weights : (n_k, n_channel, n, n_groups) Mulliken weights, they sum to 1 over groups; or None. A weight can be
        slightly negative or above 1.
    groups : labels of the weights.
    first : number of levels of each k and channel below band 0: not 0 where only a window was solved for. A level of
        the list that lies below or above the window at some k is −inf or +inf there.
    """

    k_frac: NDArray[np.float64]
    energies_ev: NDArray[np.float64]
    n_spin: int
    spin: NDArray[np.float64] | None = None
    weights: NDArray[np.float64] | None = None
    groups: tuple[str, ...] = ()
    first: int = 0

    def __post_init__(self) -> None:
        for name in ("k_frac", "energies_ev", "spin", "weights"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, frozen(getattr(self, name), np.float64))

    @property
    def electrons_per_state(self) -> int:
        """2 without spin, else 1."""
        return 2 if self.n_spin == 1 else 1

    @property
    def n_states(self) -> int:
        """Electrons that the cell could hold in these states and those below: states per cell, both spins counted."""
        return self.energies_ev.shape[1] * (self.first + self.energies_ev.shape[2]) * self.electrons_per_state


@dataclass(frozen=True, slots=True)
class DenseCost:
    """What dense diagonalisation takes: `n_k` × `n_channel` problems of dimension `dim`."""

    n_k: int
    n_channel: int
    dim: int
    memory_gb: float

    @property
    def seconds(self) -> float:
        """Rough time with eigenvectors on one core of an ordinary machine."""
        return self.n_k * self.n_channel * (1.6e-9 * self.dim**3 + 2e-7 * self.dim**2)

    def __str__(self) -> str:
        channels = f" × {self.n_channel} channels" if self.n_channel > 1 else ""
        time = f"{self.seconds:.0f} s" if self.seconds < 600 else f"{self.seconds / 3600:.1f} h"
        return (
            f"dense diagonalisation of {self.n_k} k{channels}, dimension {self.dim}: "
            f"{self.memory_gb:.2g} GB, about {time} on one core"
        )


def dense_cost(hamiltonian: BlockOperator, n_k: int, *, memory_limit_gb: float | None = None) -> DenseCost:
    """The cost of all states at `n_k` points.

    Raises :class:`SolverError` if it takes more memory than `memory_limit_gb` (default: 0.8 of the machine's).
    """
    dim = hamiltonian.n_orbitals * (2 if hamiltonian.n_spin == 4 else 1)
    channels = n_channels(hamiltonian)
    # H, S, the factor, the reduced matrix, vectors and work space, complex double precision.
    memory = 16e-9 * 9 * channels * dim**2
    limit = memory_limit_gb or 0.8e-9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cost = DenseCost(n_k, channels, dim, memory)
    if memory > limit:
        raise SolverError(
            f"{cost}: more than the limit of {limit:.3g} GB",
            expected=f"a dimension of at most {int(np.sqrt(limit / (16e-9 * 9 * channels)))} for dense diagonalisation",
            remedy="use a smaller cell or a machine with more memory",
        )
    return cost


def solve_bands(
    hamiltonian: BlockOperator,
    overlap: BlockOperator,
    k_frac: ArrayLike,
    *,
    spin: bool = False,
    grouping: Grouping | None = None,
    progress: Progress | None = None,
) -> Bands:
    """All states at k_frac (n_k, 3); `spin` and `grouping` ask for ⟨σ⟩ and Mulliken weights."""
    k_frac = np.atleast_2d(np.asarray(k_frac, dtype=np.float64))
    energies, spins, weights, done = [], [], [], 0
    if not spin and grouping is None:
        for portion in np.array_split(k_frac, max(1, min(len(k_frac), 50))):
            energies.append(eigenvalues(hamiltonian, overlap, portion))
            done += len(portion)
            _report(progress, done, len(k_frac))
    else:
        for states in eigenstates(hamiltonian, overlap, k_frac):
            energies.append(states.energies.cpu().numpy())
            vectors, along = states.vectors.cpu().numpy(), (states.overlap @ states.vectors).cpu().numpy()
            if spin:
                spins.append(_spin(states, vectors, along, hamiltonian.n_spin))
            if grouping is not None:
                weights.append(mulliken_weights(vectors, along, grouping.membership))
            done += len(states.energies)
            _report(progress, done, len(k_frac))
    return Bands(
        k_frac,
        np.concatenate(energies),
        hamiltonian.n_spin,
        np.concatenate(spins) if spin else None,
        None if grouping is None else np.concatenate(weights),
        () if grouping is None else grouping.labels,
    )


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _spin(states: Eigenstates, vectors: NDArray, along: NDArray, n_spin: int) -> NDArray[np.float64]:
    """(n_k, n_channel, n, 3) ⟨σ⟩, with S c in `along`."""
    if n_spin == 4:
        return spinor_spin(vectors, along)
    result = np.zeros((*states.energies.shape, 3))
    if n_spin == 2:
        result[:, 0, :, 2], result[:, 1, :, 2] = 1, -1
    return result
