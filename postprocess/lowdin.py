"""Square roots of overlaps, and states on Löwdin's orthonormal orbitals.

P.-O. Löwdin, J. Chem. Phys. 18, 365 (1950), doi:10.1063/1.1747632.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from hamnet.errors import SolverError

__all__ = ["lowdin_amplitudes", "square_roots"]

# Lanczos finds the ends of the spectrum of S from inside; beyond them the expansion of the root would diverge.
_MARGIN = 0.05
_ROOT_ERROR = 1e-11
_MOST_TERMS = 20_000


def lowdin_amplitudes(overlap: NDArray | scipy.sparse.spmatrix, vectors: NDArray) -> NDArray[np.complex128]:
    """S^{1/2} c: states on Löwdin's orthonormal orbitals.

    A dense S is diagonalised; of a sparse one the root is expanded in Chebyshev polynomials to 1e-11, which takes about
    13 √(condition) products with S.

    Parameters
    ----------
    overlap : (n_orbitals, n_orbitals) S(K) without spin.
    vectors : (dim, n), dim = n_orbitals or, with spinors, twice that.

    Raises :class:`SolverError` where S is not positive definite.
    """
    n = overlap.shape[0]  # type: ignore[index]
    flat = np.asarray(vectors).reshape(n, vectors.size // n)
    if scipy.sparse.issparse(overlap):
        return _expanded_root(overlap, flat).reshape(vectors.shape)
    return (square_roots(np.asarray(overlap)) @ flat).reshape(vectors.shape)


def square_roots(overlap: NDArray) -> NDArray[np.complex128]:
    """Square roots of positive definite matrices (..., n, n)."""
    values, vectors = np.linalg.eigh(overlap)
    _check_positive(float(values.min()))
    return (vectors * np.sqrt(values)[..., None, :]) @ vectors.conj().swapaxes(-1, -2)


def _check_positive(smallest: float) -> None:
    if not smallest > 0:
        raise SolverError(
            f"overlap matrix with smallest eigenvalue {smallest:.3g}", expected="a positive definite overlap"
        )


def _expanded_root(overlap, vectors: NDArray) -> NDArray:
    matrix = scipy.sparse.csr_matrix(overlap)
    start = np.random.default_rng(0).normal(size=len(vectors))  # the same S gives the same bits
    ends = [
        float(scipy.sparse.linalg.eigsh(matrix, 1, which=which, v0=start, return_eigenvectors=False, tol=1e-2)[0])  # type: ignore[arg-type]
        for which in ("SA", "LA")
    ]
    _check_positive(ends[0])
    low, high = ends[0] * (1 - _MARGIN), ends[1] * (1 + _MARGIN)
    root = np.sqrt(high / low)
    n_terms = int(np.ceil(np.log(1 / _ROOT_ERROR) / np.log((root + 1) / (root - 1)))) + 2
    if n_terms > _MOST_TERMS:
        raise SolverError(
            f"overlap with smallest eigenvalue {ends[0]:.3g}: its root takes {n_terms} products",
            expected=f"at most {_MOST_TERMS}",
            remedy="unfold with a dense overlap",
        )
    centre, half = (high + low) / 2, (high - low) / 2
    nodes = np.cos(np.pi * (np.arange(n_terms) + 0.5) / n_terms)
    coefficients = np.asarray(scipy.fft.dct(np.sqrt(centre + half * nodes))) / n_terms
    coefficients[0] /= 2

    def scaled(x: NDArray) -> NDArray:
        return (matrix @ x - centre * x) / half

    before, now = vectors, scaled(vectors)
    result = coefficients[0] * before + coefficients[1] * now
    for coefficient in coefficients[2:]:
        before, now = now, 2 * scaled(now) - before
        result += coefficient * now
    wanted = np.real(vectors.conj() * (matrix @ vectors)).sum(axis=0)
    error = float(np.max(np.abs((np.abs(result) ** 2).sum(axis=0) - wanted), initial=0))
    if not error <= 1e-8 * np.max(wanted, initial=0):
        raise SolverError(
            f"root of the overlap with an error of {error:.2g} in c†Sc",
            expected="below 1e-8 of it",
            remedy="unfold with a dense overlap",
        )
    return result
