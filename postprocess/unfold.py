"""Bands of a supercell, unfolded to the Brillouin zone of a primitive cell.

A state |n, K⟩ of a supercell of N primitive cells is a sum of N Bloch waves of the primitive lattice, with the wave
vectors k = K + G. Its weight on one of them is the norm of this part,

    W_n(k) = b†P_k b,   P_k = 1/N Σ_T e^{−ik·T} T̂,   b = S^{1/2} c.

Orbitals are not orthogonal, and where atoms are displaced S does not commute with the translations T̂, which take the
orbitals of one cell to those of another; c†S P_k c could then be negative or above 1. On Löwdin's orthonormal orbitals
P_k is a projector, so that always 0 ≤ W ≤ 1, Σ_k W_n(k) = 1 over the N wave vectors, and Σ_n W_n(k) is the number of
primitive bands. Where S commutes with the translations both forms are one, and S^{1/2} is that of a primitive cell. The
parts P_k b also give ⟨σ⟩ and the shares of orbitals at k, which add up to those of the state.

Spectral weights: W. Ku, T. Berlijn, C.-C. Lee, Phys. Rev. Lett. 104, 216401 (2010), doi:10.1103/PhysRevLett.104.216401;
orthonormal orbitals: P.-O. Löwdin, J. Chem. Phys. 18, 365 (1950), doi:10.1063/1.1747632.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.sparse
import scipy.sparse.linalg
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from hamnet.basis import Basis
from hamnet.bloch import bloch_dense
from hamnet.blocks import BlockOperator
from hamnet.errors import BasisError, ConfigError
from hamnet.structure import frozen

from .grouping import Grouping
from .lowdin import lowdin_amplitudes, square_roots
from .tiling import Tiling, primitive_shifts

__all__ = [
    "KStates",
    "Orbitals",
    "Spiral",
    "Unfolded",
    "UnfoldedBands",
    "energy_grid",
    "fold_orbitals",
    "mean_overlap",
    "spectral_function",
    "supercell_k",
    "unfold_bands",
    "unfold_states",
    "unique_k",
]

_SAME_K = 1e-8
_GAUSSIAN_REACH = 8.3
_CHUNK = 2**20
_LEAST_ROWS, _MOST_ROWS = 400, 4000


class KStates(NamedTuple):
    """States at one K of the supercell, from any solver.

    energies : (n,) eV for each channel (↑ and ↓ of a collinear Hamiltonian, else one).
    vectors : (dim, n) for each channel, columns are states with c†Sc = 1 in the lattice gauge, atoms contiguous,
        orbital slow and spin fast.
    overlap : (n_orbitals, n_orbitals) spin-free S(K), dense or sparse. Not needed where S is that of a primitive cell.
    """

    energies: Sequence[NDArray[np.float64]] | NDArray[np.float64]
    vectors: Sequence[NDArray[np.complex128]] | NDArray[np.complex128]
    overlap: NDArray | scipy.sparse.spmatrix | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Spiral:
    """Moments that turn by 2π q·T about an axis from cell to cell.

    Without spin–orbit coupling H commutes with the translations combined with this rotation of spin,
    T̂ exp(−iπ q·T n·σ), and k is then the wave vector in the frame that turns with the moments: of spin along n the
    part at k − q/2, of spin against n the part at k + q/2. L. M. Sandratskii, J. Phys.: Condens. Matter 3, 8565 (1991),
    doi:10.1088/0953-8984/3/44/004.

    Attributes
    ----------
    q_frac : (3,) in fractions of the reciprocal vectors of the primitive cell.
    axis : (3,) n, Cartesian.
    """

    q_frac: NDArray[np.float64]
    axis: NDArray[np.float64]

    def __post_init__(self) -> None:
        axis = np.asarray(self.axis, dtype=np.float64)
        if not np.linalg.norm(axis) > 0:
            raise ConfigError(f"axis {axis.tolist()} of a spiral", expected="a vector that is not zero")
        object.__setattr__(self, "q_frac", frozen(self.q_frac, np.float64))
        object.__setattr__(self, "axis", frozen(axis / np.linalg.norm(axis), np.float64))

    @property
    def frame(self) -> NDArray[np.complex128]:
        """(2, 2) columns: spinors along and against the axis."""
        theta, phi = np.arccos(np.clip(self.axis[2], -1, 1)), np.arctan2(self.axis[1], self.axis[0])
        up, down = np.cos(theta / 2), np.exp(1j * phi) * np.sin(theta / 2)
        return np.array([[up, -down.conjugate()], [down, up]])


class Unfolded(NamedTuple):
    """States of one K on some k.

    weights : (n_k, n), 0 … 1.
    spin : (n_k, n, 3) ⟨σ⟩ of the part at k, no longer than its weight; of a spiral, in the frame that turns with the
        moments, as it stands in the cell T = 0. None without spinors.
    groups : (n_k, n, n_groups) weights of the groups of orbitals, which add up to the weight; or None.
    """

    weights: NDArray[np.float64]
    spin: NDArray[np.float64] | None
    groups: NDArray[np.float64] | None


# -- orbitals and overlaps of both cells -------------------------------------------------------------------------------


class Orbitals(NamedTuple):
    """Orbitals of a supercell by those of its primitive cell.

    index : (N, n_orbitals of the primitive cell) orbital of the supercell for each orbital of each cell.
    site : (n_orbitals of the primitive cell,) where it sits.
    """

    index: NDArray[np.int64]
    site: NDArray[np.int64]


def fold_orbitals(tiling: Tiling, basis: Basis, species: NDArray[np.int64]) -> Orbitals:
    """Which orbitals of the supercell are copies of each other.

    species : (n,) of the supercell's atoms. Raises :class:`BasisError` where two species share a site.
    """
    on_site = species[tiling.atoms]
    if (on_site != on_site[0]).any():
        cell, site = np.argwhere(on_site != on_site[0])[0]
        names = " and ".join(basis.labels[s] for s in (on_site[0, site], on_site[cell, site]))
        raise BasisError(
            f"species {names} on one site of the primitive cell",
            expected="one species on each",
            remedy="take a primitive cell that tells them apart",
        )
    sizes = basis.n_orbitals[on_site[0]]
    site = np.repeat(np.arange(len(sizes)), sizes)
    inside = np.arange(len(site)) - (np.cumsum(sizes) - sizes)[site]
    return Orbitals(basis.orbital_offsets(species)[tiling.atoms[:, site]] + inside, site)


def mean_overlap(overlap: BlockOperator, tiling: Tiling) -> tuple[BlockOperator, float]:
    """The overlap averaged over the translations, as an operator of the primitive cell, and how far S is from it.

    The second is the largest difference of an element; 0 means that S commutes with the translations.
    """
    row, col, shift = primitive_shifts(overlap.pairs, tiling)
    keys = np.column_stack([row, col, shift])
    rows, blocks, deviation = [], [], 0.0
    for group, block in zip(overlap.pairs.groups, overlap.blocks, strict=True):
        unique, place = np.unique(keys[group.pairs], axis=0, return_inverse=True)
        index = torch.as_tensor(place.ravel(), device=block.device)
        mean = block.new_zeros((len(unique), *block.shape[1:])).index_add(0, index, block) / len(tiling)
        deviation = max(deviation, float((block - mean[index]).abs().max()))
        rows.append(unique)
        blocks.append(mean)
    unique = np.concatenate(rows)
    species = overlap.pairs.species[tiling.atoms[0]]
    mean = BlockOperator.from_unsorted(overlap.basis, species, unique[:, 0], unique[:, 1], unique[:, 2:], blocks)
    return mean, deviation


# -- one K -------------------------------------------------------------------------------------------------------------


def supercell_k(tiling: Tiling, k_frac: ArrayLike, spiral: Spiral | None = None) -> NDArray[np.float64]:
    """K (n_k, 3) of the supercell, 0 ≤ K < 1, whose states hold the Bloch waves of the primitive k_frac (n_k, 3).

    In the frame of a spiral that makes an odd number of turns along a lattice vector of the supercell, spinors change
    sign along it: K belongs to k − q/2.
    """
    k_frac = np.atleast_2d(np.asarray(k_frac, dtype=np.float64))
    whole = (k_frac if spiral is None else k_frac - spiral.q_frac / 2) @ tiling.matrix.T
    return whole - np.floor(whole + _SAME_K)


def unique_k(k_frac: NDArray) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points that differ, (m, 3), and which of them each of k_frac (n_k, 3) in 0 … 1 is."""
    _, first, inverse = np.unique(np.rint(k_frac / _SAME_K), axis=0, return_index=True, return_inverse=True)
    return k_frac[first], inverse.ravel()


