"""Operators in the local orbital basis, as blocks of atom pairs.

O_ij(R) = ⟨i, 0| O |j, R⟩ for the pair (i, j, R): row atom i in the home cell, column atom j in cell R. The spin part is
kept in Pauli components, O = Σ_μ O_μ σ_μ, so that an operator is Hermitian if O_μ,ij(R) = O_μ,ji(−R)† for each μ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .basis import Basis
from .errors import BasisError, HamnetError
from .structure import frozen

__all__ = ["SPIN_COMPONENTS", "BlockOperator", "Group", "Pairs"]

SPIN_COMPONENTS = {1: ("0",), 2: ("0", "z"), 4: ("0", "x", "y", "z")}
"""Pauli components that are stored for each n_spin."""


@dataclass(frozen=True, slots=True)
class Group:
    """The contiguous pairs of one (row species, column species)."""

    row_species: int
    col_species: int
    pairs: slice


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """A set of atom pairs (i, j, R), closed under reversal and with every self pair (i, i, 0).

    The order is canonical – by (row species, column species, row, column, R) – so that equal sets have equal arrays.
    Make one with :meth:`build`.

    Attributes
    ----------
    species : (n_atoms,) species index of each atom.
    row, col : (n_pairs,) atom indices.
    shift : (n_pairs, 3) integer cell R of the column atom.
    partner : (n_pairs,) index of the pair (j, i, −R).
    groups : one per (row species, column species) that occurs.
    """

    species: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    shift: NDArray[np.int64]
    partner: NDArray[np.int64]
    groups: tuple[Group, ...]

    @classmethod
    def build(
        cls, species: ArrayLike, row: ArrayLike, col: ArrayLike, shift: ArrayLike
    ) -> tuple[Self, NDArray[np.int64]]:
        """Pairs in canonical order, and the order itself: pair p of the result is pair ``order[p]`` of the input."""
        species = frozen(species, np.int64)
        row, col = np.asarray(row, np.int64), np.asarray(col, np.int64)
        shift = np.asarray(shift, np.int64).reshape(-1, 3)
        n_atoms = len(species)
        if len(row) and not (0 <= min(row.min(), col.min()) and max(row.max(), col.max()) < n_atoms):
            raise HamnetError(
                f"pairs name atoms {min(row.min(), col.min())} … {max(row.max(), col.max())}",
                expected=f"0 … {n_atoms - 1}",
            )
        order = _canonical_order(species, row, col, shift)
        row, col, shift = row[order], col[order], shift[order]
        partner = _partners(row, col, shift, species)
        lonely = np.setdiff1d(np.arange(n_atoms), row[(row == col) & ~shift.any(axis=1)])
        if len(lonely):
            raise HamnetError(f"no self pair (i, i, 0) of atom {lonely[0]}", expected="one for each atom")
        row, col, shift, partner = (frozen(a, np.int64) for a in (row, col, shift, partner))
        return cls(species, row, col, shift, partner, _groups(species, row, col)), order

    def __len__(self) -> int:
        return len(self.row)

    @property
    def n_atoms(self) -> int:
        return len(self.species)

    @property
    def is_self(self) -> NDArray[np.bool_]:
        """(n_pairs,) True for (i, i, 0)."""
        return self.partner == np.arange(len(self))

    def equals(self, other: Pairs) -> bool:
        return all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("species", "row", "col", "shift")
        )

    def vectors(self, cell: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_pairs, 3) Å, from the row atom to the column atom: r_j + R − r_i."""
        return positions[self.col] + self.shift @ cell - positions[self.row]

    def find(self, other: Pairs) -> NDArray[np.int64]:
        """(len(other),) index in self of each pair of `other`, −1 where it is missing."""
        both = [np.concatenate([a, b]) for a, b in ((self.row, other.row), (self.col, other.col))]
        shift = np.concatenate([self.shift, other.shift])
        both += list((shift - shift.min(axis=0)).T)
        # Each pair as one integer: to look up those is many times faster than rows of five.
        keys = np.ravel_multi_index(both, [int(a.max()) + 1 for a in both])
        mine, theirs = keys[: len(self)], keys[len(self) :]
        order = np.argsort(mine)
        place = order[np.minimum(np.searchsorted(mine, theirs, sorter=order), len(self) - 1)]
        return np.where(mine[place] == theirs, place, -1)


