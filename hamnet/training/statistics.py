"""What a model takes from its training set before the first step: sizes of inputs, scales and shifts of outputs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from hamnet.basis import Basis
from hamnet.errors import ModelError
from hamnet.models.hamiltonian import HamiltonianModel, half_blocks
from hamnet.models.readout import BlockReadout, parts_from_blocks
from hamnet.neighbours import pairs_within
from hamnet.sample import Sample
from hamnet.structure import Structure

__all__ = ["fit_readout", "mean_neighbours", "moment_scales"]


def mean_neighbours(structures: Iterable[Structure], cutoff_ang: float) -> float:
    """Average number of atoms within `cutoff_ang` of an atom, itself left out."""
    n_edges = n_atoms = 0
    for structure in structures:
        n_edges += len(pairs_within(structure, cutoff_ang)[0]) - len(structure)
        n_atoms += len(structure)
    return n_edges / n_atoms


def moment_scales(structures: Iterable[Structure], basis: Basis, magnetic: Iterable[str]) -> tuple[float, ...]:
    """Root mean square |m| in μ_B of each species named in `magnetic`; 0 for the others, whose moments are no input."""
    square, count = np.zeros(len(basis)), np.zeros(len(basis))
    for structure in structures:
        species = basis.species_of(structure)
        if structure.moments is not None:
            np.add.at(square, species, (structure.moments**2).sum(axis=1))
            np.add.at(count, species, 1)
    chosen = np.array([label in set(magnetic) for label in basis.labels])
    rms = np.sqrt(square / np.maximum(count, 1))
    if (rms[chosen] == 0).any():
        empty = [label for label, bad in zip(basis.labels, chosen & (rms == 0), strict=True) if bad]
        raise ModelError(
            f"magnetic species {empty} without moments in the training set", expected="moments that are not all zero"
        )
    return tuple(np.where(chosen, rms, 0.0).tolist())


def fit_readout(model: HamiltonianModel, samples: Iterable[Sample]) -> None:
    """Set scale and shift of each readout from the labels.

    The scale of an irrep of a shell pair is the rms of its coefficients over the set; the shift, for self pairs, is
    the mean of the invariant ones. Irreps that are zero in the set (forbidden by the code, or by all its crystals) keep
    a small scale, so that they are not amplified. The model must still be float64.
    """
    readouts: dict[str, BlockReadout] = {f"self_{a}": r for a, r in enumerate(model.self_readout)}  # type: ignore[misc]
    readouts |= dict(model.pair_readout.items())  # type: ignore[arg-type]
    sums: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for sample in samples:
        for key, coefficients in _coefficients(model, readouts, sample.with_basis(model.basis)):
            sums[key] = sums.get(key, 0) + coefficients.sum(dim=0)
            squares[key] = squares.get(key, 0) + (coefficients**2).sum(dim=0)
            counts[key] = counts.get(key, 0) + len(coefficients)
    for key, readout in readouts.items():
        if key not in counts:
            continue
        mean, square = sums[key] / counts[key], squares[key] / counts[key]
        shift = torch.zeros_like(mean[0])
        if key.startswith("self_"):
            n_invariant = readout.irreps.entries.get((0, 0), 0)
            shift[:n_invariant] = mean[0, :n_invariant]
            square[0, :n_invariant] = (square[0, :n_invariant] - shift[:n_invariant] ** 2).clamp(min=0)
        n_entries = readout.irreps.n_entries
        total = torch.zeros(readout.n_kinds, n_entries, dtype=square.dtype)
        width = torch.zeros(readout.n_kinds, n_entries, dtype=square.dtype)
        for component, kind in enumerate(readout.kind.tolist()):
            total[kind].index_add_(0, readout.irreps.entry.cpu(), square[component])
            width[kind].index_add_(0, readout.irreps.entry.cpu(), torch.ones_like(square[component]))
        scale = (total / width).sqrt()
        floor = 1e-3 * scale.max(dim=1, keepdim=True).values.clamp(min=1e-9)
        readout.scale.copy_(torch.maximum(scale, floor))
        readout.shift.copy_(shift)


def _coefficients(model: HamiltonianModel, readouts: dict[str, BlockReadout], sample: Sample):
    """(readout name, coefficients (n, n_components, total)) in float64 of all blocks that the network computes."""
    mode = model.config.mode
    assert sample.hamiltonian is not None
    for a, b, block in half_blocks(sample.hamiltonian):
        key = f"self_{a}" if b is None else f"{a}_{b}"
        irreps = readouts[key].irreps
        parts = parts_from_blocks(block, mode).to(torch.float64)
        yield key, irreps.from_parts(parts)
