"""Block shift-invert Lanczos for the states of H c = E S c nearest to a shift.

The operator (H − σS)⁻¹ S is Hermitian in the inner product of S; its largest eigenvalues θ = 1/(E − σ) belong to the
states next to σ. Blocks of vectors find degenerate levels and share the passes over the factor; all vectors are kept
orthogonal in full, twice; the basis is restarted from its Ritz vectors (thick restart: Wu and Simon, SIAM J. Matrix
Anal. Appl. 22, 602 (2000)).

Dense algebra is torch's, as that of the factor is: two pools of threads would wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hamnet.errors import SolverError

from .factor import CertifiedFactor
from .pencil import BlochPencil

__all__ = ["Lanczos", "RitzStates", "rayleigh_ritz", "states_near"]

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
    return Lanczos(factor, count, seed=seed).states(window_ev=window_ev, tolerance_ev=tolerance_ev)


class Lanczos:
    """A search for the `count` states nearest to the shift of `factor`, one block solution at a time."""

    def __init__(self, factor: CertifiedFactor, count: int, *, seed: int = 0) -> None:
        self._factor, self._rng = factor, np.random.default_rng(seed)
        self._count = min(count, factor.at.dim)
        self._capacity = min(factor.at.dim, self._count + max(3 * self._count, 32 * _BLOCK))
        self._basis = _Basis(factor.at, self._capacity + _BLOCK)
        self._next = self._start = self._basis.random(self._rng, _BLOCK)
        self._restarted = False
        self._theta = self._residual = torch.zeros(0, dtype=torch.float64)
        self._vectors = torch.zeros((0, 0), dtype=torch.complex128)
        self.n_solves = 0

    def step(self) -> None:
        """One block solution."""
        basis, block = self._basis, self._next
        basis.append(block)
        n_new = len(block.x)
        self._next = basis.project(self._factor.solve(block.sx.numpy().T))
        self.n_solves += 1
        self._theta, self._vectors = torch.linalg.eigh(basis.matrix)
        self._residual = (self._next.r @ self._vectors[basis.size - n_new :]).norm(dim=0)

    def density(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energies (n,), nearest to the shift first, and about how many states each stands for.

        Gauss quadrature from the random vectors of the start (Golub and Meurant, Matrices, Moments and Quadrature,
        2010): a few steps tell where the states near the shift are, long before one has converged.
        """
        if self._restarted:
            raise ValueError("the vectors of the start are no longer in the basis")
        order = torch.argsort(-self._theta.abs())
        x = self._vectors[:, order]
        # Of a random vector with independent elements of mean square one, a state has the share |S c|² on average.
        along = self._start.r.mH @ x[: len(self._start.x)]
        states = self._basis.s_vectors[: self._basis.size].mT @ x
        numbers = along.abs().square().mean(dim=0) / states.abs().square().sum(dim=0)
        return self._factor.sigma_ev + 1 / self._theta[order].numpy(), numbers.numpy()

    def states(self, *, window_ev: tuple[float, float] = (-np.inf, np.inf), tolerance_ev: float = 1e-8) -> RitzStates:
        """The states that were asked for among those inside the open window."""
        basis, sigma, count = self._basis, self._factor.sigma_ev, self._count
        for step in range(_LARGEST_BASIS_STEPS):
            if step or not self.n_solves:
                self.step()
            errors, energies = self._residual / self._theta**2, sigma + 1 / self._theta
            inside = torch.nonzero((energies > window_ev[0]) & (energies < window_ev[1]))[:, 0]
            nearest = inside[torch.argsort(-self._theta[inside].abs())[:count]]
            # None that is nearer than the last one may be on its way still.
            converged = errors[nearest] < tolerance_ev
            if (len(nearest) == count and bool(converged.all())) or basis.size >= self._factor.at.dim:
                break
            self._make_room(errors, tolerance_ev)
        near = nearest[converged]
        x, sx = ((v[: basis.size].mT @ self._vectors[:, near]).numpy() for v in (basis.vectors, basis.s_vectors))
        levels, states = rayleigh_ritz(self._factor.at, x, sx)
        # Which old state became which new one does not matter: the largest error stands for all of a turned level.
        bound = np.full(len(levels), float(errors[near].max()) if len(near) else 0.0)
        return RitzStates(levels, states, bound, len(near) == count, self.n_solves)

    def _make_room(self, errors: Tensor, tolerance_ev: float) -> None:
        """Restart a full basis, and fill up the next block."""
        basis, block = self._basis, self._next
        if basis.size + _BLOCK > self._capacity:
            order = torch.argsort(-self._theta.abs())
            kept = order[: min(self._count + 2 * _BLOCK, self._capacity - 4 * _BLOCK)]
            stale = bool((errors[kept[: self._count + _BLOCK]] < tolerance_ev).all())
            basis.restart(self._theta[kept], self._vectors[:, kept])
            self._restarted = True
            if stale:
                # All around the shift has converged and states are missing: their level has more copies than the block.
                block = basis.random(self._rng, _BLOCK)
        if len(block.x) < _BLOCK:
            more = basis.random(self._rng, _BLOCK - len(block.x), beside=block)
            # The new directions have no part in what is left of the last image.
            r = torch.cat([block.r, block.r.new_zeros((len(more.x), block.r.shape[1]))])
            block = _Block(torch.cat([block.x, more.x]), torch.cat([block.sx, more.sx]), r)
        self._next = block