def _canonical_order(species: NDArray, row: NDArray, col: NDArray, shift: NDArray) -> NDArray[np.int64]:
    keys = (shift[:, 2], shift[:, 1], shift[:, 0], col, row, species[col], species[row])
    return np.lexsort(keys)


def _partners(row: NDArray, col: NDArray, shift: NDArray, species: NDArray) -> NDArray[np.int64]:
    forward = np.arange(len(row))  # canonical order already
    backward = _canonical_order(species, col, row, -shift)
    here = np.column_stack([row, col, shift])
    there = np.column_stack([col, row, -shift])[backward]
    if (here[1:] == here[:-1]).all(axis=1).any():
        p = int(np.argmax((here[1:] == here[:-1]).all(axis=1)))
        raise HamnetError(f"pair (i, j, R) = {_pair_text(here[p])} occurs twice", expected="each pair once")
    broken = (here != there).any(axis=1)
    if broken.any():
        keys = {tuple(k) for k in here.tolist()}
        lonely = next(k for k in here.tolist() if (k[1], k[0], -k[2], -k[3], -k[4]) not in keys)
        raise HamnetError(
            f"pair (i, j, R) = {_pair_text(lonely)} has no reverse (j, i, −R)", expected="both directions"
        )
    partner = np.empty(len(row), np.int64)
    partner[backward] = forward
    return partner


def _pair_text(key: Sequence[int]) -> str:
    i, j, *cell = (int(k) for k in key)
    return f"({i}, {j}, {tuple(cell)})"


def _groups(species: NDArray, row: NDArray, col: NDArray) -> tuple[Group, ...]:
    kinds = np.column_stack([species[row], species[col]])
    starts = np.flatnonzero(np.r_[True, (kinds[1:] != kinds[:-1]).any(axis=1)]) if len(kinds) else np.zeros(0, int)
    ends = np.r_[starts[1:], len(kinds)]
    return tuple(
        Group(int(kinds[a, 0]), int(kinds[a, 1]), slice(int(a), int(b))) for a, b in zip(starts, ends, strict=False)
    )


