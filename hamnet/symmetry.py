"""Symmetry operations on operators: crystal, orbitals and spin.

Moments and the spin vector (O_x, O_y, O_z) are axial and odd under time reversal. Each function goes with one on
:class:`hamnet.structure.Structure`: an exact Hamiltonian H[structure] obeys rotate(H[s], Q) = H[s.rotated(Q)] and
time_reverse(H[s]) = H[s.with_moments(−m)].
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree
from torch import Tensor

from .basis import SpeciesBasis
from .blocks import BlockOperator
from .errors import HamnetError, StructureError
from .harmonics import wigner_d
from .structure import Structure, checked_rotation

__all__ = ["match_atoms", "orbital_rotation", "rotate", "rotate_spin", "time_reverse"]


def orbital_rotation(species: SpeciesBasis, rotation: ArrayLike) -> Tensor:
    """(n_orbitals, n_orbitals) float64 matrix D(Q) of all orbitals φ of an atom: φ(Q r) = D(Q) φ(r)."""
    matrices = wigner_d(max(species.degrees), torch.as_tensor(np.asarray(rotation, dtype=np.float64)))
    return torch.block_diag(*(matrices[l] for l in species.degrees))


def rotate(operator: BlockOperator, rotation: ArrayLike, *, spin: bool = True) -> BlockOperator:
    """Crystal, orbitals and (with `spin`) spin turned together by the orthogonal matrix `rotation`.

    O'_μ,ij = D_i O_μ,ij D_j^T, spin vector with det(Q) Q. An improper Q takes lattice vectors to −Q a (see
    ``Structure.rotated``), so cell shifts change sign; inversion is ``rotate(operator, -np.eye(3))``.
    """
    matrix, handedness = checked_rotation(rotation)
    matrices = [orbital_rotation(s, matrix).to(operator.device) for s in operator.basis.species]
    blocks = []
    for group, block in zip(operator.pairs.groups, operator.blocks, strict=True):
        left, right = matrices[group.row_species].to(block.dtype), matrices[group.col_species].to(block.dtype)
        blocks.append(torch.einsum("ab,nsbc,dc->nsad", left, block, right))
    turned = replace(operator, blocks=tuple(blocks))
    if spin:
        turned = rotate_spin(turned, handedness * matrix)
    if handedness < 0:
        pairs = operator.pairs
        turned = turned.relabelled(pairs.species, pairs.row, pairs.col, -pairs.shift)
    return turned


def rotate_spin(operator: BlockOperator, rotation: ArrayLike) -> BlockOperator:
    """Spin alone turned by the proper `rotation`: (O_x, O_y, O_z) → Q (O_x, O_y, O_z)."""
    turn, handedness = checked_rotation(rotation)
    if handedness < 0:
        raise HamnetError("an improper rotation of spin", expected="det = +1: spin is axial and does not see inversion")
    if operator.n_spin == 1 or np.array_equal(turn, np.eye(3)):
        return operator
    if operator.n_spin == 2:
        if np.abs(np.abs(turn[2, 2]) - 1) > 1e-12:
            raise HamnetError(
                "collinear operator turned away from z", expected="a vector operator", remedy="use with_spin(4) first"
            )
        matrix = np.diag([1.0, turn[2, 2]])
    else:
        matrix = np.eye(4)
        matrix[1:, 1:] = turn
    q = torch.as_tensor(matrix, device=operator.device)
    return operator.map(lambda block: torch.einsum("st,ntab->nsab", q.to(block.dtype), block))


def time_reverse(operator: BlockOperator) -> BlockOperator:
    """Θ O Θ⁻¹ with Θ = iσ_y K: O_0 → O_0*, O_xyz → −O_xyz*. Real orbitals are left alone."""
    sign = torch.ones(operator.n_spin, device=operator.device)
    sign[1:] = -1
    return operator.map(lambda block: (block.conj() * sign[:, None, None].to(block.dtype)).resolve_conj())


def match_atoms(
    structure: Structure, target: Structure, *, tolerance_ang: float = 1e-3
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(order, shifts) such that ``structure.permuted(order, shifts)`` has the positions of `target`.

    Both must have the same cell. Raises :class:`StructureError` if an atom has no counterpart of its atomic number
    within the tolerance.
    """
    if len(structure) != len(target):
        raise StructureError(f"{len(structure)} and {len(target)} atoms", expected="structures of equal size")
    if np.abs(structure.cell - target.cell).max() > tolerance_ang:
        raise StructureError("structures with different cells", expected="the same lattice vectors")
    inverse = np.linalg.inv(target.cell)
    here, there = structure.positions @ inverse, target.positions @ inverse
    # Nearest in fractions, then measured in Å: atoms that match are far closer than any two others.
    # A box a hair above 1: x − ⌊x⌋ rounds to 1 for x just below 0.
    tree = KDTree(here - np.floor(here), boxsize=np.nextafter(1, 2))
    order = np.asarray(tree.query(there - np.floor(there))[1], dtype=np.int64)
    difference = there - here[order]
    shifts = np.rint(difference)
    distance = np.linalg.norm((difference - shifts) @ target.cell, axis=-1)
    wrong = (distance > tolerance_ang) | (structure.numbers[order] != target.numbers)
    if wrong.any():
        atom = int(np.argmax(wrong))
        raise StructureError(
            f"atom {atom} ({target.labels[atom]}) has no counterpart: the nearest is {structure.labels[order[atom]]} "
            f"at {distance[atom]:.3g} Å",
            expected=f"an atom of its kind within {tolerance_ang} Å",
        )
    if len(np.unique(order)) != len(order):
        raise StructureError("two atoms with one counterpart", expected="a one-to-one match")
    return order, shifts.astype(np.int64)
