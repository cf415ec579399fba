"""Tight-binding models as block operators: anchors with known bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.blocks import BlockOperator
from hamnet.structure import Structure

HEXAGONAL = np.array([[1.0, 0, 0], [-0.5, np.sqrt(3) / 2, 0], [0, 0, 8.0]])


def structure_of(cell, fractional=((0, 0, 0),), labels: Sequence[str] = (), pbc=(True, True, True)) -> Structure:
    cell, fractional = np.asarray(cell, dtype=float), np.asarray(fractional, dtype=float)
    labels = tuple(labels) or ("X",) * len(fractional)
    return Structure(cell, fractional @ cell, [ord(label[0]) for label in labels], labels, pbc=pbc)


def basis_of(structure: Structure, degrees: Mapping[str, tuple[int, ...]] | None = None) -> Basis:
    """One s shell on each species, or shells of the given l."""
    species = []
    for label in sorted(set(structure.labels)):
        own = (degrees or {}).get(label, (0,))
        shells = tuple(Shell(l, own[:n].count(l), 2.0) for n, l in enumerate(own))
        species.append(SpeciesBasis(label, ord(label[0]), shells))
    return Basis(tuple(species))


def operator(structure: Structure, terms: Mapping[tuple, object], basis: Basis | None = None) -> BlockOperator:
    """Blocks from {(i, j, R): number or (n_spin, n_row, n_col)}, with their adjoints and zero self blocks added."""
    basis = basis or basis_of(structure)
    species = basis.species_of(structure)
    sizes = basis.n_orbitals[species]
    blocks: dict[tuple, np.ndarray] = {}
    for (i, j, shift), value in terms.items():
        value = np.asarray(value, dtype=complex)
        value = value.reshape(1, 1, 1) if value.ndim == 0 else value
        blocks[i, j, tuple(shift)] = value
        blocks[j, i, tuple(-np.asarray(shift))] = value.conj().swapaxes(1, 2)
    n_spin = len(next(iter(blocks.values())))
    for a in range(len(structure)):
        blocks.setdefault((a, a, (0, 0, 0)), np.zeros((n_spin, sizes[a], sizes[a])))
    keys = sorted(blocks, key=lambda k: (species[k[0]], species[k[1]]))
    kinds = [(species[k[0]], species[k[1]]) for k in keys]
    groups = [
        torch.from_numpy(np.stack([blocks[k] for k, own in zip(keys, kinds, strict=True) if own == kind]))
        for kind in sorted(set(kinds))
    ]
    row, col, shift = [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys]
    return BlockOperator.from_unsorted(basis, species, row, col, shift, groups)


def identity(structure: Structure, basis: Basis | None = None) -> BlockOperator:
    basis = basis or basis_of(structure)
    sizes = basis.n_orbitals[basis.species_of(structure)]
    return operator(structure, {(a, a, (0, 0, 0)): np.eye(n)[None] for a, n in enumerate(sizes)}, basis)


def chain(hopping: float = -1.0, overlap: float = 0.0) -> tuple[Structure, BlockOperator, BlockOperator]:
    """E(k) = 2t cos k / (1 + 2s cos k), one atom and one orbital."""
    structure = structure_of(np.diag([1.0, 8.0, 8.0]))
    h = operator(structure, {(0, 0, (1, 0, 0)): hopping})
    s = operator(structure, {(0, 0, (0, 0, 0)): 1.0, (0, 0, (1, 0, 0)): overlap})
    return structure, h, s


def honeycomb(hopping: float = -1.0, mass: float = 0.0) -> tuple[Structure, BlockOperator, BlockOperator]:
    """E(k) = ± √(m² + t²|1 + e^{ik·a₁} + e^{ik·a₂}|²)."""
    structure = structure_of(HEXAGONAL, [(1 / 3, 2 / 3, 0), (2 / 3, 1 / 3, 0)], "AB")
    hops = {(0, 1, shift): hopping for shift in ((0, 0, 0), (-1, 0, 0), (0, 1, 0))}
    onsite = {(0, 0, (0, 0, 0)): mass, (1, 1, (0, 0, 0)): -mass}
    return structure, operator(structure, hops | onsite), identity(structure)


def square(hopping: float = -1.0) -> tuple[Structure, BlockOperator, BlockOperator]:
    """E(k) = 2t (cos k₁ + cos k₂)."""
    structure = structure_of(np.diag([1.0, 1.0, 8.0]))
    return structure, operator(structure, {(0, 0, (1, 0, 0)): hopping, (0, 0, (0, 1, 0)): hopping}), identity(structure)
