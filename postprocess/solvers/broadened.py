"""Density of states of cells too large for all their states: from resolvents, or from polynomials of S⁻¹H.

A broadened density D(E) = Σ_n B(E − E_n) is a sum over few poles, B(x) ∝ Re Σ_j p_j/(E + γp_j − E_n), hence of traces
of S G(z) at z = E + γp_j. Kernels: Lorentzian, p = i; quartic, B = √2/πγ · 1/(1 + (x/γ)⁴) with p = e^{iπ/4}, e^{3iπ/4},
whose tails fall off so fast that gaps stay empty. On a grid of step γ/√2 neighbours share the poles of the quartic
kernel, which then costs no more than the Lorentzian.

The trace is either exact, from the elements of G on the pattern, or an average of v†S G v over vectors v of random
phases (Hutchinson, Commun. Stat. Simul. Comput. 18, 1059 (1989); Iitaka and Ebisuzaki, Phys. Rev. E 69, 057701 (2004)).
Its scatter falls as the root of the number of vectors times that of the states within the width: the larger the cell,
the fewer vectors. The scatter between vectors is the error that is reported. Restricted to orbitals, both are Mulliken
projections.

A Gaussian has no poles. It is expanded in Chebyshev polynomials (:mod:`.chebyshev`), with random vectors: cheaper where
the window is wide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from hamnet.errors import ConfigError, SolverError
from hamnet.structure import frozen

from .backends import default_memory_bytes, estimates
from .chebyshev import ChebyshevTask, chebyshev_steps, spectrum_ends
from .factor import Analysis
from .pencil import BlochPencil, SparsePencil
from .random_phases import group_sums, random_phases
from .resolvent import ResolventAnalysis, transposed_places
from .states import Keep
from .tasks import Runner, Shard

__all__ = [
    "BroadenedDos",
    "Kernel",
    "ResolventCost",
    "ResolventTask",
    "broadened_dos",
    "check_memory",
    "kernel_values",
    "resolvent_cost",
    "shared_grid",
    "spin_components",
]

ComplexArray = NDArray[np.complex128]
Kernel = Literal["gaussian", "lorentzian", "quartic"]
_VECTORS_AT_ONCE = 8

_POLES: dict[str, tuple[complex, ...]] = {
    "lorentzian": (1j,),
    "quartic": (complex(np.exp(0.25j * np.pi)), complex(np.exp(0.75j * np.pi))),
}
# B = scale · Re Σ_j p_j / (x + γ p_j), x = E − E_n.
_SCALE: dict[str, float] = {"lorentzian": 1 / np.pi, "quartic": 1 / (np.sqrt(2) * np.pi)}
# Energies that differ by less are the same pole.
_SAME_EV = 1e-9


def kernel_values(kernel: Kernel, x_ev: ArrayLike, width_ev: float) -> NDArray[np.float64]:
    """B(x) in 1/eV, of integral 1.

    width_ev : the standard deviation of a Gaussian, half the width at half the height of the others.
    """
    if kernel == "gaussian":
        x = np.asarray(x_ev, np.float64) / width_ev
        return np.exp(-0.5 * x**2) / (np.sqrt(2 * np.pi) * width_ev)
    x = np.asarray(x_ev, np.float64)[..., None]
    poles = np.array(_POLES[kernel])
    return _SCALE[kernel] * (poles / (x + width_ev * poles)).real.sum(axis=-1)


def shared_grid(low_ev: float, high_ev: float, width_ev: float, *, per_width: int = 1) -> NDArray[np.float64]:
    """Energies from low to beyond high in steps of width/(√2 · per_width).

    Neighbours share the poles of the quartic kernel.
    """
    if not low_ev < high_ev:
        raise ConfigError(f"energy window {low_ev:g} … {high_ev:g} eV", expected="the lower end first")
    if not width_ev > 0 or per_width < 1:
        raise ConfigError(f"width {width_ev} eV, {per_width} points", expected="a positive width and 1 point or more")
    step = width_ev / (np.sqrt(2) * per_width)
    return low_ev + step * np.arange(int(np.ceil((high_ev - low_ev) / step - 1e-9)) + 1)


@dataclass(frozen=True, slots=True, eq=False)
class BroadenedDos:
    """Density of states per cell, states of a Hamiltonian without spin counted twice.

    Attributes
    ----------
    energies_ev : (n_e,) absolute.
    total, total_error : (n_channels, n_e) states/eV, and standard deviations; 0 where the trace is exact.
    projected, projected_error : (n_groups, n_channels, n_e) Mulliken; they add up to the total.
    spin, spin_error : (n_groups, n_channels, n_e, 3) Σ_n B(E − E_n) ⟨σ⟩ on the group, μ_B/eV. Along z and of the sign
        of the channel for collinear Hamiltonians, 0 without spin.
    kernel, width_ev : see :func:`kernel_values`.
    n_vectors : for each k and channel, 0 for the exact trace. n_factors : factorisations at complex energies.
    """

    energies_ev: NDArray[np.float64]
    total: NDArray[np.float64]
    total_error: NDArray[np.float64]
    projected: NDArray[np.float64]
    projected_error: NDArray[np.float64]
    spin: NDArray[np.float64]
    spin_error: NDArray[np.float64]
    kernel: Kernel
    width_ev: float
    n_vectors: int
    n_factors: int

    def __post_init__(self) -> None:
        for name in ("energies_ev", "total", "total_error", "projected", "projected_error", "spin", "spin_error"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.float64))


class _Poles(NamedTuple):
    """energies (n_poles,) complex; of each grid energy (n_e, n) which poles and with which weights B is their sum."""

    energies: ComplexArray
    index: NDArray[np.int64]
    weights: ComplexArray


def _poles(grid: NDArray[np.float64], kernel: Kernel, width_ev: float) -> _Poles:
    shifts = np.array(_POLES[kernel], np.complex128)
    wanted = np.add.outer(grid, width_ev * shifts).astype(np.complex128)
    # All poles of a kernel have one imaginary part.
    _, first, inverse = np.unique(np.rint(wanted.real.ravel() / _SAME_EV), return_index=True, return_inverse=True)
    return _Poles(wanted.ravel()[first], inverse.reshape(wanted.shape), _SCALE[kernel] * shifts)


@dataclass(frozen=True, slots=True)
class ResolventTask:
    """Sums of S G(z) over groups of orbitals, for random vectors or exact.

    n_vectors : 0 for the exact trace. The vectors depend on seed, k and channel, not on z.

    Result: (n_vectors or 1, n_groups, s, s) complex, s = 2 for spinors, else 1: ½(S G + G S) on the orbitals, summed.
    Groups are those of `keep.membership`; without it all orbitals are one group.
    """

    k_frac: tuple[float, float, float]
    channel: int
    real_ev: float
    imaginary_ev: float
    n_vectors: int
    seed: int

    def run(self, pencil: SparsePencil, analysis: Analysis, keep: Keep) -> ComplexArray:
        at = pencil.at(self.k_frac, self.channel)
        resolvent = _analysis(pencil).factor(at, complex(self.real_ev, self.imaginary_ev))
        membership = np.ones((pencil.n_orbitals, 1)) if keep.membership is None else keep.membership
        groups, n_spin = scipy.sparse.csr_matrix(membership.T), 2 if pencil.spinor else 1
        if self.n_vectors == 0:
            matrices = orbital_elements(at, resolvent.elements())
            summed = np.asarray(groups @ matrices.reshape(pencil.n_orbitals, -1))
            return summed.reshape(1, -1, n_spin, n_spin)
        v = random_phases(self.seed, self.k_frac, self.channel, 0, (pencil.dim, self.n_vectors))
        y = resolvent.solve(v)
        s_g = group_sums(at.apply_s(y), v, groups, n_spin)
        g_s = group_sums(y, at.apply_s(v), groups, n_spin)
        return (s_g + g_s) / 2


@dataclass(frozen=True, slots=True)
class ResolventCost:
    """Of one complex energy: seconds with the factorisation and what it is for, bytes at the peak."""

    seconds: float
    memory_bytes: float

    def __str__(self) -> str:
        time = f"{self.seconds:.2g} s" if self.seconds < 100 else f"{self.seconds / 60:.0f} min"
        return f"about {time} each, {self.memory_bytes / 1e9:.2g} GB"


def resolvent_cost(pencil: SparsePencil, *, elements: bool) -> ResolventCost:
    """Expected cost of G(z) of a pencil, with its elements on the pattern or without."""
    # Two triangles for one; the elements take as long again (docs/density_of_states.md).
    seconds = 2 * estimates(pencil)["multifrontal"].factor_seconds * (2 if elements else 1)
    return ResolventCost(seconds, _memory_bytes(pencil))


def _memory_bytes(pencil: SparsePencil) -> float:
    # H, S, H − zS, H − z*S, and the elements.
    return pencil.memory_bytes + 80.0 * pencil.nnz + _analysis(pencil).memory_bytes


def check_memory(pencil: SparsePencil, *, memory_limit_bytes: float | None = None) -> None:
    """Raises :class:`SolverError` where G(z) takes more than the limit (default 0.8 of the memory of the machine)."""
    memory = _memory_bytes(pencil)
    limit = default_memory_bytes() if memory_limit_bytes is None else memory_limit_bytes
    if memory > limit:
        raise SolverError(
            f"{pencil.dim} orbitals need about {memory / 1e9:.3g} GB at a complex energy",
            expected=f"at most {limit / 1e9:.3g} GB",
            remedy="take the Gaussian kernel, which needs a factor of the overlap alone, or windows of states",
        )


@lru_cache(maxsize=1)
def _analysis(pencil: SparsePencil) -> ResolventAnalysis:
    """The same for all tasks of a pencil."""
    return ResolventAnalysis(pencil)


def orbital_elements(at: BlochPencil, data: ComplexArray) -> ComplexArray:
    """(n_orbitals, s, s) ½(S G + G S) on each orbital, from G on the pattern of H, `data` (nnz,); s = 2 for spinors."""
    pencil = at.pencil
    n_spin = 2 if pencil.spinor else 1
    turned = data[transposed_places(pencil)]  # place (i, j) holds G_ji
    result = np.empty((pencil.n_orbitals, n_spin, n_spin), np.complex128)
    for row in range(n_spin):
        for column in range(n_spin):
            if pencil.spinor:
                # Place of (i row, j column) of each orbital pair, beside (i ↑, j ↑) or (i ↓, j ↓).
                here = pencil.spin_places[row] + column - row
                there = pencil.spin_places[column] + row - column
            else:
                here = there = slice(None)
            # (G S)_i,row;i,column = Σ_j G_i,row;j,column S_ji and (S G) = Σ_j S_ij G_j,row;i,column.
            terms = data[here] * at.s_data.conj() + turned[there] * at.s_data
            result[:, row, column] = np.add.reduceat(terms, pencil.s_indptr[:-1]) / 2
    return result


def broadened_dos(
    runner: Runner,
    k_frac: ArrayLike,
    energies_ev: ArrayLike,
    *,
    width_ev: float,
    kernel: Kernel = "quartic",
    n_vectors: int = 8,
    seed: int = 0,
    shard: Shard | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> BroadenedDos | None:
    """Density of states on a grid (n_e,), mean over k_frac (n_k, 3) of equal weight, projected onto `runner.keep`.

    Parameters
    ----------
    energies_ev : with poles best those of :func:`shared_grid`; any others take a factorisation for each pole of each.
    n_vectors : random vectors for each k and channel, 2 or more; 0: the exact trace, about the price of a second
        factorisation. A Gaussian has none.
    shard : do this part of the tasks and return None: of a runner with a folder a later call collects all.
    say : told the number of factorisations before they begin.

    Raises :class:`ConfigError` for a width that is not positive, an empty grid, or a single vector.
    """
    grid = np.atleast_1d(np.asarray(energies_ev, np.float64))
    if not grid.size or not np.isfinite(grid).all():
        raise ConfigError(f"a grid of {grid.size} energies", expected="finite energies, one or more")
    if not (np.isfinite(width_ev) and width_ev > 0):
        raise ConfigError(f"width {width_ev} eV", expected="a positive width")
    if n_vectors == 1 or n_vectors < 0:
        raise ConfigError(
            f"{n_vectors} random vectors", expected="2 or more, whose scatter is the error, or 0 for the exact trace"
        )
    if n_vectors == 0 and kernel == "gaussian":
        raise ConfigError(
            "the exact trace of a Gaussian", expected="2 random vectors or more", remedy="take the quartic kernel"
        )
    points = [(a, b, c) for a, b, c in np.atleast_2d(np.asarray(k_frac, np.float64)).tolist()]
    places = [(k, channel) for k in points for channel in range(runner.pencil.n_channels)]
    poles = None if kernel == "gaussian" else _poles(grid, kernel, width_ev)
    tasks: list[ChebyshevTask] | list[ResolventTask]
    if poles is None:
        batches = np.diff(np.append(np.arange(0, n_vectors, _VECTORS_AT_ONCE), n_vectors)).tolist()
        energies = tuple(grid.tolist())
        tasks = [
            ChebyshevTask(*place, energies, width_ev, size, batch, seed)
            for place in places
            for batch, size in enumerate(batches)
        ]
    else:
        tasks = [
            ResolventTask(*place, z.real, z.imag, n_vectors, seed) for place in places for z in poles.energies.tolist()
        ]
    where = f"for {len(grid)} energies at {len(points)} k"
    if poles is not None:
        check_memory(runner.pencil)
        if say is not None:
            say(f"{len(tasks)} complex factorisations {where}: {resolvent_cost(runner.pencil, elements=not n_vectors)}")
    elif say is not None:
        steps = chebyshev_steps(spectrum_ends(runner.pencil.at(points[0])).half_ev, width_ev)
        say(f"{len(tasks)} expansions of {steps} products with H {where}")
    results = runner.run(tasks, shard=shard, on_progress=on_progress)
    if shard is not None:
        return None
    # (n_k, n_channels, n_e, n_samples, n_groups, s, s)
    each, n_tasks = (len(points), runner.pencil.n_channels), len(tasks) // len(places)
    if poles is None:
        parts = [np.concatenate(results[n : n + n_tasks], axis=1) for n in range(0, len(tasks), n_tasks)]
        kernels = np.stack(parts).reshape(*each, *parts[0].shape)
    else:
        traces = np.stack(results)
        traces = traces.reshape(*each, n_tasks, *traces.shape[1:])
        kernels = np.einsum("kcepmgxy,p->kcemgxy", traces[:, :, poles.index], poles.weights)
    # (n_k, n_channels, n_e, n_samples, n_groups, 4)
    density = runner.pencil.electrons_per_state * spin_components(kernels, runner.pencil.n_spin)
    mean, error = _estimate(density)
    total, total_error = _estimate(density[..., 0].sum(axis=-1))
    order = (2, 0, 1)  # groups, channels, energies
    return BroadenedDos(
        grid,
        total,
        total_error,
        mean[..., 0].transpose(order),
        error[..., 0].transpose(order),
        mean[..., 1:].transpose(*order, 3),
        error[..., 1:].transpose(*order, 3),
        kernel,
        width_ev,
        n_vectors,
        0 if poles is None else len(tasks),
    )


def spin_components(matrices: ComplexArray, n_spin: int) -> NDArray[np.float64]:
    """(n_k, n_channels, …, 4) electrons and Tr σ_xyz ρ of the Hermitian part ρ of (n_k, n_channels, …, s, s)."""
    result = np.zeros((*matrices.shape[:-2], 4))
    result[..., 0] = np.trace(matrices, axis1=-2, axis2=-1).real
    if n_spin == 4:
        flip = (matrices[..., 0, 1] + matrices[..., 1, 0].conj()) / 2
        result[..., 1], result[..., 2] = 2 * flip.real, -2 * flip.imag
        result[..., 3] = (matrices[..., 0, 0] - matrices[..., 1, 1]).real
    elif n_spin == 2:
        result[:, 0, ..., 3], result[:, 1, ..., 3] = result[:, 0, ..., 0], -result[:, 1, ..., 0]
    return result


def _estimate(density: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over k and samples of (n_k, n_channels, n_e, n_samples, …), and its standard deviation."""
    n_k, n_samples = density.shape[0], density.shape[3]
    mean = density.mean(axis=(0, 3))
    if n_samples == 1:
        return mean, np.zeros_like(mean)
    variance = density.var(axis=3, ddof=1) / n_samples
    return mean, np.sqrt(variance.sum(axis=0)) / n_k