def unfold_states(
    vectors: NDArray,
    tiling: Tiling,
    orbitals: Orbitals,
    k_frac: ArrayLike,
    *,
    mean: BlockOperator | None = None,
    spiral: Spiral | None = None,
    membership: NDArray[np.float64] | None = None,
) -> Unfolded:
    """Weights of states of one K on the k that fold to it; all of these together, or only those that are asked for.

    Parameters
    ----------
    vectors : (dim, n) in the lattice gauge: amplitudes on orthonormal orbitals (:func:`lowdin_amplitudes`), or, with
        `mean`, coefficients c. With spinors dim is twice the number of orbitals, spin fast.
    orbitals : of :func:`fold_orbitals`.
    k_frac : (n_k, 3) in fractions of the primitive reciprocal vectors.
    mean : overlap of the primitive cell, where S commutes with the translations.
    membership : (n_orbitals of the primitive cell, n_groups), of a :class:`postprocess.grouping.Grouping`.

    Raises ValueError where the k do not fold to one K.
    """
    k_frac = np.atleast_2d(np.asarray(k_frac, dtype=np.float64))
    n = orbitals.index.size
    spinors = np.asarray(vectors).reshape(n, len(vectors) // n, vectors.shape[1])
    if spiral is None:
        parts = _parts(spinors, tiling, orbitals, k_frac, mean)
    else:
        if spinors.shape[1] != 2:
            raise ConfigError("a spiral without spinors", expected="states of a vector Hamiltonian")
        turned = np.einsum("xs,axn->asn", spiral.frame.conj(), spinors)
        halves = [
            _parts(turned[:, [s]], tiling, orbitals, k_frac + sign * spiral.q_frac / 2, mean)
            for s, sign in enumerate((-1, 1))
        ]
        parts = np.einsum("xs,kasn->kaxn", spiral.frame, np.concatenate(halves, axis=2))
    share = (np.abs(parts) ** 2).sum(axis=2)
    groups = None if membership is None else np.einsum("kan,ag->kng", share, membership)
    return Unfolded(share.sum(axis=1), _spin(parts) if parts.shape[2] == 2 else None, groups)


def _parts(
    vectors: NDArray, tiling: Tiling, orbitals: Orbitals, k_frac: NDArray, mean: BlockOperator | None
) -> NDArray[np.complex128]:
    """(n_k, n_orbitals, n_sigma, n) N^{−1/2} Σ_T e^{−ik·T} b(T), from (n_orbitals of the supercell, n_sigma, n)."""
    folded = supercell_k(tiling, k_frac)
    apart = folded - folded[0]
    if np.abs(apart - np.rint(apart)).max() > 1e-6:
        raise ValueError("k points of different K; unfold each K by itself")
    cells = vectors[orbitals.index]  # (N, n_orbitals, n_sigma, n)
    if tiling.shifts.any():
        # The atom in cell T + R M stands for that in cell T: lattice gauge, so e^{−iK·R}.
        phase = np.exp(-2j * np.pi * (tiling.shifts @ folded[0]))
        cells *= phase[:, orbitals.site, None, None]
    waves = np.exp(-2j * np.pi * (k_frac @ tiling.cells.T)) / np.sqrt(len(tiling))
    parts = (waves @ cells.reshape(len(tiling), cells[0].size)).reshape(len(k_frac), *cells.shape[1:])
    if mean is None:
        return parts
    root = square_roots(bloch_dense(mean, k_frac).numpy()[:, 0])
    return (root @ parts.reshape(*parts.shape[:2], parts.shape[2] * parts.shape[3])).reshape(parts.shape)


def _spin(parts: NDArray) -> NDArray[np.float64]:
    """(n_k, n, 3) of (n_k, n_orbitals, 2, n)."""
    flip = (parts[:, :, 0].conj() * parts[:, :, 1]).sum(axis=1)
    z = (np.abs(parts[:, :, 0]) ** 2 - np.abs(parts[:, :, 1]) ** 2).sum(axis=1)
    return np.stack([2 * flip.real, 2 * flip.imag, z], axis=-1)


# -- a path ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class UnfoldedBands:
    """Weights of the states of a supercell along k of the primitive cell; the states of all k in one list.

    Attributes
    ----------
    k_frac : (n_k, 3) in fractions of the primitive reciprocal vectors.
    n_spin : 1, 2 or 4, as in :class:`hamnet.blocks.BlockOperator`.
    k_index, channel : (n,) which k, which channel (0: ↑, 1: ↓ of a collinear Hamiltonian, else 0).
    energies_ev : (n,) absolute.
    weights : (n,) 0 … 1.
    spin : (n, 3) ⟨σ⟩ of the part at k, ±weight along z for collinear channels; None without spin.
    groups : (n, n_groups) weights of groups of orbitals, or None.
    group_labels : their names.
    """

    k_frac: NDArray[np.float64]
    n_spin: int
    k_index: NDArray[np.int64]
    channel: NDArray[np.int64]
    energies_ev: NDArray[np.float64]
    weights: NDArray[np.float64]
    spin: NDArray[np.float64] | None = None
    groups: NDArray[np.float64] | None = None
    group_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("k_frac", "energies_ev", "weights", "spin", "groups"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, frozen(getattr(self, name), np.float64))
        for name in ("k_index", "channel"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.int64))


