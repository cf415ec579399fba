"""SuperLU, which scipy brings along, on the diagonal pivots of a Hermitian matrix.

In the symmetric mode and with the order given, no pivots are exchanged: L U of P A Pᵀ has U = D L†, and the negative
pivots on the diagonal of U are the negative eigenvalues of A (Sylvester). The order is that of the graph of
atoms, whose orbitals stay together. Twice the memory and operations of L D L†; pivots are not exchanged, so that
solutions want a step of refinement.
"""

from __future__ import annotations

import time

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from hamnet.errors import SolverError

from .dissection import best_order, fill_of_order
from .factor import FactorStats, SingularFactorError, require_numbers
from .pencil import SparsePencil

__all__ = ["SuperLU", "SuperLUFactor"]

ComplexArray = NDArray[np.complex128]

# A number and its row.
_BYTES_PER_ENTRY = 20


class SuperLU:
    """Order of elimination and permuted pattern of a pencil: an :class:`.factor.Analysis`."""

    name = "superlu"

    def __init__(self, pencil: SparsePencil) -> None:
        if pencil.indices.dtype != np.int32:
            raise SolverError(
                f"{pencil.nnz} matrix elements", expected="fewer than 2³¹ for SuperLU", remedy="take another back-end"
            )
        self.dim = pencil.dim
        sizes = np.diff(pencil.atom_offsets)
        atoms = best_order(pencil.atom_graph, sizes)
        entries, flops = fill_of_order(pencil.atom_graph, sizes, atoms)
        # L and U apart, each with a diagonal; the copies from which the pivots are read; twice the operations.
        self.entries, self.flops = 2 * entries, 2.0 * flops
        self.memory_bytes = 2.0 * _BYTES_PER_ENTRY * self.entries
        first = pencil.atom_offsets[:-1][atoms]
        self._order = np.repeat(first - np.concatenate([[0], np.cumsum(sizes[atoms])[:-1]]), sizes[atoms])
        self._order += np.arange(pencil.dim)
        # The pattern is symmetric: as columns it holds the transpose of what it holds as rows, the conjugate of A.
        places = scipy.sparse.csc_matrix(
            (np.arange(1, pencil.nnz + 1), pencil.indices.copy(), pencil.indptr.copy()), shape=(self.dim, self.dim)
        )[self._order][:, self._order]
        places.sort_indices()
        self._places = places.data - 1
        self._indices, self._indptr = places.indices, places.indptr

    def factor(self, data: ComplexArray) -> SuperLUFactor:
        start = time.perf_counter()
        require_numbers(data)
        matrix = scipy.sparse.csc_matrix(
            (data[self._places].conj(), self._indices.copy(), self._indptr.copy()), shape=(self.dim, self.dim)
        )
        try:
            lu = scipy.sparse.linalg.splu(
                matrix, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
            )
        except RuntimeError as error:
            raise SingularFactorError(f"SuperLU: {error}") from error
        except MemoryError as error:
            raise SolverError(
                f"not enough memory for SuperLU (about {self.memory_bytes / 1e9:.3g} GB)",
                remedy="take another back-end or a smaller cell",
            ) from error
        return SuperLUFactor(lu, self._order, start)


class SuperLUFactor:
    """P A Pᵀ = L U: a :class:`.factor.Factor`."""

    def __init__(self, lu: scipy.sparse.linalg.SuperLU, order: NDArray[np.int64], start: float) -> None:
        self._lu, self._order = lu, order
        if not np.array_equal(lu.perm_r, lu.perm_c):
            # A diagonal pivot was exactly zero: what is on the diagonal of U then tells nothing about A.
            raise SingularFactorError("pivots off the diagonal")
        upper = lu.U
        pivots = upper.diagonal()
        for copy in (upper, lu.L):
            # SuperLU keeps the copies that it makes of both factors: their arrays are emptied in place.
            copy.data = np.zeros(0, np.complex128)
            copy.indices = np.zeros(0, np.int32)
        if not np.isfinite(pivots).all() or not pivots.all():
            raise SingularFactorError("pivots that are zero or not finite")
        self.negative = int((pivots.real < 0).sum())
        self.stats = FactorStats(int(lu.nnz), _BYTES_PER_ENTRY * int(lu.nnz), time.perf_counter() - start)

    def solve(self, b: ComplexArray) -> ComplexArray:
        if b.shape[0] != len(self._order):
            raise ValueError(f"right-hand side of {b.shape[0]} rows, expected {len(self._order)}")
        x = np.empty(b.shape, np.complex128)
        x[self._order] = self._lu.solve(np.asarray(b, np.complex128)[self._order])
        return x
