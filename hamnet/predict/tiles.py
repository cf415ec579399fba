"""The network on a piece of a crystal: features of some atoms, blocks of some pairs.

What a tile needs of its surroundings is known exactly. One round of messages gives an atom the features of those that
an edge joins to it; so a tile of atoms takes the atoms within ``cutoff_ang`` of it along, round by round, and nothing
is computed twice. A block takes the features of its two atoms. Hence H_ij depends on an atom c only if ``n_layers``
edges or fewer, each shorter than ``cutoff_ang``, lead from i to c or from j to c: what is farther than
n_layers · cutoff_ang from both does not count at all.

Only half of the pairs is computed: of (i, j, R) and (j, i, −R) the one that comes first in canonical order, the other
is its adjoint.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hamnet.blocks import Pairs
from hamnet.models.graph import Graph, PairGroup
from hamnet.models.hamiltonian import HamiltonianModel
from hamnet.models.readout import blocks_from_parts
from hamnet.neighbours import pairs_within
from hamnet.structure import Structure

__all__ = ["Crystal", "HalfGroup", "HalfPairs", "blocks_of_tile", "features_of_tile"]


class HalfGroup(NamedTuple):
    """Computed pairs of one (row species ≤ column species), `start` to `stop` of all computed pairs."""

    row_species: int
    col_species: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class HalfPairs:
    """Which pairs are computed, and where the blocks of all pairs come from.

    Attributes
    ----------
    pairs : all pairs. index : (n_half,) the computed ones, in canonical order. groups : their species pairs.
    place : (n_pairs,) which computed pair has the block of each pair, or its adjoint.
    adjoint : (n_pairs,) whether it is the adjoint.
    """

    pairs: Pairs
    index: NDArray[np.int64]
    groups: tuple[HalfGroup, ...]
    place: NDArray[np.int64]
    adjoint: NDArray[np.bool_]

    @classmethod
    def of(cls, pairs: Pairs) -> Self:
        order = np.arange(len(pairs))
        computed = order <= pairs.partner
        for group in pairs.groups:
            if group.row_species != group.col_species:
                computed[group.pairs] = group.row_species < group.col_species
        count = np.cumsum(computed)
        place = np.where(computed, count, count[pairs.partner]) - 1
        groups, start = [], 0
        for group in pairs.groups:
            if group.row_species <= group.col_species:
                stop = start + int(computed[group.pairs].sum())
                groups.append(HalfGroup(group.row_species, group.col_species, start, stop))
                start = stop
        return cls(pairs, np.flatnonzero(computed), tuple(groups), place, ~computed)


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """The arrays that tiles are cut from; they may lie on disk.

    Attributes
    ----------
    cell : (3, 3) Å. positions : (n, 3) Å. moments : (n, 3) μ_B. species : (n,) in the model's basis.
    edge_start : (n + 1,) first edge of each atom. edge_col : (n_edges,). edge_shift : (n_edges, 3).
    row, col : (n_half,) atoms of the computed pairs. shift : (n_half, 3).
    """

    cell: NDArray[np.float64]
    positions: NDArray[np.float64]
    moments: NDArray[np.float64]
    grid: NDArray[np.float64]
    species: NDArray[np.int64]
    edge_start: NDArray[np.int64]
    edge_col: NDArray[np.int64]
    edge_shift: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    shift: NDArray[np.int64]

    @classmethod
    def of(cls, structure: Structure, half: HalfPairs, cutoff_ang: float) -> Self:
        """`cutoff_ang` is the reach of one message."""
        row, col, shift = pairs_within(structure, cutoff_ang)
        # An atom sends no message to itself, but it does to its images.
        keep = (row != col) | shift.any(axis=1)
        row, col, shift = row[keep], col[keep], shift[keep]
        # A fixed order, so that sums over neighbours round alike whatever the tiles are.
        order = np.lexsort((*shift.T[::-1], col, row))
        count = np.bincount(row, minlength=len(structure))
        pairs = half.pairs
        return cls(
            cell=structure.cell,
            positions=structure.positions,
            moments=np.zeros((len(structure), 3)) if structure.moments is None else structure.moments,
            grid=np.zeros((3, 3)) if structure.grid_axes is None else structure.grid_axes,
            species=pairs.species,
            edge_start=np.concatenate([np.zeros(1, np.int64), np.cumsum(count)]),
            edge_col=col[order],
            edge_shift=shift[order],
            row=pairs.row[half.index],
            col=pairs.col[half.index],
            shift=pairs.shift[half.index],
        )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(field.name for field in fields(cls))


@torch.no_grad()
def features_of_tile(
    model: HamiltonianModel, crystal: Crystal, layer: int, atoms: slice, known: NDArray | None
) -> Tensor:
    """(n, components, 2, q, channels) of some atoms after round `layer` of messages; ready for readout after the last.

    known : features (n_atoms, …) of all atoms after the round before; None for the first round.
    """
    start, stop, _ = atoms.indices(len(crystal.species))
    edges = slice(int(crystal.edge_start[start]), int(crystal.edge_start[stop]))
    col = np.asarray(crystal.edge_col[edges])
    row = np.repeat(np.arange(stop - start), np.diff(crystal.edge_start[start : stop + 1]))
    outside = np.unique(col[(col < start) | (col >= stop)])
    local = np.concatenate([np.arange(start, stop), outside])
    inside = (col >= start) & (col < stop)
    place = np.where(inside, col - start, stop - start + np.searchsorted(outside, col))
    graph = _graph(model, crystal, local, edges=(row, place, np.array(crystal.edge_shift[edges])))
    x = model.embed(graph) if known is None else _tensor(model, known[local])
    edges = model.edges(graph)
    x = model.interact(layer, x, graph, edges, stop - start)
    return model.lifted(x, graph, edges) if layer == model.config.n_layers - 1 else x


@torch.no_grad()
def blocks_of_tile(
    model: HamiltonianModel, crystal: Crystal, group: HalfGroup, pairs: slice, features: NDArray
) -> Tensor:
    """(n, n_spin, n_row, n_col) in eV of the computed pairs `pairs`, all of `group`.

    features : (n_atoms, …) of all atoms, from the last round of :func:`features_of_tile`.
    """
    row, col, shift = (np.array(a[pairs]) for a in (crystal.row, crystal.col, crystal.shift))
    local, place = np.unique(np.concatenate([row, col]), return_inverse=True)
    row, col = place[: len(row)], place[len(row) :]
    groups, onsite = _readout_pairs(model, group, row, col, shift)
    graph = _graph(model, crystal, local, pairs=groups, self_pairs=onsite)
    output = model.readout(_tensor(model, features[local]), graph)
    n_computed = sum(len(index) for _, _, index, _ in output)
    blocks = [(index, blocks_from_parts(parts, model.config.mode)) for _, _, index, parts in output]
    result = blocks[0][1].new_empty(n_computed, *blocks[0][1].shape[1:])
    for index, block in blocks:
        result.index_copy_(0, index, block)
    return result[: len(row)]


def _readout_pairs(
    model: HamiltonianModel, group: HalfGroup, row: NDArray, col: NDArray, shift: NDArray
) -> tuple[tuple[PairGroup, ...], tuple[tuple[int, Tensor, Tensor], ...]]:
    """What the readout takes for the pairs of a tile: those of two atoms, and those of an atom with itself."""
    parameter = model.edge_species
    own = (row == col) & ~shift.any(axis=1)
    bond, onsite = np.flatnonzero(~own), np.flatnonzero(own)

    def tensor(values: NDArray) -> Tensor:
        return torch.as_tensor(values, device=parameter.device)

    self_pairs = ((group.row_species, tensor(row[onsite]), tensor(onsite)),) if len(onsite) else ()
    if not len(bond):
        return (), self_pairs
    row, col, shift, index, partner = row[bond], col[bond], shift[bond], bond, None
    if group.row_species == group.col_species:
        # The network averages both directions of a bond between equal species; the reversed ones are put last.
        n = np.arange(len(bond))
        partner = tensor(np.concatenate([n + len(n), n]))
        index = np.concatenate([bond, n + len(own)])
        row, col, shift = np.concatenate([row, col]), np.concatenate([col, row]), np.concatenate([shift, -shift])
    lattice = tensor(shift).to(parameter.dtype)
    bonds = PairGroup(group.row_species, group.col_species, tensor(row), tensor(col), lattice, tensor(index), partner)
    return (bonds,), self_pairs


def _graph(
    model: HamiltonianModel,
    crystal: Crystal,
    atoms: NDArray,
    *,
    edges: tuple[NDArray, NDArray, NDArray] | None = None,
    pairs: tuple[PairGroup, ...] = (),
    self_pairs: tuple[tuple[int, Tensor, Tensor], ...] = (),
) -> Graph:
    """The graph of some atoms. `edges` (row, col, shift) count inside `atoms`, as do `pairs` and `self_pairs`."""
    device, dtype = model.edge_species.device, model.edge_species.dtype
    none = np.zeros(0, np.int64)
    row, col, shift = (none, none, np.zeros((0, 3))) if edges is None else edges
    return Graph(
        positions=torch.as_tensor(crystal.positions[atoms], device=device),
        cells=torch.as_tensor(np.array(crystal.cell)[None], device=device),
        moments=_tensor(model, crystal.moments[atoms]),
        species=torch.as_tensor(crystal.species[atoms], device=device),
        crystal=torch.zeros(len(atoms), dtype=torch.int64, device=device),
        grids=_tensor(model, np.array(crystal.grid)[None]),
        edge_row=torch.as_tensor(row, device=device),
        edge_col=torch.as_tensor(col, device=device),
        edge_shift=torch.as_tensor(shift, device=device).to(dtype),
        pairs=pairs,
        self_pairs=self_pairs,
    )


def _tensor(model: HamiltonianModel, values: NDArray) -> Tensor:
    return torch.as_tensor(values, device=model.edge_species.device, dtype=model.edge_species.dtype)
