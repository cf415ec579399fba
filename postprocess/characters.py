"""What single states are made of: ⟨σ⟩ and Mulliken weights, from eigenvectors of any solver.

Vectors are columns c with c†Sc = 1; `along` is S c. With spinors the orbital is slow and the spin (↑, ↓) fast.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

__all__ = ["mulliken_weights", "overlap_product", "spinor_spin"]


def overlap_product(overlap: NDArray | scipy.sparse.spmatrix, vectors: NDArray) -> NDArray[np.complex128]:
    """S c (dim, n) of one k, from the spin-free S (n_orbitals, n_orbitals), dense or sparse; spinors as they are."""
    n = overlap.shape[0]  # type: ignore[index]
    flat = vectors.reshape(n, vectors.size // n)
    return np.asarray(overlap @ flat).reshape(vectors.shape)


def spinor_spin(vectors: NDArray, along: NDArray) -> NDArray[np.float64]:
    """(..., n, 3) ⟨σ⟩ = c†(σ ⊗ S)c of spinors (..., dim, n)."""
    up, down = vectors[..., 0::2, :].conj(), vectors[..., 1::2, :].conj()
    s_up, s_down = along[..., 0::2, :], along[..., 1::2, :]
    flip = (up * s_down).sum(axis=-2)  # ↑†S↓
    z = (up * s_up - down * s_down).sum(axis=-2)
    return np.stack([2 * flip.real, 2 * flip.imag, z.real], axis=-1)


def mulliken_weights(vectors: NDArray, along: NDArray, membership: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., n, n_groups) Σ_{a in group, σ} Re c_aσ* (S c)_aσ of states (..., dim, n): they add up to 1.

    membership : (n_orbitals, n_groups) of 0 and 1.
    """
    share = np.real(vectors.conj() * along)
    by_orbital = share.reshape(*share.shape[:-2], len(membership), -1, share.shape[-1]).sum(axis=-2)
    return by_orbital.swapaxes(-1, -2) @ membership
