"""Bloch sums of block operators: dense, CSR and block form, in both gauges.

O(k) = Σ_R e^{iφ} O(R) with φ = 2π k·R in the *lattice* gauge (k in fractions of the reciprocal vectors, R integer)
and φ = k·(r_j + R − r_i) in the *atomic* gauge. Both have the same eigenvalues; they differ by a diagonal unitary.

Channels: a spin-free operator gives one matrix of dimension n_orbitals; a collinear one gives two (spin ↑, ↓); a vector
one gives one spinor matrix of dimension 2 n_orbitals, orbital slow and spin fast (σ = ↑, ↓), so that the rows of one
atom are contiguous.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .blocks import BlockOperator
from .structure import Structure

__all__ = ["Gauge", "bloch_blocks", "bloch_csr", "bloch_dense", "channel_block", "channel_blocks", "n_channels"]

Gauge = Literal["lattice", "atomic"]

_PAULI = torch.tensor(
    [[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]], dtype=torch.complex128
)


def n_channels(operator: BlockOperator) -> int:
    """Independent matrices at each k: 2 for a collinear operator, else 1."""
    return 2 if operator.n_spin == 2 else 1


def channel_block(block: Tensor) -> Tensor:
    """(n, n_channel, n_row·s, n_col·s) of blocks (n, n_spin, n_row, n_col): as they stand in the assembled matrices."""
    n, n_spin, rows, cols = block.shape
    if n_spin == 1:
        return block
    if n_spin == 2:
        return torch.stack([block[:, 0] + block[:, 1], block[:, 0] - block[:, 1]], dim=1)
    complex_type = torch.promote_types(block.dtype, torch.complex64)
    pauli = _PAULI.to(device=block.device, dtype=complex_type)
    spinor = torch.einsum("nsab,sxy->naxby", block.to(complex_type), pauli)
    return spinor.reshape(n, 1, 2 * rows, 2 * cols)


def channel_blocks(operator: BlockOperator) -> tuple[Tensor, ...]:
    """:func:`channel_block` of each group."""
    return tuple(channel_block(block) for block in operator.blocks)


def _phases(operator: BlockOperator, k_frac: NDArray, gauge: Gauge, structure: Structure | None) -> NDArray:
    """(n_k, n_pairs) e^{iφ}."""
    places = operator.pairs.shift.astype(np.float64)
    if gauge == "atomic":
        if structure is None:
            raise ValueError("the atomic gauge needs the structure")
        fractional = structure.fractional_positions
        places = places + fractional[operator.pairs.col] - fractional[operator.pairs.row]
    elif gauge != "lattice":
        raise ValueError(f"gauge {gauge!r}, expected 'lattice' or 'atomic'")
    return np.exp(2j * np.pi * k_frac @ places.T)


def _complex_dtype(operator: BlockOperator) -> torch.dtype:
    return torch.promote_types(operator.dtype, torch.complex64)


def _matrix_offsets(operator: BlockOperator) -> NDArray[np.int64]:
    return operator.orbital_offsets * (2 if operator.n_spin == 4 else 1)


def bloch_blocks(
    operator: BlockOperator, k_frac: ArrayLike, *, gauge: Gauge = "lattice", structure: Structure | None = None
) -> dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64], Tensor]]:
    """Block form: for each (row species, column species) the atom pairs (i, j) and their blocks of O(k).

    Returns
    -------
    {(a, b): (rows (n,), cols (n,), blocks (n_k, n, n_channel, n_row·s, n_col·s))}; images of one (i, j) are summed.
    """
    k_frac = np.atleast_2d(np.asarray(k_frac, dtype=np.float64))
    phases = torch.from_numpy(_phases(operator, k_frac, gauge, structure)).to(operator.device, _complex_dtype(operator))
    pairs, result = operator.pairs, {}
    for group, block in zip(pairs.groups, channel_blocks(operator), strict=True):
        here = group.pairs
        key = pairs.row[here] * pairs.n_atoms + pairs.col[here]
        # In canonical order the images of one (i, j) follow each other: O_ij(k) is a product of (n_k, n_images) phases
        # with (n_images, elements), never an array of n_k times all pairs.
        unique, first, image_of, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
        slot = np.arange(len(key)) - first[image_of]
        index = (torch.as_tensor(image_of, device=operator.device), torch.as_tensor(slot, device=operator.device))
        weight = phases.new_zeros((len(unique), int(count.max()), len(k_frac))).index_put(index, phases[:, here].T)
        images = phases.new_zeros((len(unique), int(count.max()), *block.shape[1:]))
        images = images.index_put(index, block.to(phases.dtype)).flatten(2)
        summed = (weight.mT @ images).movedim(1, 0).reshape(len(k_frac), len(unique), *block.shape[1:])
        result[group.row_species, group.col_species] = (unique // pairs.n_atoms, unique % pairs.n_atoms, summed)
    return result


def bloch_dense(
    operator: BlockOperator, k_frac: ArrayLike, *, gauge: Gauge = "lattice", structure: Structure | None = None
) -> Tensor:
    """(n_k, n_channel, dim, dim) complex matrices O(k) for k_frac (n_k, 3) or (3,)."""
    k_frac = np.atleast_2d(np.asarray(k_frac, dtype=np.float64))
    offsets = _matrix_offsets(operator)
    dim = int(offsets[-1])
    matrix = torch.zeros(
        (len(k_frac), n_channels(operator), dim * dim), dtype=_complex_dtype(operator), device=operator.device
    )
    for rows, cols, blocks in bloch_blocks(operator, k_frac, gauge=gauge, structure=structure).values():
        n_row, n_col = blocks.shape[-2:]
        i = offsets[rows][:, None, None] + np.arange(n_row)[:, None]
        j = offsets[cols][:, None, None] + np.arange(n_col)
        index = torch.as_tensor((i * dim + j).ravel(), device=operator.device)
        flat = blocks.movedim(2, 1).reshape(len(k_frac), matrix.shape[1], -1)
        matrix.index_copy_(2, index, flat)
    return matrix.reshape(len(k_frac), -1, dim, dim)


def bloch_csr(
    operator: BlockOperator, k_frac: ArrayLike, *, gauge: Gauge = "lattice", structure: Structure | None = None
) -> list[scipy.sparse.csr_matrix]:
    """One CSR matrix per channel at a single k_frac (3,). The pattern is that of the pairs, the same for all k."""
    if np.size(k_frac) != 3:
        raise ValueError(f"k_frac of shape {np.shape(k_frac)}, expected a single k (3,)")
    offsets = _matrix_offsets(operator)
    dim = int(offsets[-1])
    parts: list[tuple[NDArray, NDArray, NDArray]] = []
    for rows, cols, blocks in bloch_blocks(operator, k_frac, gauge=gauge, structure=structure).values():
        n_row, n_col = blocks.shape[-2:]
        values = blocks[0].detach().cpu().numpy()
        i = np.broadcast_to(offsets[rows][:, None, None] + np.arange(n_row)[:, None], (len(rows), n_row, n_col))
        j = np.broadcast_to(offsets[cols][:, None, None] + np.arange(n_col), (len(rows), n_row, n_col))
        parts.append((i.ravel(), j.ravel(), values.swapaxes(0, 1).reshape(values.shape[1], -1)))
    i, j = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    values = np.concatenate([p[2] for p in parts], axis=1)
    order = np.lexsort((j, i))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=dim))])
    # Separate index arrays for each matrix: scipy's in-place clean-ups must not reach from one into another.
    return [scipy.sparse.csr_matrix((v[order], j[order].copy(), indptr.copy()), shape=(dim, dim)) for v in values]
