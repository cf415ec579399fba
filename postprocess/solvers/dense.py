"""LAPACK on the whole matrix: for small cells, and the measure of all other back-ends.

Bunch–Kaufman pivoting: L D L† with pivots of size 1 and 2, whose eigenvalues have the signs of those of the matrix.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

from .factor import FactorStats, SingularFactorError, require_numbers
from .pencil import SparsePencil

__all__ = ["Dense", "DenseFactor"]

ComplexArray = NDArray[np.complex128]


class Dense:
    """Places of the pattern of a pencil in the whole matrix: an :class:`.factor.Analysis`."""

    name = "dense"

    def __init__(self, pencil: SparsePencil) -> None:
        self.dim = pencil.dim
        rows = np.repeat(np.arange(pencil.dim, dtype=np.int64), np.diff(pencil.indptr))
        # LAPACK wants columns: what is written into rows is the transpose, so the lower triangle becomes the upper.
        self._places = rows * pencil.dim + pencil.indices
        self.flops = 4.0 / 3.0 * float(self.dim) ** 3
        self.memory_bytes = 16.0 * float(self.dim) ** 2

    def factor(self, data: ComplexArray) -> DenseFactor:
        start = time.perf_counter()
        require_numbers(data)
        matrix = np.zeros(self.dim * self.dim, np.complex128)
        matrix[self._places] = data.conj()
        return DenseFactor(matrix.reshape(self.dim, self.dim).T, start)


class DenseFactor:
    """A = L D L†: a :class:`.factor.Factor`. `matrix` (dim, dim), columns contiguous, is overwritten."""

    def __init__(self, matrix: ComplexArray, start: float) -> None:
        dim = len(matrix)
        work, factorise, self._solve = get_lapack_funcs(("hetrf_lwork", "hetrf", "hetrs"), dtype=np.complex128)
        size = int(work(dim, lower=1)[0].real)
        self._ldl, self._pivots, info = factorise(matrix, lower=1, lwork=size, overwrite_a=1)
        if info > 0:
            raise SingularFactorError(f"pivot {info} is zero")
        # Rows of a 2×2 pivot have negative numbers, and one negative eigenvalue between them.
        alone = self._pivots >= 0
        diagonal = self._ldl.diagonal().real
        self.negative = int((diagonal[alone] < 0).sum()) + int((~alone).sum()) // 2
        self.stats = FactorStats(dim * (dim + 1) // 2, self._ldl.nbytes, time.perf_counter() - start)

    def solve(self, b: ComplexArray) -> ComplexArray:
        if b.shape[0] != len(self._ldl):
            raise ValueError(f"right-hand side of {b.shape[0]} rows, expected {len(self._ldl)}")
        x, _ = self._solve(self._ldl, self._pivots, b.reshape(len(b), -1), lower=1)
        return np.ascontiguousarray(x).reshape(b.shape)
