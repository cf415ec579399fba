"""Block shift-invert Lanczos for the states of H c = E S c nearest to a shift.

The operator (H − σS)⁻¹ S is Hermitian in the inner product of S; its largest eigenvalues θ = 1/(E − σ) belong to the
states next to σ. Blocks of vectors find degenerate levels and share the passes over the factor; all vectors are kept
orthogonal in full, twice; the basis is restarted from its Ritz vectors (thick restart: Wu and Simon, SIAM J. Matrix
Anal. Appl. 22, 602 (2000)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import SolverError

from .factor import CertifiedFactor
from .pencil import BlochPencil

__all__ = ["RitzStates", "rayleigh_ritz", "states_near"]

ComplexArray = NDArray[np.complex128]

_BLOCK = 8
_LARGEST_BASIS_STEPS = 400
# Directions whose squared S-norm fell by this much hold rounding only; with norms down by this, S is applied anew.
_DEPENDENT, _ALMOST_DEPENDENT = 1e-10, 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class RitzStates:
    """Converged states next to a shift.

    energies_ev : (n,) ascending. vectors : (dim, n), c†Sc = 1. errors_ev : (n,) bounds from residuals of the inverse
    operator. complete : as many as were asked for. n_solves : solutions with a block of right-hand sides.
    """

    energies_ev: NDArray[np.float64]
    vectors: ComplexArray
    errors_ev: NDArray[np.float64]
    complete: bool
    n_solves: int


def states_near(
    factor: CertifiedFactor,
    count: int,
    *,
    window_ev: tuple[float, float] = (-np.inf, np.inf),
    tolerance_ev: float = 1e-8,
    seed: int = 0,
) -> RitzStates:
    """The `count` states nearest to the shift of `factor` among those inside the open window.

    Stops as soon as so many have converged, or when the basis stops to grow richer: then `complete` is False.
    """
    at, sigma = factor.at, factor.sigma_ev
    count = min(count, at.dim)
    capacity = min(at.dim, count + max(3 * count, 32 * _BLOCK))
    rng = np.random.default_rng(seed)
    basis = _Basis(factor, capacity + _BLOCK)
    block = basis.random(rng, _BLOCK)
    n_solves, chosen = 0, np.zeros(0, np.int64)
    theta = errors = np.zeros(0)
    vectors = np.zeros((0, 0), np.complex128)
    for _ in range(_LARGEST_BASIS_STEPS):
        basis.append(block)
        n_new = block.x.shape[1]
        block = basis.project(factor.solve(block.sx))
        n_solves += 1
        theta, vectors = np.linalg.eigh(basis.matrix)
        residual = np.linalg.norm(block.r @ vectors[basis.size - n_new :], axis=0)
        with np.errstate(divide="ignore"):
            errors, energies = residual / theta**2, sigma + 1 / theta
        inside = (energies > window_ev[0]) & (energies < window_ev[1]) & (errors < tolerance_ev)
        chosen = np.flatnonzero(inside)
        if len(chosen) >= count or basis.size >= at.dim:
            break
        if basis.size + _BLOCK > capacity:
            order = np.argsort(-np.abs(theta))
            kept = order[: min(count + 2 * _BLOCK, capacity - 4 * _BLOCK)]
            stale = bool((errors[kept[: count + _BLOCK]] < tolerance_ev).all())
            basis.restart(theta[kept], vectors[:, kept])
            if stale:
                # All around the shift has converged and states are missing: their level has more copies than the block.
                block = basis.random(rng, _BLOCK)
        if block.x.shape[1] < _BLOCK:
            more = basis.random(rng, _BLOCK - block.x.shape[1], beside=block)
            # The new directions have no part in what is left of the last image.
            r = np.concatenate([block.r, np.zeros((more.x.shape[1], block.r.shape[1]), np.complex128)])
            block = _Block(np.concatenate([block.x, more.x], axis=1), np.concatenate([block.sx, more.sx], axis=1), r)
    near = chosen[np.argsort(-np.abs(theta[chosen]))[:count]]
    energies, states = rayleigh_ritz(at, basis.vectors[:, : basis.size] @ vectors[:, near])
    # Which old state became which new one does not matter: the largest error stands for all of a turned level.
    bound = np.full(len(energies), errors[near].max(initial=0.0))
    return RitzStates(energies, states, bound, len(near) == count, n_solves)


def rayleigh_ritz(at: BlochPencil, x: ComplexArray) -> tuple[NDArray[np.float64], ComplexArray]:
    """Energies (n,) and vectors (dim, n) of H and S in the span of x (dim, n).

    Energies are exact to second order in what x lacks, vectors orthonormal in S to rounding.
    """
    h, s = x.conj().T @ (at.h @ x), x.conj().T @ at.apply_s(x)
    values, vectors = np.linalg.eigh(s)
    half = vectors / np.sqrt(values)
    energies, turn = np.linalg.eigh(half.conj().T @ h @ half)
    return energies, x @ (half @ turn)


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Orthonormal vectors x, S x, and r with which x r is what they were made of."""

    x: ComplexArray
    sx: ComplexArray
    r: ComplexArray