@dataclass(frozen=True, slots=True, eq=False)
class BlockOperator:
    """Pairs and their blocks.

    Attributes
    ----------
    basis : shells of each species.
    pairs : which blocks there are.
    blocks : one tensor (n_pairs of the group, n_spin, n_row, n_col) for each group of `pairs`; real, or complex where
        it must be. n_spin = 1 (spin-free), 2 (components 0, z) or 4 (0, x, y, z).
    """

    basis: Basis
    pairs: Pairs
    blocks: tuple[Tensor, ...] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if len(self.blocks) != len(self.pairs.groups):
            raise ValueError(f"{len(self.blocks)} block arrays for {len(self.pairs.groups)} groups of pairs")
        if self.pairs.species.max() >= len(self.basis):
            raise ValueError(f"species index {self.pairs.species.max()} in a basis of {len(self.basis)} species")
        n_orbitals = self.basis.n_orbitals
        for group, block in zip(self.pairs.groups, self.blocks, strict=True):
            n_pairs = group.pairs.stop - group.pairs.start
            shape = (n_pairs, self.n_spin, n_orbitals[group.row_species], n_orbitals[group.col_species])
            if tuple(block.shape) != shape or self.n_spin not in SPIN_COMPONENTS:
                raise ValueError(f"blocks of shape {tuple(block.shape)}, expected {shape} with n_spin 1, 2 or 4")

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def n_spin(self) -> int:
        return int(self.blocks[0].shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].dtype

    @property
    def device(self) -> torch.device:
        return self.blocks[0].device

    @property
    def n_orbitals(self) -> int:
        """Orbitals in the cell, spin not counted."""
        return int(self.basis.n_orbitals[self.pairs.species].sum())

    @property
    def orbital_offsets(self) -> NDArray[np.int64]:
        return self.basis.orbital_offsets(self.pairs.species)

    def block(self, row: int, col: int, shift: Sequence[int]) -> Tensor:
        """(n_spin, n_row, n_col) of one pair; KeyError if it is not stored."""
        match = (self.pairs.row == row) & (self.pairs.col == col) & (self.pairs.shift == np.asarray(shift)).all(axis=1)
        if not match.any():
            raise KeyError((row, col, tuple(shift)))
        p = int(np.argmax(match))
        for group, block in zip(self.pairs.groups, self.blocks, strict=True):
            if group.pairs.start <= p < group.pairs.stop:
                return block[p - group.pairs.start]
        raise AssertionError("groups cover all pairs")

    # -- algebra -------------------------------------------------------------------------------------------------

    def map(self, function) -> Self:
        """The operator with `function` applied to each block array."""
        return replace(self, blocks=tuple(function(block) for block in self.blocks))

    def __add__(self, other: BlockOperator) -> Self:
        return self._combine(other, torch.add)

    def __sub__(self, other: BlockOperator) -> Self:
        return self._combine(other, torch.sub)

    def __mul__(self, factor: float) -> Self:
        return self.map(lambda block: block * factor)

    __rmul__ = __mul__

    def _combine(self, other: BlockOperator, function) -> Self:
        if self.n_spin != other.n_spin or not self.pairs.equals(other.pairs):
            raise ValueError("operators with other pairs or spin components; use with_spin and with_pairs first")
        return replace(self, blocks=tuple(function(a, b) for a, b in zip(self.blocks, other.blocks, strict=True)))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        return self.map(lambda block: block.to(dtype=dtype or block.dtype, device=device or block.device))

    def adjoint(self) -> Self:
        """O†: block (i, j, R) is the conjugate transpose of block (j, i, −R), for each Pauli component."""
        place = {(g.row_species, g.col_species): n for n, g in enumerate(self.pairs.groups)}
        blocks = []
        for group in self.pairs.groups:
            mirror = place[group.col_species, group.row_species]
            partner = self.pairs.partner[group.pairs] - self.pairs.groups[mirror].pairs.start
            source = self.blocks[mirror][torch.as_tensor(partner, device=self.device)]
            blocks.append(source.transpose(-1, -2).conj().resolve_conj())
        return replace(self, blocks=tuple(blocks))

    def symmetrised(self) -> Self:
        """(O + O†) / 2."""
        return (self + self.adjoint()) * 0.5

    def hermiticity_violation(self) -> float:
        """Largest |O − O†| of all elements, in the operator's unit."""
        return self.max_abs_difference(self.adjoint())

    def max_abs_difference(self, other: BlockOperator) -> float:
        return max(float(block.detach().abs().max()) for block in (self - other).blocks)

    def mean_abs_difference(self, other: BlockOperator) -> float:
        """Mean over all (complex) elements of all Pauli components of all pairs."""
        difference = (self - other).blocks
        return float(sum(block.abs().sum() for block in difference)) / sum(block.numel() for block in difference)

    # -- other sets of components, pairs, species ------------------------------------------------------------------

    def with_spin(self, n_spin: int) -> Self:
        """The same operator with more Pauli components, zero where they were not stored."""
        if n_spin == self.n_spin:
            return self
        if n_spin not in SPIN_COMPONENTS:
            raise ValueError(f"n_spin {n_spin}, expected 1, 2 or 4")
        here, there = SPIN_COMPONENTS[self.n_spin], SPIN_COMPONENTS[n_spin]
        if not set(here) <= set(there):
            raise ValueError(f"components {there} cannot hold {here}")
        place = torch.tensor([there.index(c) for c in here], device=self.device)

        def widen(block: Tensor) -> Tensor:
            shape = (block.shape[0], n_spin, *block.shape[2:])
            return block.new_zeros(shape).index_copy(1, place, block)

        return self.map(widen)

    def with_pairs(self, pairs: Pairs) -> Self:
        """The operator on other pairs of the same atoms: zero where a pair is new, dropped where it is not listed."""
        if pairs is self.pairs:
            return self
        if not np.array_equal(pairs.species, self.pairs.species):
            raise ValueError("pairs of other atoms; use permuted or with_basis first")
        index = self.pairs.find(pairs)
        mine = {(g.row_species, g.col_species): n for n, g in enumerate(self.pairs.groups)}
        n_orbitals = self.basis.n_orbitals
        blocks = []
        for group in pairs.groups:
            kind = (group.row_species, group.col_species)
            shape = (
                group.pairs.stop - group.pairs.start,
                self.n_spin,
                int(n_orbitals[kind[0]]),
                int(n_orbitals[kind[1]]),
            )
            block = torch.zeros(shape, dtype=self.dtype, device=self.device)
            if kind in mine:
                source = index[group.pairs]
                there = torch.as_tensor(np.flatnonzero(source >= 0), device=self.device)
                start = self.pairs.groups[mine[kind]].pairs.start
                rows = torch.as_tensor(source[source >= 0] - start, device=self.device)
                block = block.index_copy(0, there, self.blocks[mine[kind]][rows])
            blocks.append(block)
        return replace(self, pairs=pairs, blocks=tuple(blocks))

    def with_basis(self, basis: Basis) -> Self:
        """The operator with its species numbered as in `basis`, which holds at least the same species."""
        missing = [label for label in self.basis.labels if label not in basis.labels]
        if missing:
            raise BasisError(
                f"no species {', '.join(missing)} among {', '.join(basis.labels)}",
                expected="a basis with all species of the operator",
            )
        self.basis.merged(basis)  # raises where one label stands for two bases
        renumber = np.array([basis.labels.index(label) for label in self.basis.labels], dtype=np.int64)
        # Both bases are sorted alike, so the numbers keep their order, and with it the canonical order of the pairs.
        groups = tuple(
            Group(int(renumber[g.row_species]), int(renumber[g.col_species]), g.pairs) for g in self.pairs.groups
        )
        pairs = replace(self.pairs, species=frozen(renumber[self.pairs.species], np.int64), groups=groups)
        return replace(self, basis=basis, pairs=pairs)

    def permuted(self, order: ArrayLike, shifts: ArrayLike | None = None) -> Self:
        """Atom a of the result is atom ``order[a]`` moved by the lattice vector ``shifts[a]``.

        Goes with :meth:`hamnet.structure.Structure.permuted`.
        """
        order = np.asarray(order, np.int64)
        if not np.array_equal(np.sort(order), np.arange(self.pairs.n_atoms)):
            raise ValueError(f"order {order.tolist()} is no permutation of {self.pairs.n_atoms} atoms")
        moved = np.zeros((len(order), 3), np.int64) if shifts is None else np.asarray(shifts, np.int64)
        new_of_old = np.argsort(order)
        row, col = new_of_old[self.pairs.row], new_of_old[self.pairs.col]
        # Column atom moved by s_j, row atom by s_i, row brought home: R' = R − s_j + s_i.
        shift = self.pairs.shift - moved[col] + moved[row]
        return self.relabelled(self.pairs.species[order], row, col, shift)

    def relabelled(self, species: ArrayLike, row: ArrayLike, col: ArrayLike, shift: ArrayLike) -> Self:
        """The same blocks as those of other atoms of the same species: block p becomes that of (row, col, shift)[p]."""
        return self.from_unsorted(self.basis, species, row, col, shift, self.blocks)

    @classmethod
    def from_unsorted(
        cls,
        basis: Basis,
        species: ArrayLike,
        row: ArrayLike,
        col: ArrayLike,
        shift: ArrayLike,
        blocks: Sequence[Tensor],
    ) -> Self:
        """An operator from pairs in any order inside each group.

        Parameters
        ----------
        species : (n_atoms,) species index of each atom.
        row, col, shift : (n_pairs,), (n_pairs,), (n_pairs, 3), sorted by (row species, column species).
        blocks : (n, n_spin, n_row, n_col) for each (row species, column species) that occurs, in that order.
        """
        pairs, order = Pairs.build(species, row, col, shift)
        sorted_blocks = []
        for group, block in zip(pairs.groups, blocks, strict=True):
            place = order[group.pairs] - group.pairs.start
            if place.min() < 0 or place.max() >= len(place):
                raise ValueError("pairs that are not sorted by (row species, column species), as their blocks must be")
            index = torch.as_tensor(place, device=block.device)
            sorted_blocks.append(block[index])
        return cls(basis, pairs, tuple(sorted_blocks))
