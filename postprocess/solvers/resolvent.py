"""The resolvent G(z) = (zS − H)⁻¹ at a complex energy: solutions, and its elements where H has any.

H − zS is not Hermitian, but its adjoint is H − z*S: below the diagonal it is what the matrix of z* is above. A front is
kept as two upper triangles, that of z and that of z*, so that all is as for a Hermitian matrix, twice. The imaginary
part of every Schur complement is definite for a positive S, so no pivot vanishes and none is exchanged between blocks;
inside a block LAPACK exchanges them.

Elements of the inverse on the pattern follow from the factor alone, front by front from the root down (Takahashi, Fagan
and Chen, Proc. 8th PICA Conf., 63 (1973); Lin et al., ACM Trans. Math. Softw. 37, 40 (2011)).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from hamnet.errors import SolverError

from .dissection import elimination_tree
from .factor import FactorStats
from .multifrontal import PANEL_ROWS, PIVOT_ROWS, Front, add_child, stack_peak, symbolic_fronts
from .pencil import BlochPencil, SparsePencil

__all__ = ["Resolvent", "ResolventAnalysis"]

ComplexArray = NDArray[np.complex128]

# Backward errors relative to |A| that a refinement step does not have to mend.
_EXACT = 1e-13


class ResolventAnalysis:
    """What depends on the pattern of a pencil alone.

    flops, memory_bytes : estimate of one factorisation, real operations and bytes at its peak. Elements of the inverse
    take twice the operations again, and room for the fronts on one branch of the tree.
    """

    def __init__(self, pencil: SparsePencil, device: torch.device | str = "cpu") -> None:
        tree = elimination_tree(pencil.atom_graph, np.diff(pencil.atom_offsets))
        self.pencil, self.device = pencil, torch.device(device)
        self._fronts = symbolic_fronts(pencil, tree, self.device)
        own = np.array([front.n_own for front in self._fronts], float)
        rest = np.array([len(front.rows) for front in self._fronts]) - own
        self.flops = float(8 * (own**3 / 3 + own**2 * rest + own * rest**2).sum())
        waiting = stack_peak(tree, (own + rest) ** 2 + rest**2, rest)
        self.memory_bytes = 32.0 * (float((own * (own + 1) / 2 + own * rest).sum()) + waiting)

    def factor(self, at: BlochPencil, energy_ev: complex) -> Resolvent:
        """G(z) of H(k), S(k) at z = `energy_ev`.

        Raises :class:`SolverError` for a real z: use the Hermitian factorisations there.
        """
        if not np.isfinite(energy_ev) or energy_ev.imag == 0:
            raise SolverError(f"a resolvent at {energy_ev} eV", expected="an energy with an imaginary part")
        start = time.perf_counter()
        data = at.shifted(energy_ev), at.shifted(energy_ev.conjugate())
        factors: list[_FrontFactor] = []
        passed: dict[int, tuple[Tensor, Tensor]] = {}
        for node, front in enumerate(self._fronts):
            upper, lower = (self._assembled(front, values) for values in data)
            for child, runs in front.children:
                for matrix, part in zip((upper, lower), passed.pop(child), strict=True):
                    add_child(matrix, part, runs)
            own, pivots = front.n_own, []
            for first in range(0, own, PIVOT_ROWS):
                last = min(first + PIVOT_ROWS, own)
                pivot = _eliminated(upper[first:last, first:], lower[first:last, first:])
                # Row i of `upper` times column j of `lower`†: what lies above the diagonal, of z and of z*.
                upper[last:own, last:].addmm_(lower[first:last, last:own].mH, pivot.right, alpha=-1)
                lower[last:own, last:].addmm_(upper[first:last, last:own].mH, pivot.left, alpha=-1)
                pivots.append(pivot)
            if own < len(front.rows):
                right, left = (
                    torch.cat([getattr(pivot, side)[:, own - len(front.rows) :] for pivot in pivots])
                    for side in ("right", "left")
                )
                passed[node] = _schur(upper, lower, own, right), _schur(lower, upper, own, left)
            factors.append(_FrontFactor(front, tuple(pivots)))
        entries = sum(p.right.numel() + p.left.numel() + p.inverse.numel() for f in factors for p in f.pivots)
        stats = FactorStats(entries, 16 * entries, time.perf_counter() - start)
        return Resolvent(at, energy_ev, tuple(factors), stats)

    def _assembled(self, front: Front, data: ComplexArray) -> Tensor:
        n = len(front.rows)
        matrix = torch.zeros((n, n), dtype=torch.complex128, device=self.device)
        matrix.view(-1)[front.target] = torch.from_numpy(data[front.source]).to(self.device)
        return matrix


@dataclass(frozen=True, slots=True, eq=False)
class _Pivot:
    """A block pivot D of A = L D U: D⁻¹ (b, b), its rows right of the diagonal of U (b, m) and of L† (b, m)."""

    inverse: Tensor
    right: Tensor
    left: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _FrontFactor:
    front: Front
    pivots: tuple[_Pivot, ...]


class Resolvent:
    """G(z) = (zS − H)⁻¹ at one k and channel.

    at, energy_ev : where. stats : cost of the factorisation.
    """

    def __init__(
        self, at: BlochPencil, energy_ev: complex, factors: tuple[_FrontFactor, ...], stats: FactorStats
    ) -> None:
        self.at, self.energy_ev, self.stats = at, energy_ev, stats
        self._factors = factors

    def solve(self, b: ComplexArray) -> ComplexArray:
        """G b for b (dim, m), with one step of refinement where rounding is seen.

        Raises :class:`SolverError` where it does not help: S is then not positive definite.
        """
        x = self._solved(b)
        for _ in range(2):
            missed = b - self.energy_ev * self.at.apply_s(x) + self.at.h @ x
            error = np.linalg.norm(missed) / (np.linalg.norm(b) + abs(self.energy_ev) * np.linalg.norm(x))
            if error < _EXACT:
                return x
            x = x + self._solved(missed)
        if not error < 1e-8:
            raise SolverError(
                f"solutions at {self.energy_ev:.6g} eV with a residual of {error:.2g}", expected="below 1e-8",
                remedy="check that the overlap is positive definite, or take a larger broadening",
            )  # fmt: skip
        return x

    def _solved(self, b: ComplexArray) -> ComplexArray:
        # Right-hand sides as rows, as for the Hermitian factor; A = H − zS is −1/G.
        device = self._factors[0].front.rows.device
        x = -torch.from_numpy(np.ascontiguousarray(b.reshape(len(b), -1).T, dtype=np.complex128)).to(device)
        for factor in self._factors:
            front = factor.front
            part = x[:, front.rows]
            for first, pivot in zip(range(0, front.n_own, PIVOT_ROWS), factor.pivots, strict=True):
                last = first + len(pivot.inverse)
                part[:, last:] -= part[:, first:last] @ pivot.left.conj()
            x[:, front.rows] = part
        for factor in reversed(self._factors):
            front = factor.front
            part = x[:, front.rows]
            for first, pivot in _backwards(factor):
                last = first + len(pivot.inverse)
                part[:, first:last] = part[:, first:last] @ pivot.inverse.mT - part[:, last:] @ pivot.right.mT
            x[:, front.rows[: front.n_own]] = part[:, : front.n_own]
        return np.ascontiguousarray(x.mT.cpu().numpy()).reshape(b.shape)

    def elements(self) -> ComplexArray:
        """G on the pattern of H: data (nnz,) in the order of ``pencil.indices``.

        Raises :class:`SolverError` where solutions with the factor that they come from have a residual.
        """
        pencil = self.at.pencil
        self.solve(np.exp(2j * np.pi * np.random.default_rng(0).random((pencil.dim, 1))))
        data = np.empty(pencil.nnz, np.complex128)
        turned = transposed_places(pencil)
        passed: dict[int, Tensor] = {}
        for node in reversed(range(len(self._factors))):
            factor = self._factors[node]
            front, n, own = factor.front, len(factor.front.rows), factor.front.n_own
            inverse = torch.empty((n, n), dtype=torch.complex128, device=front.rows.device)
            if own < n:
                inverse[own:, own:] = passed.pop(node)
            for first, pivot in _backwards(factor):
                last = first + len(pivot.inverse)
                rest = inverse[last:, last:]
                inverse[first:last, last:] = -(pivot.right @ rest)
                inverse[last:, first:last] = -(rest @ pivot.left.mH)
                inverse[first:last, first:last] = pivot.inverse - pivot.right @ inverse[last:, first:last]
            for child, runs in front.children:
                rows = torch.cat([torch.arange(to, to + size) for _, to, size in runs]).to(inverse.device)
                passed[child] = inverse[rows][:, rows]
            data[front.source] = -inverse.view(-1)[front.target].cpu().numpy()
            data[turned[front.source]] = -inverse.mT.reshape(-1)[front.target].cpu().numpy()
        return data


def transposed_places(pencil: SparsePencil) -> NDArray[np.int64]:
    """(nnz,) place of element (j, i) in the data of H for each place of (i, j)."""
    places = np.arange(pencil.nnz)
    matrix = scipy.sparse.csr_matrix((places, pencil.indices, pencil.indptr), shape=(pencil.dim,) * 2)
    return matrix.T.tocsr().data


def _backwards(factor: _FrontFactor) -> list[tuple[int, _Pivot]]:
    return list(zip(range(0, factor.front.n_own, PIVOT_ROWS), factor.pivots, strict=True))[::-1]


def _eliminated(upper: Tensor, lower: Tensor) -> _Pivot:
    """The block pivot of the first rows (b, b + m) of the two triangles."""
    size = len(upper)
    block = upper[:, :size].triu() + lower[:, :size].triu(1).mH
    inverse = torch.linalg.inv(block)
    return _Pivot(inverse, inverse @ upper[:, size:], inverse.mH @ lower[:, size:])


def _schur(matrix: Tensor, other: Tensor, own: int, right: Tensor) -> Tensor:
    """What is left for the parent, the upper triangle; `other` the triangle of the conjugate energy."""
    rest = matrix[own:, own:].clone()
    bare = other[:own, own:]
    for first in range(0, len(rest), PANEL_ROWS):
        last = min(first + PANEL_ROWS, len(rest))
        rest[first:last, first:].addmm_(bare[:, first:last].mH, right[:, first:], alpha=-1)
    return rest
