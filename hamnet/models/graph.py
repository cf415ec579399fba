"""The input of the network as tensors: one or several crystals, short edges for messages, orbital pairs for readout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hamnet.basis import Basis
from hamnet.blocks import Pairs
from hamnet.neighbours import pairs_within
from hamnet.structure import Structure

__all__ = ["Graph", "PairGroup", "half_groups"]


@dataclass(frozen=True, slots=True)
class PairGroup:
    """Pairs of one (row species ≤ column species), self pairs apart. Equal species: both directions.

    index : (n,) where the pair stands among all pairs of the graph's crystals, in canonical order, one after another.
    partner : (n,) place of (j, i, −R) inside the group for equal species, else None.
    """

    row_species: int
    col_species: int
    row: Tensor
    col: Tensor
    shift: Tensor
    index: Tensor
    partner: Tensor | None


@dataclass(frozen=True, slots=True)
class Graph:
    """Crystals as one graph.

    Attributes
    ----------
    positions : (n, 3) Å; cells : (n_crystals, 3, 3) Å; both float64, since hundreds of Å in float32 are off by 1e-5 Å.
    moments : (n, 3) μ_B, in the dtype of the model.
    species : (n,) species index in the model's basis; crystal : (n,) crystal of each atom.
    grids : (n_crystals, 3, 3) Å, steps of the DFT code's grid; zero where there is none.
    edge_row, edge_col, edge_shift : short edges, messages go from column to row atom; (e,), (e,), (e, 3).
    pairs : orbital pairs by species; self_index : per species, (atoms, index) of the self pairs.
    """

    positions: Tensor
    cells: Tensor
    moments: Tensor
    species: Tensor
    crystal: Tensor
    grids: Tensor
    edge_row: Tensor
    edge_col: Tensor
    edge_shift: Tensor
    pairs: tuple[PairGroup, ...]
    self_pairs: tuple[tuple[int, Tensor, Tensor], ...]

    @classmethod
    def build(
        cls,
        structures: Sequence[Structure],
        pairs: Sequence[Pairs],
        basis: Basis,
        cutoff_ang: float,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Graph of `structures` with messages up to `cutoff_ang` and readout on `pairs`, species as in `basis`."""
        first_atom = np.cumsum([0] + [len(s) for s in structures])
        edges = [pairs_within(s, cutoff_ang) for s in structures]
        # An atom sends no message to itself, but it does to its images.
        keep = [(row != col) | shift.any(axis=1) for row, col, shift in edges]

        def joined(parts) -> Tensor:
            return torch.as_tensor(np.concatenate(list(parts)), device=device)

        def real(parts) -> Tensor:
            return joined(parts).to(dtype)

        moments = [np.zeros((len(s), 3)) if s.moments is None else s.moments for s in structures]
        return cls(
            positions=joined(s.positions for s in structures),
            cells=joined(s.cell[None] for s in structures),
            moments=real(moments),
            species=joined(basis.species_of(s) for s in structures),
            crystal=joined(np.full(len(s), c) for c, s in enumerate(structures)),
            grids=real((np.zeros((3, 3)) if s.grid_axes is None else s.grid_axes)[None] for s in structures),
            edge_row=joined(e[0][k] + a for e, k, a in zip(edges, keep, first_atom, strict=False)),
            edge_col=joined(e[1][k] + a for e, k, a in zip(edges, keep, first_atom, strict=False)),
            edge_shift=real(e[2][k] for e, k in zip(edges, keep, strict=True)),
            **_readout_pairs(pairs, first_atom, dtype, device),
        )

    def vectors(self, row: Tensor, col: Tensor, shift: Tensor) -> Tensor:
        """(n, 3) Å from row to column atom, differentiable in positions and cells."""
        cells = self.cells[self.crystal[row]]
        vectors = self.positions[col] - self.positions[row] + torch.einsum("na,nab->nb", shift.to(cells.dtype), cells)
        return vectors.to(self.moments.dtype)

    def with_moments(self, moments: Tensor) -> Self:
        return replace(self, moments=moments)


def half_groups(pairs: Pairs) -> list[tuple[int, int, np.ndarray]]:
    """(row species, column species, pair indices) of the pairs that the network computes; the rest are adjoints."""
    is_self = pairs.is_self
    result = []
    for group in pairs.groups:
        if group.row_species <= group.col_species:
            index = np.arange(group.pairs.start, group.pairs.stop)
            result.append((group.row_species, group.col_species, index[~is_self[group.pairs]]))
    return result


def _readout_pairs(pairs: Sequence[Pairs], first_atom, dtype, device) -> dict:
    first_pair = np.cumsum([0] + [len(p) for p in pairs])
    row = np.concatenate([p.row + a for p, a in zip(pairs, first_atom, strict=False)])
    col = np.concatenate([p.col + a for p, a in zip(pairs, first_atom, strict=False)])
    shift = np.concatenate([p.shift for p in pairs])
    partner = np.concatenate([p.partner + b for p, b in zip(pairs, first_pair, strict=False)])
    species = np.concatenate([p.species for p in pairs])
    index: dict[tuple[int, int], list[np.ndarray]] = {}
    for p, start in zip(pairs, first_pair, strict=False):
        for a, b, here in half_groups(p):
            index.setdefault((a, b), []).append(here + start)
    place = np.full(len(row), -1)
    groups = []
    for (a, b), parts in sorted(index.items()):
        here = np.concatenate(parts)
        if not len(here):
            continue
        place[here] = np.arange(len(here))
        groups.append(
            PairGroup(
                a,
                b,
                *(torch.as_tensor(x[here], device=device) for x in (row, col)),
                shift=torch.as_tensor(shift[here], device=device, dtype=dtype),
                index=torch.as_tensor(here, device=device),
                partner=torch.as_tensor(place[partner[here]], device=device) if a == b else None,
            )
        )
    self_index = np.flatnonzero(partner == np.arange(len(row)))
    self_species = species[row[self_index]]
    self_pairs = tuple(
        (
            int(s),
            torch.as_tensor(row[self_index[self_species == s]], device=device),
            torch.as_tensor(self_index[self_species == s], device=device),
        )
        for s in np.unique(self_species)
    )
    return {"pairs": tuple(groups), "self_pairs": self_pairs}
