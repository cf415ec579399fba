"""Vectors of random phases, whose mean v†Av is the trace of A, and what they tell about groups of orbitals."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

__all__ = ["group_sums", "random_phases"]

ComplexArray = NDArray[np.complex128]


def random_phases(
    seed: int, k_frac: tuple[float, float, float], channel: int, batch: int, shape: tuple[int, int]
) -> ComplexArray:
    """Numbers e^{iφ} of this shape; the same arguments give the same ones, others independent ones."""
    places = [round(k * 2**32) % 2**32 for k in k_frac]
    return np.exp(2j * np.pi * np.random.default_rng([seed, channel, batch, *places]).random(shape))


def group_sums(a: ComplexArray, b: ComplexArray, groups: scipy.sparse.csr_matrix, n_spin: int) -> ComplexArray:
    """(m, n_groups, s, s) Σ_i a_iσ b_iσ'* over the orbitals of each group, of columns a, b (dim, m), spin fast.

    groups : (n_groups, n_orbitals) of 0 and 1. n_spin : s, 2 for spinors, else 1.
    """
    n = len(a) // n_spin
    a, b = (x.reshape(n, n_spin, -1) for x in (a, b))
    products = np.einsum("axm,aym->amxy", a, b.conj())
    summed = np.asarray(groups @ products.reshape(n, -1))
    return summed.reshape(-1, *products.shape[1:]).swapaxes(0, 1)