def unfold_bands(
    states: Iterable[KStates],
    tiling: Tiling,
    orbitals: Orbitals,
    k_frac: ArrayLike,
    *,
    n_spin: int,
    mean: BlockOperator | None = None,
    spiral: Spiral | None = None,
    grouping: Grouping | None = None,
    window_ev: tuple[float, float] = (-np.inf, np.inf),
) -> UnfoldedBands:
    """The bands at k_frac (n_k, 3), from the states at ``unique_k(supercell_k(tiling, k_frac, spiral))[0]``, in order.

    Parameters
    ----------
    n_spin : of the Hamiltonian.
    mean : overlap of the primitive cell, where S commutes with the translations; else each of `states` has its S(K).
    grouping : of the orbitals of the primitive cell.
    window_ev : absolute; states outside are left out.
    """
    k_frac = np.atleast_2d(np.asarray(k_frac, dtype=np.float64))
    _, which = unique_k(supercell_k(tiling, k_frac, spiral))
    membership = None if grouping is None else grouping.membership
    found: list[tuple[NDArray, ...]] = []
    for place, at_k in enumerate(states):
        here = np.flatnonzero(which == place)
        for channel, (energies, vectors) in enumerate(zip(at_k.energies, at_k.vectors, strict=True)):
            inside = (energies >= window_ev[0]) & (energies <= window_ev[1])
            chosen = vectors[:, inside]
            if mean is None:
                if at_k.overlap is None:
                    raise ValueError("states without S(K), and no mean overlap")
                chosen = lowdin_amplitudes(at_k.overlap, chosen)
            part = unfold_states(
                chosen, tiling, orbitals, k_frac[here], mean=mean, spiral=spiral, membership=membership
            )
            n = len(here) * int(inside.sum())
            found.append(
                (
                    np.repeat(here, int(inside.sum())),
                    np.full(n, channel),
                    np.tile(energies[inside], len(here)),
                    part.weights.ravel(),
                    _vectors_of_spin(part, n_spin, channel).reshape(n, 3),
                    np.zeros((n, 0)) if part.groups is None else part.groups.reshape(n, -1),
                )
            )
    k_index, channels, energies, weights, spin, groups = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return UnfoldedBands(
        k_frac,
        n_spin,
        k_index,
        channels,
        energies,
        weights,
        None if n_spin == 1 else spin,
        None if grouping is None else groups,
        () if grouping is None else grouping.labels,
    )


