"""H(k) and S(k) of a large cell on one fixed sparse pattern.

Both matrices, and every H − σS, share ``indptr`` and ``indices``: the union of the pairs of H and S, rows and columns
in the order of atoms, orbital slow and spin fast. Bloch phases are those of the lattice gauge, e^{2πi k·R}, so that
only bonds into a neighbouring cell (R ≠ 0) change with k; all others are added up once. S stays spin-free: on the
pattern of the spinors the ↑↑ and ↓↓ places of an orbital pair follow from its own place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike, NDArray

from hamnet.bloch import channel_block, n_channels
from hamnet.blocks import BlockOperator
from hamnet.errors import SolverError

__all__ = ["BlochPencil", "SparsePencil"]

ComplexArray = NDArray[np.complex128]

_ARRAYS = ("atom_offsets", "indptr", "indices", "s_indptr", "s_indices")


@dataclass(frozen=True, slots=True, eq=False)
class _Bonds:
    """Elements with one phase: `values` (n_channel, n) belong into the `places` (n,) of the data, e^{2πi k·shift}."""

    shift: NDArray[np.int64]
    places: NDArray[np.int64]
    values: ComplexArray


@dataclass(frozen=True, slots=True, eq=False)
class _BlochSum:
    """Data arrays of an operator on a pattern: the sum over bonds inside the cell, and the bonds that leave it."""

    home: ComplexArray  # (n_channel, nnz)
    bonds: tuple[_Bonds, ...]

    def at(self, k_frac: NDArray[np.float64], channel: int) -> ComplexArray:
        data = self.home[channel].copy()
        for bonds in self.bonds:
            # No place occurs twice among the bonds of one shift.
            data[bonds.places] += np.exp(2j * np.pi * float(bonds.shift @ k_frac)) * bonds.values[channel]
        return data


class SparsePencil:
    """The pencils (H(k), S(k)) of a sample, for all k.

    Parameters
    ----------
    hamiltonian, overlap : of the same atoms. Both are symmetrised, (O + O†)/2: codes compute the two directions of a
        bond apart, so they are Hermitian to ~1e-9 eV only.

    Attributes
    ----------
    n_channels : matrices at each k: 2 for a collinear H, else 1.
    spinor : rows are (orbital, spin), spin fast; S acts on orbitals.
    n_spin : of the Hamiltonian, as in :class:`hamnet.blocks.BlockOperator`; a state holds two electrons for 1.
    indptr, indices : CSR pattern of H(k), columns ascending in each row. Read-only: all matrices share them.
    s_indptr, s_indices : that of S(k), between orbitals.
    atom_offsets : (n_atoms + 1,) first row of each atom.
    atom_graph : (n_atoms, n_atoms) CSR pattern of atom pairs.
    """

    def __init__(self, hamiltonian: BlockOperator, overlap: BlockOperator) -> None:
        if overlap.n_spin != 1:
            raise ValueError(f"overlap with {overlap.n_spin} spin components, expected 1")
        if not np.array_equal(hamiltonian.pairs.species, overlap.pairs.species):
            raise ValueError("H and S of different atoms")
        self._set_spin(hamiltonian.n_spin)
        n_atoms = hamiltonian.pairs.n_atoms
        sizes = hamiltonian.basis.n_orbitals[hamiltonian.pairs.species]
        spin = 2 if self.spinor else 1
        self.atom_offsets = spin * np.concatenate([[0], np.cumsum(sizes)])
        both = [np.concatenate([getattr(o.pairs, side) for o in (hamiltonian, overlap)]) for side in ("row", "col")]
        self.atom_graph = scipy.sparse.csr_matrix((np.ones(len(both[0]), bool), both), shape=(n_atoms, n_atoms))
        self.atom_graph.sort_indices()
        places = _Places(self.atom_graph, sizes)
        self.indptr, self.indices = places.pattern(spin)
        self.s_indptr, self.s_indices = (self.indptr, self.indices) if spin == 1 else places.pattern(1)
        for array in (self.indptr, self.indices, self.s_indptr, self.s_indices):
            array.setflags(write=False)
        self._h = _bloch_sum(hamiltonian.symmetrised(), places, spin)
        self._s = _bloch_sum(overlap.symmetrised(), places, 1)

    def _set_spin(self, n_spin: int) -> None:
        self.n_spin = n_spin
        self.spinor = n_spin == 4
        self.n_channels = 2 if n_spin == 2 else 1

    @property
    def dim(self) -> int:
        """Dimension of H(k)."""
        return int(self.atom_offsets[-1])

    @property
    def n_orbitals(self) -> int:
        """Dimension of S(k): spin not counted."""
        return len(self.s_indptr) - 1

    @property
    def nnz(self) -> int:
        return len(self.indices)

    @property
    def n_atoms(self) -> int:
        return len(self.atom_offsets) - 1

    @property
    def electrons_per_state(self) -> int:
        """2 without spin, else 1."""
        return 2 if self.n_spin == 1 else 1

    @property
    def memory_bytes(self) -> int:
        """Of the pattern, the sums over the home cell and the bonds that leave it."""
        sums = sum(s.home.nbytes + sum(b.values.nbytes + b.places.nbytes for b in s.bonds) for s in (self._h, self._s))
        return sums + self.indices.nbytes + self.indptr.nbytes + self.s_indices.nbytes

    def arrays(self) -> Iterator[NDArray]:
        """All that H(k) and S(k) depend on."""
        yield from (getattr(self, name) for name in _ARRAYS)
        for total in (self._h, self._s):
            yield total.home
            for bonds in total.bonds:
                yield from (bonds.shift, bonds.places, bonds.values)

    def save(self, folder: Path) -> None:
        """Write the arrays into a folder, for :meth:`load` in other processes."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {"graph_indptr": self.atom_graph.indptr, "graph_indices": self.atom_graph.indices}
        for name, total in (("h", self._h), ("s", self._s)):
            arrays[f"{name}_home"] = total.home
            for number, bonds in enumerate(total.bonds):
                arrays |= {f"{name}_{key}{number}": getattr(bonds, key) for key in ("shift", "places", "values")}
        numbers = {"n_spin": self.n_spin, "h": len(self._h.bonds), "s": len(self._s.bonds)}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        (folder / "pencil.json").write_text(json.dumps(numbers), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The pencil that was saved; its arrays stay on the disk, where all processes of a machine share them."""

        def array(name: str) -> NDArray:
            return np.load(folder / f"{name}.npy", mmap_mode="r")

        numbers = json.loads((folder / "pencil.json").read_text(encoding="utf-8"))
        new = cls.__new__(cls)
        new._set_spin(numbers["n_spin"])
        for name in _ARRAYS:
            setattr(new, name, array(name))
        graph = np.ones(len(array("graph_indices")), bool), array("graph_indices"), array("graph_indptr")
        new.atom_graph = scipy.sparse.csr_matrix(graph, shape=(new.n_atoms, new.n_atoms))
        new._h, new._s = (
            _BlochSum(
                array(f"{name}_home"),
                tuple(
                    _Bonds(*(array(f"{name}_{key}{number}") for key in ("shift", "places", "values")))
                    for number in range(numbers[name])
                ),
            )
            for name in ("h", "s")
        )
        return new

    @property
    def overlap(self) -> SparsePencil:
        """S in the place of H, spin not counted."""
        new = SparsePencil.__new__(SparsePencil)
        new._set_spin(1)
        new.atom_offsets = self.atom_offsets // (2 if self.spinor else 1)
        new.atom_graph = self.atom_graph
        new.indptr, new.indices = new.s_indptr, new.s_indices = self.s_indptr, self.s_indices
        new._h = new._s = self._s
        return new

    def at(self, k_frac: ArrayLike, channel: int = 0) -> BlochPencil:
        """The pencil at one k_frac (3,), in fractions of the reciprocal vectors."""
        k = np.asarray(k_frac, dtype=np.float64)
        if k.shape != (3,):
            raise ValueError(f"k_frac of shape {k.shape}, expected a single k (3,)")
        if not 0 <= channel < self.n_channels:
            raise ValueError(f"channel {channel} of {self.n_channels}")
        h, s = self._h.at(k, channel), self._s.at(k, 0)
        if not (np.isfinite(h).all() and np.isfinite(s).all()):
            raise SolverError("a Hamiltonian or overlap with elements that are not finite", expected="numbers")
        return BlochPencil(self, k, channel, h, s)

    @cached_property
    def spin_places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of ↑↑ and ↓↓ of each orbital pair of S in the data of a spinor H."""
        # Row r of S begins at p and has w entries; rows (r, ↑) and (r, ↓) of H begin at 4p and 4p + 2w.
        width = np.diff(self.s_indptr).astype(np.int64)
        start, rows = self.s_indptr[:-1].astype(np.int64), np.repeat(np.arange(self.n_orbitals), width)
        up = 2 * (np.arange(len(self.s_indices)) + start[rows])
        return up, up + (2 * width + 1)[rows]


@dataclass(frozen=True, slots=True, eq=False)
class BlochPencil:
    """(H, S) at one k and channel; H data on the pattern of `pencil`, S data on that of its orbitals."""

    pencil: SparsePencil
    k_frac: NDArray[np.float64]
    channel: int
    h_data: ComplexArray
    s_data: ComplexArray

    @property
    def dim(self) -> int:
        return self.pencil.dim

    @property
    def h(self) -> scipy.sparse.csr_matrix:
        """H(k), (dim, dim), on the shared pattern: never change it in place."""
        return scipy.sparse.csr_matrix((self.h_data, self.pencil.indices, self.pencil.indptr), shape=(self.dim,) * 2)

    @property
    def s_orbital(self) -> scipy.sparse.csr_matrix:
        """S(k) between orbitals, spin-free."""
        n = self.pencil.n_orbitals
        return scipy.sparse.csr_matrix((self.s_data, self.pencil.s_indices, self.pencil.s_indptr), shape=(n, n))

    def apply_s(self, x: ComplexArray) -> ComplexArray:
        """S x for columns x (dim, m): both spins of all columns at once."""
        n = self.pencil.n_orbitals
        return np.asarray(self.s_orbital @ x.reshape(n, -1)).reshape(x.shape)

    def shifted(self, sigma_ev: complex) -> ComplexArray:
        """Data of H − σS on the pattern of H; Hermitian for a real σ."""
        if not self.pencil.spinor:
            return self.h_data - sigma_ev * self.s_data
        data = self.h_data.copy()
        for places in self.pencil.spin_places:
            data[places] -= sigma_ev * self.s_data
        return data

    def dense(self) -> tuple[ComplexArray, ComplexArray]:
        """H and S as (dim, dim) arrays."""
        s = self.s_orbital.toarray()
        return self.h.toarray(), np.kron(s, np.eye(2)) if self.pencil.spinor else s


class _Places:
    """Where the elements of atom blocks lie in the data of a CSR matrix whose rows are those of atoms.

    All rows of an atom have the same columns: the orbitals of its neighbours one after the other.
    """

    def __init__(self, graph: scipy.sparse.csr_matrix, sizes: NDArray[np.int64]) -> None:
        self._graph, self._sizes = graph, np.asarray(sizes, np.int64)
        self._rows = np.repeat(np.arange(len(sizes)), np.diff(graph.indptr))
        size = self._sizes[graph.indices]
        before = np.concatenate([[0], np.cumsum(size)])
        self._before = before[:-1] - before[graph.indptr[self._rows]]  # columns before each atom pair in its row
        self._width = before[graph.indptr[1:]] - before[graph.indptr[:-1]]
        self._start = np.concatenate([[0], np.cumsum(self._width * self._sizes)])
        self._keys = self._rows * len(sizes) + graph.indices.astype(np.int64)

    def of(self, row: NDArray, col: NDArray, spin: int) -> NDArray[np.int64]:
        """(n, spin·n_row, spin·n_col) places of the blocks of atom pairs of one (row species, column species)."""
        pair = np.searchsorted(self._keys, row.astype(np.int64) * len(self._sizes) + col)
        width, start = spin * self._width[row], spin * spin * self._start[row]
        corner = start + spin * self._before[pair]
        a = np.arange(spin * int(self._sizes[row[0]]))[:, None]
        b = np.arange(spin * int(self._sizes[col[0]]))
        return corner[:, None, None] + width[:, None, None] * a + b

    def pattern(self, spin: int) -> tuple[NDArray, NDArray]:
        """indptr, indices; 32 bits where they are enough, as the libraries want them."""
        nnz = int(spin * spin * self._start[-1])
        kind = np.int32 if nnz < 2**31 else np.int64
        per_row = np.repeat(spin * self._width, spin * self._sizes)
        indptr = np.concatenate([[0], np.cumsum(per_row)]).astype(kind)
        indices = np.empty(nnz, kind)
        offsets = spin * np.concatenate([[0], np.cumsum(self._sizes)])
        shapes = self._sizes[self._rows] * (int(self._sizes.max()) + 1) + self._sizes[self._graph.indices]
        for shape in np.unique(shapes):
            here = shapes == shape
            row, col = self._rows[here], self._graph.indices[here]
            columns = offsets[col][:, None, None] + np.arange(spin * int(self._sizes[col[0]]))
            places = self.of(row, col, spin)
            indices[places] = np.broadcast_to(columns, places.shape)
        return indptr, indices

    def nnz(self, spin: int) -> int:
        return int(spin * spin * self._start[-1])


def _bloch_sum(operator: BlockOperator, places: _Places, spin: int) -> _BlochSum:
    shifts, of_pair = np.unique(operator.pairs.shift, axis=0, return_inverse=True)
    of_pair = of_pair.ravel()
    home = np.zeros((n_channels(operator), places.nnz(spin)), np.complex128)
    leaving: dict[int, list[tuple[NDArray, ComplexArray]]] = {}
    for row, col, shift, values in _portions(operator, of_pair):
        place = places.of(row, col, spin).ravel()
        flat = np.moveaxis(values, 1, 0).reshape(len(home), -1)
        if not shifts[shift].any():
            home[:, place] = flat
        else:
            leaving.setdefault(shift, []).append((place, flat))
    bonds = tuple(
        _Bonds(shifts[n], np.concatenate([p for p, _ in parts]), np.concatenate([v for _, v in parts], axis=1))
        for n, parts in sorted(leaving.items())
    )
    return _BlochSum(home, bonds)


def _portions(
    operator: BlockOperator, of_pair: NDArray[np.int64]
) -> Iterator[tuple[NDArray, NDArray, int, ComplexArray]]:
    """Rows, columns, number of the shift and blocks (n, n_channel, …) of the pairs of one group and one shift."""
    pairs = operator.pairs
    for group, blocks in zip(pairs.groups, operator.blocks, strict=True):
        here = of_pair[group.pairs]
        for shift in np.unique(here):
            chosen = np.flatnonzero(here == shift)
            # Spinors of these pairs alone: those of all together would be the largest array.
            values = channel_block(blocks[torch.from_numpy(chosen)].detach()).cpu().numpy()
            yield pairs.row[group.pairs][chosen], pairs.col[group.pairs][chosen], int(shift), values