class _Basis:
    """S-orthonormal vectors V, S V beside them, and V†S (H − σS)⁻¹ S V."""

    def __init__(self, factor: CertifiedFactor, capacity: int) -> None:
        self._at = factor.at
        shape = (factor.at.dim, capacity)
        self.vectors = np.zeros(shape, np.complex128, order="F")
        self.s_vectors = np.zeros(shape, np.complex128, order="F")
        self._matrix = np.zeros((capacity, capacity), np.complex128)
        self.size = 0
        self._done = 0

    @property
    def matrix(self) -> ComplexArray:
        part = self._matrix[: self.size, : self.size]
        return (part + part.conj().T) / 2

    def append(self, block: _Block) -> None:
        end = self.size + block.x.shape[1]
        self.vectors[:, self.size : end] = block.x
        self.s_vectors[:, self.size : end] = block.sx
        self._done, self.size = self.size, end

    def project(self, image: ComplexArray) -> _Block:
        """Add the columns of the newest block to the matrix; what is left of its image."""
        image, total = self._without(image)
        new = slice(self._done, self.size)
        self._matrix[: self.size, new] = total
        self._matrix[new, : self.size] = total.conj().T
        return self.orthonormal(image)

    def _without(self, x: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
        """x − V V†S x, twice, and V†S x."""
        v, sv = self.vectors[:, : self.size], self.s_vectors[:, : self.size]
        total = np.zeros((self.size, x.shape[1]), np.complex128)
        for _ in range(2):
            part = (x.conj().T @ sv).conj().T
            x = x - v @ part
            total += part
        return x, total

    def orthonormal(self, x: ComplexArray) -> _Block:
        """Orthonormal vectors of the span of x, which is orthogonal to the basis already."""
        r, sx = np.eye(x.shape[1], dtype=np.complex128), self._at.apply_s(x)
        for _ in range(2):
            values, vectors = np.linalg.eigh(x.conj().T @ sx)
            largest = float(values.max(initial=0.0))
            if not np.isfinite(values).all() or values.min(initial=0.0) < -1e-6 * largest:
                raise SolverError(
                    "an overlap that is not positive definite (a vector with a negative norm)",
                    expected="a positive definite overlap",
                    remedy="check that structure, basis and overlap belong together",
                )
            kept = values > _DEPENDENT * max(largest, 1e-300)
            root = np.sqrt(values[kept])
            r = (vectors[:, kept] * root).conj().T @ r
            turn = vectors[:, kept] / root
            x, sx = x @ turn, sx @ turn
            if root.min(initial=np.inf) < _ALMOST_DEPENDENT * np.sqrt(largest):
                # Rounding grew by as much as the vectors were stretched.
                sx = self._at.apply_s(x)
        return _Block(x, sx, r)

    def random(self, rng: np.random.Generator, n: int, beside: _Block | None = None) -> _Block:
        """n random orthonormal vectors orthogonal to the basis and to a block."""
        x = rng.standard_normal((self._at.dim, n)) + 1j * rng.standard_normal((self._at.dim, n))
        x = self._without(x)[0]
        if beside is not None:
            for _ in range(2):
                x = x - beside.x @ (beside.sx.conj().T @ x)
        return self.orthonormal(x)

    def restart(self, theta: NDArray[np.float64], vectors: ComplexArray) -> None:
        """Keep Ritz vectors only: columns of `vectors` (size, n)."""
        n = len(theta)
        for array in (self.vectors, self.s_vectors):
            array[:, :n] = array[:, : self.size] @ vectors
        self._matrix[:] = 0
        self._matrix[np.arange(n), np.arange(n)] = theta
        self.size = n