def _vectors_of_spin(part: Unfolded, n_spin: int, channel: int) -> NDArray[np.float64]:
    """(n_k, n, 3); zero without spin."""
    if part.spin is not None:
        return part.spin
    result = np.zeros((*part.weights.shape, 3))
    if n_spin == 2:
        result[..., 2] = (1, -1)[channel] * part.weights
    return result


def energy_grid(window_ev: tuple[float, float], width_ev: float) -> NDArray[np.float64]:
    """(n_e,) centres of equal intervals that fill the window, three or more to a width."""
    low, high = window_ev
    if not high > low:
        raise ConfigError(f"energy window {low:g} … {high:g} eV", expected="the lower end first")
    if not width_ev > 0:
        raise ConfigError(f"width {width_ev:g} eV", expected="a positive width")
    rows = int(np.clip(np.ceil(3 * (high - low) / width_ev), _LEAST_ROWS, _MOST_ROWS))
    return low + (np.arange(rows) + 0.5) * (high - low) / rows


def spectral_function(
    bands: UnfoldedBands, values: ArrayLike, energies_ev: NDArray[np.float64], width_ev: float
) -> NDArray[np.float64]:
    """(n_k, n_e, …) 1/eV: Σ_n values_n g(E − E_n) with a Gaussian g of standard deviation `width_ev`.

    Each point is the mean over its interval of the grid, so that the sum times the step is the sum of the values,
    however narrow the Gaussian.

    Parameters
    ----------
    values : (n, …) of each state: weights, components of spin, weights of groups.
    energies_ev : (n_e,) absolute, centres of equal intervals.
    """
    if not width_ev > 0:
        raise ConfigError(f"width {width_ev} eV", expected="a positive width")
    values = np.asarray(values, dtype=np.float64)
    flat = values.reshape(len(values), -1)
    n_k, n_e = len(bands.k_frac), len(energies_ev)
    step = float(energies_ev[1] - energies_ev[0])
    start = float(energies_ev[0]) - step / 2
    reach = int(np.ceil(_GAUSSIAN_REACH * width_ev / step)) + 1
    result = np.zeros((flat.shape[1], n_k * n_e))
    portion = max(1, _CHUNK // (2 * reach + 1))
    for first in range(0, len(flat), portion):
        part = slice(first, first + portion)
        from_start = (bands.energies_ev[part] - start) / step
        edges = np.floor(from_start).astype(np.int64)[:, None] + np.arange(-reach, reach + 2)
        below = ndtr((edges - from_start[:, None]) * (step / width_ev))
        share = np.diff(below, axis=1) / step
        bins = edges[:, :-1]
        inside = (bins >= 0) & (bins < n_e)
        flat_bin = (bands.k_index[part, None] * n_e + bins)[inside]
        for component in range(flat.shape[1]):
            amount = (share * flat[part, component, None])[inside]
            result[component] += np.bincount(flat_bin, amount, n_k * n_e)
    return result.T.reshape(n_k, n_e, *values.shape[1:])
