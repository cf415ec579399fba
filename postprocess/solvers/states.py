"""States of one k: energies, and what is asked for of their vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..characters import mulliken_weights, spinor_spin
from .pencil import BlochPencil
from .window import Window

__all__ = ["Keep", "States", "describe"]


@dataclass(frozen=True, slots=True, eq=False)
class Keep:
    """What is kept of the vectors of states.

    spin : ⟨σ⟩. membership : (n_orbitals, n_groups) of a :class:`postprocess.grouping.Grouping`, for Mulliken weights.
    vectors : the vectors themselves.
    """

    spin: bool = False
    membership: NDArray[np.float64] | None = None
    vectors: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """All states of one k and channel between two energies.

    Attributes
    ----------
    k_frac, channel : where.
    low_ev, high_ev : the window; no state lies on its edges.
    first : states below low_ev: energies_ev[i] is level first + i, counted from 0.
    energies_ev : (n,) ascending.
    softness : (n,) κ = c†c / c†Sc: an error δH of independent elements moves a level by about |δH| κ.
    residual_ev : largest |Hc − ESc| / |c|.
    n_factors, n_solves : factorisations and block solutions that it took.
    spin : (n, 3) ⟨σ⟩ = c†(σ ⊗ S)c; collinear channels are ±1 along z, 0 without spin. None if not asked for.
    weights : (n, n_groups) Mulliken weights. None if not asked for.
    vectors : (dim, n), c†Sc = 1, lattice gauge, rows (orbital, spin). None if not asked for.
    """

    k_frac: NDArray[np.float64]
    channel: int
    low_ev: float
    high_ev: float
    first: int
    energies_ev: NDArray[np.float64]
    softness: NDArray[np.float64]
    residual_ev: float
    n_factors: int
    n_solves: int
    spin: NDArray[np.float64] | None = None
    weights: NDArray[np.float64] | None = None
    vectors: NDArray[np.complex128] | None = None

    def __len__(self) -> int:
        return len(self.energies_ev)


def describe(at: BlochPencil, window: Window, keep: Keep) -> States:
    """What is to be kept of a window."""
    c, along = window.vectors, at.apply_s(window.vectors)
    return States(
        window.k_frac,
        window.channel,
        window.low_ev,
        window.high_ev,
        window.first,
        window.energies_ev,
        np.einsum("im,im->m", c.conj(), c).real,
        window.residual_ev,
        window.n_factors,
        window.n_solves,
        _spin(c, along, at) if keep.spin else None,
        None if keep.membership is None else mulliken_weights(c, along, keep.membership),
        c if keep.vectors else None,
    )


def _spin(c: NDArray, along: NDArray, at: BlochPencil) -> NDArray[np.float64]:
    if at.pencil.spinor:
        return spinor_spin(c, along)
    result = np.zeros((c.shape[1], 3))
    if at.pencil.n_spin == 2:
        result[:, 2] = 1 - 2 * at.channel
    return result