def rayleigh_ritz(at: BlochPencil, x: ComplexArray, sx: ComplexArray) -> tuple[NDArray[np.float64], ComplexArray]:
    """Energies (n,) and vectors (dim, n) of H and S in the span of x (dim, n), with S x beside them.

    Energies are exact to second order in what x lacks, vectors orthonormal in S to rounding.
    """
    h, s = x.conj().T @ (at.h @ x), x.conj().T @ sx
    values, vectors = np.linalg.eigh(s)
    half = vectors / np.sqrt(values)
    energies, turn = np.linalg.eigh(half.conj().T @ h @ half)
    return energies, x @ (half @ turn)


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Orthonormal vectors x (m, dim), one in each row, S x beside them, and r (m, n): n vectors x r they were made
    of."""

    x: Tensor
    sx: Tensor
    r: Tensor


class _Basis:
    """S-orthonormal vectors V, one in each row, S V beside them, and V†S (H − σS)⁻¹ S V."""

    def __init__(self, at: BlochPencil, capacity: int) -> None:
        self._at = at
        self.vectors = torch.zeros((capacity, at.dim), dtype=torch.complex128)
        self.s_vectors = torch.zeros_like(self.vectors)
        self._matrix = torch.zeros((capacity, capacity), dtype=torch.complex128)
        self.size = 0
        self._done = 0

    @property
    def matrix(self) -> Tensor:
        part = self._matrix[: self.size, : self.size]
        return (part + part.mH) / 2

    def append(self, block: _Block) -> None:
        end = self.size + len(block.x)
        self.vectors[self.size : end] = block.x
        self.s_vectors[self.size : end] = block.sx
        self._done, self.size = self.size, end

    def project(self, image: ComplexArray) -> _Block:
        """Add the columns (dim, m) of the image of the newest block to the matrix; what is left of them."""
        rest, total = self._without(torch.from_numpy(image.T))
        new = slice(self._done, self.size)
        self._matrix[: self.size, new] = total
        self._matrix[new, : self.size] = total.mH
        return self.orthonormal(rest)

    def _without(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x − V V†S x, twice, in rows, and V†S x (size, m)."""
        v, sv = self.vectors[: self.size], self.s_vectors[: self.size]
        total = torch.zeros((self.size, len(x)), dtype=torch.complex128)
        for _ in range(2):
            part = sv.conj() @ x.mT
            x = x - part.mT @ v
            total += part
        return x, total

    def _apply_s(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._at.apply_s(np.ascontiguousarray(x.numpy().T)).T))

    def orthonormal(self, x: Tensor) -> _Block:
        """Orthonormal vectors of the span of x (m, dim), which is orthogonal to the basis already."""
        r, sx = torch.eye(len(x), dtype=torch.complex128), self._apply_s(x)
        for _ in range(2):
            values, vectors = torch.linalg.eigh(x.conj() @ sx.mT)
            largest = float(values.max()) if len(values) else 0.0
            if not bool(values.isfinite().all()) or bool((values < -1e-6 * largest).any()):
                raise SolverError(
                    "an overlap that is not positive definite (a vector with a negative norm)",
                    expected="a positive definite overlap",
                    remedy="check that structure, basis and overlap belong together",
                )
            kept = values > _DEPENDENT * max(largest, 1e-300)
            root = values[kept].sqrt()
            r = (vectors[:, kept] * root).mH @ r
            turn = (vectors[:, kept] / root).mT
            x, sx = turn @ x, turn @ sx
            if bool((root < _ALMOST_DEPENDENT * largest**0.5).any()):
                # Rounding grew by as much as the vectors were stretched.
                sx = self._apply_s(x)
        return _Block(x, sx, r)

    def random(self, rng: np.random.Generator, n: int, beside: _Block | None = None) -> _Block:
        """Orthonormal vectors of n random ones, with elements of mean square one, less the basis and a block."""
        x = rng.standard_normal((self._at.dim, n)) + 1j * rng.standard_normal((self._at.dim, n))
        x = self._without(torch.from_numpy(x.T / np.sqrt(2)))[0]
        if beside is not None:
            for _ in range(2):
                x = x - (beside.sx.conj() @ x.mT).mT @ beside.x
        return self.orthonormal(x)

    def restart(self, theta: Tensor, vectors: Tensor) -> None:
        """Keep Ritz vectors only: columns of `vectors` (size, n)."""
        n = len(theta)
        for array in (self.vectors, self.s_vectors):
            array[:n] = vectors.mT @ array[: self.size]
        self._matrix[:] = 0
        self._matrix[range(n), range(n)] = theta.to(torch.complex128)
        self.size = n
