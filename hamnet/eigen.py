"""The dense generalised Hermitian eigenproblem H(k) c = E S(k) c, batched over k."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .bloch import bloch_dense, n_channels
from .blocks import BlockOperator
from .errors import SolverError

__all__ = ["Eigenstates", "eigenstates", "eigenvalues", "generalised_eigh", "overlap_min_eigenvalue"]

_BATCH_BYTES = 2**28


class Eigenstates(NamedTuple):
    """States of a batch of k.

    energies : (n_k, n_channel, dim) eV, ascending.
    vectors : (n_k, n_channel, dim, dim), columns are states, c† S c = 1.
    overlap : (n_k, 1, dim, dim), S(k) of the same dimension.
    """

    energies: Tensor
    vectors: Tensor
    overlap: Tensor


def generalised_eigh(h: Tensor, s: Tensor, *, vectors: bool) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues (..., n), and eigenvectors (..., n, n) as columns with c† S c = 1, of H c = E S c.

    By Cholesky, S = L L†: L⁻¹ H L⁻† y = E y, c = L⁻† y. Leading dimensions are broadcast. H and S must be Hermitian;
    of S only the lower triangle is read. Raises :class:`SolverError` where S is not positive definite, or where
    something is not a number.
    """
    if not bool(torch.isfinite(h).all() & torch.isfinite(s).all()):
        raise SolverError("a Hamiltonian or overlap with elements that are not finite", expected="numbers")
    factor, info = torch.linalg.cholesky_ex(s)
    if bool((info > 0).any()):
        smallest = float(torch.linalg.eigvalsh(s).min())
        raise SolverError(
            f"overlap matrix with smallest eigenvalue {smallest:.3g}",
            expected="a positive definite overlap",
            remedy="check that structure, basis and overlap belong together and that orbitals are linearly independent",
        )
    half = torch.linalg.solve_triangular(factor, h, upper=False)
    reduced = torch.linalg.solve_triangular(factor, half.mH, upper=False).mH
    if not vectors:
        return torch.linalg.eigvalsh(reduced), None
    energies, y = torch.linalg.eigh(reduced)
    return energies, torch.linalg.solve_triangular(factor.mH, y, upper=True)


def _batches(hamiltonian: BlockOperator, k_frac: ArrayLike) -> Iterator[NDArray]:
    """k in portions whose matrices take about a quarter of a GB."""
    k_frac = np.atleast_2d(np.asarray(k_frac, dtype=np.float64))
    dim = hamiltonian.n_orbitals * (2 if hamiltonian.n_spin == 4 else 1)
    portion = max(1, _BATCH_BYTES // (16 * 6 * n_channels(hamiltonian) * dim * dim))
    for start in range(0, len(k_frac), portion):
        yield k_frac[start : start + portion]


def _pencil(hamiltonian: BlockOperator, overlap: BlockOperator, k_frac: NDArray) -> tuple[Tensor, Tensor]:
    h = bloch_dense(hamiltonian, k_frac)
    s = bloch_dense(overlap.with_spin(4) if hamiltonian.n_spin == 4 else overlap, k_frac)
    # Codes compute both directions of a bond apart, so the stored matrix is Hermitian to ~1e-9 only.
    common = torch.promote_types(h.dtype, s.dtype)
    return ((h + h.mH) / 2).to(common), ((s + s.mH) / 2).to(h.device, common)


def eigenstates(hamiltonian: BlockOperator, overlap: BlockOperator, k_frac: ArrayLike) -> Iterator[Eigenstates]:
    """States with vectors, in portions of k that fit into memory."""
    for portion in _batches(hamiltonian, k_frac):
        h, s = _pencil(hamiltonian, overlap, portion)
        energies, vectors = generalised_eigh(h, s, vectors=True)
        assert vectors is not None
        yield Eigenstates(energies, vectors, s)


def eigenvalues(hamiltonian: BlockOperator, overlap: BlockOperator, k_frac: ArrayLike) -> NDArray[np.float64]:
    """(n_k, n_channel, dim) eV, ascending, for k_frac (n_k, 3) in fractions of the reciprocal vectors."""
    result = []
    for portion in _batches(hamiltonian, k_frac):
        h, s = _pencil(hamiltonian, overlap, portion)
        result.append(generalised_eigh(h, s, vectors=False)[0].detach().cpu().numpy())
    return np.concatenate(result)


def overlap_min_eigenvalue(overlap: BlockOperator, k_frac: ArrayLike) -> float:
    """Smallest eigenvalue of S(k) over the given k."""
    smallest = np.inf
    for portion in _batches(overlap, k_frac):
        s = bloch_dense(overlap, portion)
        smallest = min(smallest, float(torch.linalg.eigvalsh((s + s.mH) / 2).min()))
    return smallest
