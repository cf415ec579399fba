"""Small Hamiltonians in closed form, and random ones for what holds for every operator."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hamnet.basis import Basis, Shell, SpeciesBasis
from hamnet.blocks import BlockOperator
from hamnet.harmonics import spherical_harmonics
from hamnet.neighbours import basis_pairs
from hamnet.structure import Structure

# Two species with different shells and ranges; the order of their shells is not the order of l.
BASIS = Basis(
    (
        SpeciesBasis("Br", 35, (Shell(1, 0, 2.3), Shell(0, 0, 2.3))),
        SpeciesBasis("Ni", 28, (Shell(0, 0, 2.0), Shell(1, 0, 2.0), Shell(2, 0, 1.8), Shell(0, 1, 1.8))),
    )
)
CELL = np.array([[3.1, 0.1, 0.0], [-1.3, 2.9, 0.2], [0.3, -0.2, 4.4]])
ROTATION = np.linalg.qr(np.array([[0.3, -1.2, 0.9], [1.0, 0.2, 0.4], [-0.5, 0.8, 1.7]]))[0]
ROTATION = ROTATION * np.sign(np.linalg.det(ROTATION))
GENERIC_K = np.array([[0.0, 0.0, 0.0], [0.31, -0.17, 0.08], [0.5, 0.0, 0.25]])


def crystal(*, moments: bool = True) -> Structure:
    """Three atoms in a skewed cell without any symmetry, one of them outside the cell."""
    fractional = np.array([[0.05, 0.1, 0.15], [0.5, 0.43, 0.31], [1.21, -0.35, 0.72]])
    vectors = np.array([[0.3, 1.1, -0.8], [0.05, -0.1, 0.2], [-1.5, 0.4, 0.6]])
    return Structure(
        CELL, fractional @ CELL, np.array([28, 35, 28]), ("Ni", "Br", "Ni"), vectors if moments else np.zeros((3, 3))
    )


def random_operator(
    structure: Structure, basis: Basis, n_spin: int, *, seed: int, dtype: torch.dtype = torch.complex128
) -> BlockOperator:
    """A Hermitian operator with random elements on the pairs of the basis."""
    return random_blocks(structure, basis, n_spin, seed=seed, dtype=dtype).symmetrised()


def random_blocks(
    structure: Structure, basis: Basis, n_spin: int, *, seed: int, dtype: torch.dtype = torch.complex128
) -> BlockOperator:
    """The same without Hermiticity."""
    generator = torch.Generator().manual_seed(seed)
    pairs, n = basis_pairs(structure, basis), basis.n_orbitals
    blocks = tuple(
        torch.randn(
            (g.pairs.stop - g.pairs.start, n_spin, int(n[g.row_species]), int(n[g.col_species])),
            generator=generator,
            dtype=dtype,
        )
        for g in pairs.groups
    )
    return BlockOperator(basis, pairs, blocks)


def _two_centre(species: SpeciesBasis, direction: Tensor) -> Tensor:
    """(n_pairs, n_orbitals): Y_l of the direction in which an atom sees the other one, shell by shell."""
    y = spherical_harmonics(max(species.degrees), direction)
    return torch.cat([(1.0 - 0.3 * l) * y[l] / np.sqrt(2 * l + 1) for l in species.degrees], dim=-1)


def _by_pairs(structure: Structure, basis: Basis, function) -> BlockOperator:
    """An operator from ``function(row species, column species, pair indices, vectors, is_self)``."""
    pairs = basis_pairs(structure, basis)
    vectors = torch.from_numpy(pairs.vectors(structure.cell, structure.positions))
    blocks = []
    for group in pairs.groups:
        p = np.arange(group.pairs.start, group.pairs.stop)
        blocks.append(function(basis[group.row_species], basis[group.col_species], p, vectors[p], pairs))
    return BlockOperator(basis, pairs, tuple(blocks))


def _bonds(row: SpeciesBasis, col: SpeciesBasis, vectors: Tensor, is_self: NDArray) -> Tensor:
    """(n, n_row, n_col) two-centre blocks that fall with the distance; zero on self pairs."""
    other = torch.from_numpy(~is_self)
    direction = torch.where(other[:, None], vectors, torch.tensor([0.0, 0.0, 1.0], dtype=vectors.dtype))
    size = torch.where(other, torch.exp(-vectors.norm(dim=-1)), 0.0)
    left, right = _two_centre(row, direction), _two_centre(col, -direction)
    return size[:, None, None] * left[:, :, None] * right[:, None, :]


def model_overlap(structure: Structure, basis: Basis = BASIS) -> BlockOperator:
    """Unit on-site blocks and small two-centre ones: positive definite."""

    def blocks(row, col, p, vectors, pairs):
        is_self = pairs.is_self[p]
        bonds = 0.5 * _bonds(row, col, vectors, is_self)
        if row is col:
            bonds = bonds + torch.from_numpy(is_self)[:, None, None] * torch.eye(row.n_orbitals, dtype=torch.float64)
        return bonds[:, None]

    return _by_pairs(structure, basis, blocks)


def angular_momentum_p() -> Tensor:
    """(3, 3, 3) matrices of L_x, L_y, L_z for p orbitals: (L_k)_ab = −i ε_kab in (x, y, z), here in (y, z, x)."""
    levi_civita = np.zeros((3, 3, 3))
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        levi_civita[a, b, c], levi_civita[a, c, b] = 1, -1
    order = [1, 2, 0]
    return torch.from_numpy(-1j * levi_civita[:, order][:, :, order])


def model_hamiltonian(
    structure: Structure, basis: Basis = BASIS, *, spin_orbit_ev: float = 0.4, exchange_ev: float = 0.7
) -> BlockOperator:
    """H[structure] in closed form: two-centre bonds, exchange along the moments, and λ/2 L·σ of p shells.

    Nothing in it knows of hamnet's rotations: the p matrices are those of the textbook.
    """
    moments = torch.tensor(np.zeros((len(structure), 3)) if structure.moments is None else structure.moments)
    l_matrices = angular_momentum_p()

    def blocks(row, col, p, vectors, pairs):
        is_self = pairs.is_self[p]
        bonds = _bonds(row, col, vectors, is_self)
        field = (moments[torch.from_numpy(pairs.row[p])] + moments[torch.from_numpy(pairs.col[p])]) / 2
        local = torch.zeros((3, row.n_orbitals, col.n_orbitals), dtype=torch.complex128)
        if row is col:
            level = torch.cat([torch.full((2 * s.l + 1,), 0.9 * s.l - 1.0 - s.zeta) for s in row.shells]).double()
            here = torch.from_numpy(is_self)[:, None, None]
            bonds = bonds + here * (torch.diag(level) + 0 * bonds)
            for shell, place in zip(row.shells, row.shell_slices(), strict=True):
                if shell.l == 1:
                    local[:, place, place] = spin_orbit_ev / 2 * l_matrices
        exchange = -exchange_ev * field[:, :, None, None] * bonds[:, None]
        vector = exchange + local * torch.from_numpy(is_self)[:, None, None, None]
        return torch.cat([bonds[:, None].to(torch.complex128), vector], dim=1)

    return _by_pairs(structure, basis, blocks)
