"""What a factorisation of H − σS offers, whoever computes it: solutions, the exact inertia, and its own cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import SolverError

from .pencil import BlochPencil, SparsePencil

__all__ = [
    "Analysis",
    "Backend",
    "CertifiedFactor",
    "Factor",
    "FactorStats",
    "Inertia",
    "SingularFactorError",
    "certified_factor",
    "require_numbers",
]

ComplexArray = NDArray[np.complex128]


class SingularFactorError(SolverError):
    """A pivot vanished: the shift hits an eigenvalue, of the matrix or of a leading part. Another shift helps."""


@dataclass(frozen=True, slots=True)
class FactorStats:
    """entries : stored numbers of the factor. memory_bytes : of the factor. seconds : of its computation."""

    entries: int
    memory_bytes: int
    seconds: float


class Factor(Protocol):
    """A factorisation of one Hermitian matrix. `negative`: its negative eigenvalues, by Sylvester's law."""

    @property
    def negative(self) -> int: ...

    @property
    def stats(self) -> FactorStats: ...

    def solve(self, b: ComplexArray) -> ComplexArray:
        """A⁻¹ b for b (dim, m), without refinement."""
        ...


class Analysis(Protocol):
    """What depends on the pattern alone: made once, for all k and all shifts.

    flops, memory_bytes : estimate of one factorisation, real operations and bytes at its peak.
    """

    name: str
    flops: float
    memory_bytes: float

    def factor(self, data: ComplexArray) -> Factor:
        """Factorise the matrix with these `data` on the pattern (`indptr`, `indices`) that was analysed.

        Raises :class:`SingularFactorError` where a pivot vanishes.
        """
        ...


class Backend(Protocol):
    """One way to factorise."""

    def __call__(self, pencil: SparsePencil) -> Analysis: ...


def require_numbers(data: ComplexArray) -> None:
    """Raises :class:`SolverError` where an element is not finite."""
    if not np.isfinite(data).all():
        raise SolverError("matrix elements that are not finite", expected="numbers")


@dataclass(frozen=True, slots=True)
class Inertia:
    """Eigenvalues of H c = E S c below and above a shift.

    negative, positive : states below and above. certified : the backward error of the factorisation is far smaller
    than what the nearest eigenvalue lies from the shift, so no state can have been counted on the wrong side.
    nearest_ev : estimated distance of the nearest eigenvalue. backward_error_ev : of H − σS, by the residual of solves.
    """

    negative: int
    positive: int
    certified: bool
    nearest_ev: float
    backward_error_ev: float


@dataclass(frozen=True, slots=True, eq=False)
class CertifiedFactor:
    """A factorisation of H − σS with refined solutions and a checked inertia."""

    at: BlochPencil
    sigma_ev: float
    factor: Factor
    inertia: Inertia

    @property
    def stats(self) -> FactorStats:
        return self.factor.stats

    def residual(self, x: ComplexArray, b: ComplexArray) -> ComplexArray:
        """b − (H − σS) x."""
        return b - self.at.h @ x + self.sigma_ev * self.at.apply_s(x)

    def solve(self, b: ComplexArray) -> ComplexArray:
        """(H − σS)⁻¹ b for b (dim, m), with one step of refinement where the factorisation is not exact to rounding."""
        x = self.factor.solve(b)
        if self.inertia.backward_error_ev < _EXACT_EV:
            return x
        return x + self.factor.solve(self.residual(x, b))


# Backward errors up to here, that of converged states, do not show: energies are refined with H and S themselves.
_EXACT_EV = 1e-8
# A shift is safe if the nearest eigenvalue is so many backward errors away.
_SAFETY = 30.0


def certified_factor(analysis: Analysis, at: BlochPencil, sigma_ev: float) -> CertifiedFactor:
    """Factorise H − σS and check the inertia.

    Inverse iteration from fixed vectors finds the state nearest to σ, whose Ritz value tells its distance; the residual
    of its last solution bounds what the rounding of the factorisation can have moved it by.

    Raises :class:`SingularFactorError` where a pivot vanishes.
    """
    if not np.isfinite(sigma_ev):
        raise SolverError(f"shift {sigma_ev} eV", expected="a finite energy")
    factor = analysis.factor(at.shifted(sigma_ev))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((at.dim, 2)) + 1j * rng.standard_normal((at.dim, 2))
    bare = CertifiedFactor(at, sigma_ev, factor, Inertia(factor.negative, at.dim - factor.negative, False, 0.0, np.inf))
    distance = error = np.inf
    for _ in range(3):
        b = at.apply_s(x)
        norm = np.sqrt(np.abs(np.einsum("im,im->m", x.conj(), b)))
        x, b = x / norm, b / norm
        y = factor.solve(b)
        if not np.isfinite(y).all():
            return bare
        missed = bare.residual(y, b)
        sy = at.apply_s(y)
        length = np.sqrt(np.abs(np.einsum("im,im->m", y.conj(), sy)))
        # A y' = b for A + δA: |δA| is at least |residual| / |y|; the Ritz value moves by it times |y|² / y†Sy.
        size = np.linalg.norm(y, axis=0)
        error = float((np.linalg.norm(missed, axis=0) * size / length**2).max())
        distance = min(distance, float((1 / length).min()))
        x = y
    certified = bool(error * _SAFETY < distance)
    return CertifiedFactor(
        at, sigma_ev, factor, Inertia(factor.negative, at.dim - factor.negative, certified, distance, error)
    )
