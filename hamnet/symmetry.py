"""Symmetry operations on operators: crystal, orbitals and spin.

Moments and the spin vector (O_x, O_y, O_z) are axial and odd under time reversal. Each function goes with one on
:class:`hamnet.structure.Structure`: an exact Hamiltonian H[structure] obeys rotate(H[s], Q) = H[s.rotated(Q)] and
time_reverse(H[s]) = H[s.with_moments(−m)].
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .basis import SpeciesBasis
from .blocks import BlockOperator
from .errors import HamnetError
from .harmonics import wigner_d
from .structure import Structure

__all__ = ["match_atoms", "orbital_rotation", "rotate", "rotate_spin", "time_reverse"]


def orbital_rotation(species: SpeciesBasis, rotation: ArrayLike) -> Tensor:
    """(n_orbitals, n_orbitals) float64 matrix D(Q): orbitals of the turned atom are Σ_b D_ab of the old ones."""
    matrices = wigner_d(max(species.degrees), torch.as_tensor(np.asarray(rotation, dtype=np.float64)))
    return torch.block_diag(*(matrices[l] for l in species.degrees))


def rotate(operator: BlockOperator, rotation: ArrayLike, *, spin: bool = True) -> BlockOperator:
    """Crystal, orbitals and (with `spin`) spin turned together by the orthogonal matrix `rotation`.

    O'_μ,ij = D_i O_μ,ij D_j^T, spin vector with det(Q) Q. An improper Q takes lattice vectors to −Q a (see
    ``Structure.rotated``), so cell shifts change sign; inversion is ``rotate(operator, -np.eye(3))``.
    """
    rotation = np.asarray(rotation, dtype=np.float64)
    if rotation.shape != (3, 3) or np.abs(rotation @ rotation.T - 1 * np.eye(3)).max() > 1e-9:
        raise HamnetError(f"rotation {rotation.tolist()}", expected="an orthogonal 3×3 matrix")
    handedness = float(np.sign(np.linalg.det(rotation)))
    matrices = [orbital_rotation(s, rotation).to(operator.device) for s in operator.basis.species]
    blocks = []
    for group, block in zip(operator.pairs.groups, operator.blocks, strict=True):
        left, right = matrices[group.row_species].to(block.dtype), matrices[group.col_species].to(block.dtype)
        blocks.append(torch.einsum("ab,nsbc,dc->nsad", left, block, right))
    turned = replace(operator, blocks=tuple(blocks))
    if spin:
        turned = rotate_spin(turned, handedness * rotation)
    if handedness < 0:
        pairs = operator.pairs
        turned = turned.relabelled(pairs.species, pairs.row, pairs.col, -pairs.shift)
    return turned


def rotate_spin(operator: BlockOperator, rotation: ArrayLike) -> BlockOperator:
    """Spin alone turned by the proper `rotation`: (O_x, O_y, O_z) → Q (O_x, O_y, O_z)."""
    rotation = np.asarray(rotation, dtype=np.float64)
    if operator.n_spin == 1 or np.array_equal(rotation, np.eye(3)):
        return operator
    if np.linalg.det(rotation) < 0:
        raise HamnetError("an improper rotation of spin", expected="det = +1: spin is axial and does not see inversion")
    if operator.n_spin == 2:
        if np.abs(np.abs(rotation[2, 2]) - 1) > 1e-12:
            raise HamnetError(
                "collinear operator turned away from z", expected="a vector operator", remedy="use with_spin(4) first"
            )
        matrix = np.diag([1.0, rotation[2, 2]])
    else:
        matrix = np.eye(4)
        matrix[1:, 1:] = rotation
    q = torch.as_tensor(matrix, device=operator.device)
    return operator.map(lambda block: torch.einsum("st,ntab->nsab", q.to(block.dtype), block))


def time_reverse(operator: BlockOperator) -> BlockOperator:
    """Θ O Θ⁻¹ with Θ = iσ_y K: O_0 → O_0*, O_xyz → −O_xyz*. Real orbitals are left alone."""
    sign = torch.ones(operator.n_spin, device=operator.device)
    sign[1:] = -1
    return operator.map(lambda block: (block.conj() * sign[:, None, None].to(block.dtype)).resolve_conj())


def match_atoms(
    structure: Structure, target: Structure, *, tolerance_ang: float = 1e-3
) -> tuple[np.ndarray, np.ndarray]:
    """(order, shifts) such that ``structure.permuted(order, shifts)`` has the positions of `target`.

    Both must have the same cell. Raises if an atom has no counterpart within the tolerance.
    """
    if np.abs(structure.cell - target.cell).max() > tolerance_ang:
        raise HamnetError("structures with different cells", expected="the same lattice vectors")
    inverse = np.linalg.inv(target.cell)
    difference = (target.positions[:, None] - structure.positions[None]) @ inverse
    shifts = np.rint(difference)
    distance = np.linalg.norm((difference - shifts) @ target.cell, axis=-1)
    distance[target.numbers[:, None] != structure.numbers[None]] = np.inf
    order = distance.argmin(axis=1)
    worst = distance[np.arange(len(order)), order].max()
    if worst > tolerance_ang or len(set(order.tolist())) != len(order):
        raise HamnetError(f"atoms up to {worst:.3g} Å apart", expected=f"a one-to-one match within {tolerance_ang} Å")
    return order, shifts[np.arange(len(order)), order].astype(np.int64)
