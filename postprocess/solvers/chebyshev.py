"""Gaussian density of states by the kernel polynomial method: products with H and solutions with S, no shift at all.

With the density matrix ρ = Σ_n f(E_n) c_n c_n†, S ρ = f(HS⁻¹) = Σ_m c_m T_m((HS⁻¹ − b)/a), a and b from the ends of
the spectrum (Silver and Röder, Phys. Rev. E 56, 4822 (1997); Weiße et al., Rev. Mod. Phys. 78, 275 (2006)). Instead of
a delta function that is damped afterwards, the Gaussian itself is expanded: its coefficients vanish beyond m ≈ 4.5 a/σ,
and the width is the same at all energies. S is applied through its factor, S⁻¹ once in each step.

A step with 8 vectors costs about 2 % of a factorisation at a complex energy, less the larger the cell, and one run
gives the whole spectrum: see docs/density_of_states.md for where that wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from hamnet.errors import SolverError

from .factor import Analysis
from .pencil import BlochPencil, SparsePencil
from .random_phases import group_sums, random_phases
from .states import Keep

__all__ = ["ChebyshevTask", "Spectrum", "chebyshev_steps", "spectrum_ends"]

ComplexArray = NDArray[np.complex128]

# e^{−4.5²/2} = 4e-5: what is left of the coefficients where the expansion of a Gaussian ends.
_REACH = 4.5
_LANCZOS_STEPS = 40
# Lanczos finds the ends from inside, and T_m grows exponentially beyond them.
_MARGIN = 0.01
_CHUNK = 128


class Spectrum(NamedTuple):
    """All levels lie within centre_ev ± half_ev."""

    centre_ev: float
    half_ev: float

    @property
    def low_ev(self) -> float:
        return self.centre_ev - self.half_ev

    @property
    def high_ev(self) -> float:
        return self.centre_ev + self.half_ev


def chebyshev_steps(half_ev: float, width_ev: float) -> int:
    """Steps that a Gaussian of standard deviation `width_ev` takes in a spectrum of half width `half_ev`."""
    return int(np.ceil(_REACH * half_ev / width_ev))


@dataclass(frozen=True, slots=True)
class ChebyshevTask:
    """Gaussian density at energies, on groups of orbitals, from one batch of random vectors.

    Result: (n_e, n_vectors, n_groups, s, s) complex, s = 2 for spinors, else 1: S ρ of the Gaussian on the orbitals,
    summed over the groups of `keep.membership`; without it all orbitals are one group.
    """

    k_frac: tuple[float, float, float]
    channel: int
    energies_ev: tuple[float, ...]
    width_ev: float
    n_vectors: int
    batch: int
    seed: int

    def run(self, pencil: SparsePencil, analysis: Analysis, keep: Keep) -> ComplexArray:
        at = pencil.at(self.k_frac, self.channel)
        inverse = _InverseOverlap(at)
        spectrum = spectrum_ends(at)
        v = random_phases(self.seed, self.k_frac, self.channel, self.batch, (pencil.dim, self.n_vectors))
        membership = np.ones((pencil.n_orbitals, 1)) if keep.membership is None else keep.membership
        groups, n_spin = scipy.sparse.csr_matrix(membership.T), 2 if pencil.spinor else 1
        weights = _gaussian_coefficients(np.array(self.energies_ev), self.width_ev, spectrum)
        shape = (self.n_vectors, membership.shape[1], n_spin, n_spin)
        result = np.zeros((len(self.energies_ev), int(np.prod(shape))), np.complex128)
        hamiltonian = at.h
        now = v
        largest = 10 * float(np.abs(now).max()) * np.sqrt(pencil.dim)
        before = np.zeros_like(now)
        moments: list[ComplexArray] = []
        for step in range(weights.shape[1]):
            moments.append(group_sums(now, v, groups, n_spin).ravel())
            if len(moments) == _CHUNK or step == weights.shape[1] - 1:
                result += weights[:, step + 1 - len(moments) : step + 1] @ np.array(moments)
                moments = []
                if not np.abs(now).max() < largest:
                    raise SolverError(
                        "Chebyshev polynomials that grow without bounds",
                        expected=f"all levels inside {spectrum.low_ev:.4g} … {spectrum.high_ev:.4g} eV "
                        "and a positive definite overlap",
                        remedy="take the quartic kernel, which needs no ends of the spectrum",
                    )
            image = (hamiltonian @ inverse(now) - spectrum.centre_ev * now) / spectrum.half_ev
            now, before = (image if step == 0 else 2 * image - before), now
        return result.reshape(len(result), *shape)


class _InverseOverlap:
    """S⁻¹ at one k, by the SuperLU factor of the spin-free S."""

    def __init__(self, at: BlochPencil) -> None:
        overlap = at.s_orbital.tocsc()
        self._n = at.pencil.n_orbitals
        # S is positive definite: any order is stable without pivots.
        self._lu = scipy.sparse.linalg.splu(
            overlap, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )

    def __call__(self, x: ComplexArray) -> ComplexArray:
        return self._lu.solve(x.reshape(self._n, -1)).reshape(x.shape)


def spectrum_ends(at: BlochPencil) -> Spectrum:
    """The interval that holds all levels, by Lanczos with a margin of 1 % of its width.

    Raises :class:`SolverError` where S is not positive definite.
    """
    inverse = _InverseOverlap(at)
    rng = np.random.default_rng(0)
    z = np.exp(2j * np.pi * rng.random((at.dim, 1)))
    diagonal, beside = [], []
    x = inverse(z)
    before, norm = np.zeros_like(z), 0.0
    for _ in range(min(_LANCZOS_STEPS, at.dim)):
        square = float(np.vdot(x, z).real)
        if not square > 0:
            raise SolverError(
                "an overlap that is not positive definite (a vector with a negative norm)",
                expected="a positive definite overlap",
                remedy="check that structure, basis and overlap belong together",
            )
        norm = np.sqrt(square)
        beside.append(norm)
        x, z = x / norm, z / norm
        image = at.h @ x - norm * before if diagonal else at.h @ x
        diagonal.append(float(np.vdot(x, image).real))
        before, z = z, image - diagonal[-1] * z
        x = inverse(z)
        if np.linalg.norm(z) < 1e-10 * abs(diagonal[-1]):
            break
    levels = scipy.linalg.eigvalsh_tridiagonal(np.array(diagonal), np.array(beside[1:]))
    low, high = float(levels[0]), float(levels[-1])
    reach = (high - low) * (0.5 + _MARGIN) + 1e-3
    return Spectrum((low + high) / 2, reach)


def _gaussian_coefficients(energies: NDArray[np.float64], width_ev: float, spectrum: Spectrum) -> NDArray[np.float64]:
    """(n_e, n_steps) c_m with Σ_m c_m T_m((x − b)/a) = e^{−(E − x)²/2σ²}/√2π σ."""
    n_steps = chebyshev_steps(spectrum.half_ev, width_ev) + 1
    n_nodes = 2 * n_steps
    nodes = spectrum.centre_ev + spectrum.half_ev * np.cos(np.pi * (np.arange(n_nodes) + 0.5) / n_nodes)
    result = np.empty((len(energies), n_steps))
    for row, energy in zip(result, energies, strict=True):
        values = np.exp(-0.5 * ((energy - nodes) / width_ev) ** 2) / (np.sqrt(2 * np.pi) * width_ev)
        row[:] = np.asarray(scipy.fft.dct(values))[:n_steps] / n_nodes
    result[:, 0] /= 2
    return result
