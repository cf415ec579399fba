"""Crystals with their labels as the tensors of one training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hamnet.blocks import BlockOperator
from hamnet.errors import ConfigError
from hamnet.models.graph import Graph, PairGroup
from hamnet.models.irreps import Mode
from hamnet.models.readout import parts_from_blocks

from .window import WindowStates

__all__ = ["Batch", "join_batches", "map_tensors", "prepare"]

_T = TypeVar("_T")
_LARGEST_DROPPED_EV = 1e-5


@dataclass(frozen=True, slots=True)
class Batch:
    """One or several crystals and the blocks that the network should give for them.

    graph : input of the network. targets : (n, n_parts, n_row, n_col) eV for each entry of the network's output, in its
    order. weights : (n,) for each entry; 2 where a pair stands for its adjoint too, which the network does not compute.
    n_pairs : stored pairs of each crystal. share, fraction : as in :class:`~hamnet.training.plan.Part`.
    windows, overlaps : where the loss asks for them, the states of each crystal near its Fermi energy, and S as
        (n, n_row, n_col) for each entry.
    """

    graph: Graph
    targets: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    n_pairs: tuple[int, ...]
    share: float = 1.0
    fraction: float = 1.0
    windows: tuple[WindowStates, ...] = ()
    overlaps: tuple[Tensor, ...] = ()

    @property
    def n_bytes(self) -> int:
        sizes: list[int] = []
        map_tensors(self, lambda tensor: (sizes.append(tensor.numel() * tensor.element_size()), tensor)[1])
        return sum(sizes)


def map_tensors(value: _T, function: Callable[[Tensor], Tensor]) -> _T:
    """`value`, a nest of dataclasses and tuples, with `function` applied to each tensor."""
    result: Any = value
    if isinstance(value, Tensor):
        result = function(value)
    elif isinstance(value, tuple | list):
        result = tuple(map_tensors(entry, function) for entry in value)
    elif is_dataclass(value) and not isinstance(value, type):
        result = replace(value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return result


def prepare(
    graph: Graph,
    hamiltonian: BlockOperator,
    mode: Mode,
    *,
    overlap: BlockOperator | None = None,
    windows: tuple[WindowStates, ...] = (),
) -> Batch:
    """A batch of the one crystal of `graph`, labels in the graph's dtype; with `overlap`, for a loss that needs it.

    Raises :class:`ConfigError` where the Hamiltonian has a part that `mode` cannot have.
    """
    dtype, pairs = graph.moments.dtype, hamiltonian.pairs
    _check_dropped_parts(hamiltonian, mode)
    blocks = {(g.row_species, g.col_species): (g, b) for g, b in zip(pairs.groups, hamiltonian.blocks, strict=True)}
    entries = [(s, s, index) for s, _, index in graph.self_pairs]
    entries += [(g.row_species, g.col_species, g.index) for g in graph.pairs]
    targets, weights, overlaps = [], [], []
    on_pairs = None if overlap is None else overlap.with_pairs(pairs)
    for a, b, index in entries:
        group, block = blocks[a, b]
        targets.append(parts_from_blocks(block[index.cpu() - group.pairs.start], mode).to(dtype))
        # A pair whose partner is computed as well stands for itself alone.
        alone = np.isin(pairs.partner[index.cpu().numpy()], index.cpu().numpy())
        weights.append(torch.as_tensor(np.where(alone, 1.0, 2.0), dtype=dtype))
        if on_pairs is not None:
            place = pairs.groups.index(group)
            overlaps.append(on_pairs.blocks[place][index.cpu() - group.pairs.start, 0].to(dtype))
    return Batch(graph, tuple(targets), tuple(weights), (len(pairs),), windows=windows, overlaps=tuple(overlaps))


def _check_dropped_parts(hamiltonian: BlockOperator, mode: Mode) -> None:
    if mode == "soc" or not hamiltonian.dtype.is_complex:
        return
    largest = max(float(block.imag.abs().max()) for block in hamiltonian.blocks)
    if largest > _LARGEST_DROPPED_EV:
        raise ConfigError(
            f"imaginary parts of H up to {largest * 1e3:.3g} meV, which mode {mode!r} cannot have",
            expected="a real Hamiltonian in each Pauli component",
            remedy="these data have spin–orbit coupling: use mode 'soc'",
        )


def join_batches(batches: Sequence[Batch]) -> Batch:
    """One batch with the crystals of all, as if :meth:`Graph.build` had been called with them."""
    if len(batches) == 1:
        return batches[0]
    graphs = [batch.graph for batch in batches]
    first_atom = np.cumsum([0] + [len(g.species) for g in graphs]).tolist()
    first_pair = np.cumsum([0] + [sum(b.n_pairs) for b in batches]).tolist()
    first_crystal = np.cumsum([0] + [len(g.cells) for g in graphs]).tolist()

    # Keys in the order of the network's output: self pairs by species, then groups by (row, column) species.
    targets: dict[tuple, list[Tensor]] = {}
    weights: dict[tuple, list[Tensor]] = {}
    overlaps: dict[tuple, list[Tensor]] = {}
    self_pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}
    groups: dict[tuple[int, int], list[PairGroup]] = {}
    for batch, atom, pair in zip(batches, first_atom, first_pair, strict=False):
        keys: list[tuple] = [(0, s, s) for s, _, _ in batch.graph.self_pairs]
        keys += [(1, g.row_species, g.col_species) for g in batch.graph.pairs]
        for key, target, weight in zip(keys, batch.targets, batch.weights, strict=True):
            targets.setdefault(key, []).append(target)
            weights.setdefault(key, []).append(weight)
        for key, overlap in zip(keys, batch.overlaps, strict=False):
            overlaps.setdefault(key, []).append(overlap)
        for species, atoms, index in batch.graph.self_pairs:
            self_pairs.setdefault(species, []).append((atoms + atom, index + pair))
        for group in batch.graph.pairs:
            moved_group = replace(group, row=group.row + atom, col=group.col + atom, index=group.index + pair)
            groups.setdefault((group.row_species, group.col_species), []).append(moved_group)
    starts = {"crystal": first_crystal, "edge_row": first_atom, "edge_col": first_atom}
    joined: dict[str, Any] = {}
    for name in (f.name for f in fields(Graph) if f.name not in ("pairs", "self_pairs")):
        # Arrays by atom, edge or crystal follow each other; those that number atoms or crystals count on.
        parts = [getattr(g, name) for g in graphs]
        joined[name] = torch.cat([part + n for part, n in zip(parts, starts.get(name, [0] * len(parts)), strict=False)])
    graph = Graph(
        **joined,
        pairs=tuple(_joined_group(groups[key]) for key in sorted(groups)),
        self_pairs=tuple(
            (s, torch.cat([atoms for atoms, _ in self_pairs[s]]), torch.cat([index for _, index in self_pairs[s]]))
            for s in sorted(self_pairs)
        ),
    )
    order = sorted(targets)
    return Batch(
        graph,
        tuple(torch.cat(targets[key]) for key in order),
        tuple(torch.cat(weights[key]) for key in order),
        tuple(n for batch in batches for n in batch.n_pairs),
        windows=tuple(w for batch in batches for w in batch.windows),
        overlaps=tuple(torch.cat(overlaps[key]) for key in sorted(overlaps)),
    )


def _joined_group(groups: Sequence[PairGroup]) -> PairGroup:
    starts = np.cumsum([0] + [len(g.row) for g in groups]).tolist()
    partner = None
    if groups[0].partner is not None:
        partner = torch.cat([g.partner + s for g, s in zip(groups, starts, strict=False) if g.partner is not None])
    joined = {name: torch.cat([getattr(g, name) for g in groups]) for name in ("row", "col", "shift", "index")}
    return replace(groups[0], partner=partner, **joined)
