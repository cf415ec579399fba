"""What a model takes from its training set before the first step: sizes of inputs, scales and shifts of outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from hamnet.basis import Basis
from hamnet.blocks import BlockOperator
from hamnet.errors import ModelError
from hamnet.models.graph import Graph
from hamnet.models.hamiltonian import HamiltonianModel, half_blocks
from hamnet.models.readout import BlockReadout, parts_from_blocks
from hamnet.neighbours import pairs_within
from hamnet.sample import Sample
from hamnet.structure import Structure

__all__ = ["calibrate", "fit_readout", "fit_weights", "mean_neighbours", "moment_scales"]

_MOST_GAIN = 100.0
# Features of this size are rounding in single precision; what is wanted is of order 1.
_ABSENT = 1e-7
# Smaller ones fit displaced crystals by differences of almost equal features, which says nothing of other crystals.
_RIDGE = 1e-4
# Terms of one and of two centres are few and smooth: what they can explain is theirs.
_RIDGE_CENTRES = 1e-6
# Not so m_i · m_j of the neighbours beside terms of an atom's own moment: in small cells, whose copies are parallel,
# both are |m|², and what the neighbours got wrongly fails in cells whose moments differ.
_RIDGE_EXCHANGE = 1e-4
_RIDGE_EXCHANGE_BESIDE_OWN = 1e-2


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
    readouts = _readouts(model)
    sums: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for sample in samples:
        for key, coefficients in _coefficients(model, readouts, sample.with_basis(model.basis).operator("hamiltonian")):
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


@torch.no_grad()
def calibrate(model: HamiltonianModel, graph: Graph) -> None:
    """Scale the weights of a new model such that each branch begins with the size that it should have on `graph`.

    Kind by kind (l, parity, spin irrep), stage by stage. Without it the moments of the neighbours arrive a hundred
    times weaker than an atom's own species, and what depends on both, like m_i · m_j in an on-site energy, is learned
    last. The idea is that of Mishkin and Matas (2016), arXiv:1511.06422. Weak kinds are scaled by no more than
    `_MOST_GAIN`; those that the symmetry of the crystal forbids, as pseudoscalars beside a mirror, not at all: they are
    rounding, which would grow from stage to stage.
    """
    for linear, wanted in model.stages():
        seen: list[torch.Tensor] = []
        hook = linear.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        model(graph)
        hook.remove()
        square = (seen[0] ** 2).mean(dim=(0, 4))  # (M, 2, q)
        kinds = torch.zeros(linear.weight.shape[:3], dtype=square.dtype, device=square.device)
        index = torch.meshgrid(linear.degree, torch.arange(2, device=square.device), linear.irrep, indexing="ij")
        kinds.index_put_(index, square, accumulate=True)
        counts = torch.zeros_like(kinds).index_put_(index, torch.ones_like(square), accumulate=True)
        size = (kinds / counts).sqrt()
        gain = torch.where(size > _ABSENT, wanted / size.clamp(min=1 / _MOST_GAIN), 1.0)
        linear.weight.mul_(gain[..., None, None])


@torch.no_grad()
def fit_weights(model: HamiltonianModel, graph: Graph, labels: Sequence[BlockOperator]) -> None:
    """Set the linear readout to the ridge regression of the labels on the features that the network now gives.

    Solved in float64 for each irrep of each species pair, in the units of `fit_readout`. A new network so begins at
    the best that its random features can do, and small but decisive terms, like on-site energies that follow the
    neighbours' moments, need not wait until the large ones have settled.

    Parameters
    ----------
    labels : Hamiltonians of the crystals of `graph`, in its order, species numbered as in the model.
    """
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        readout.register_forward_pre_hook(partial(_keep_input, seen, key)) for key, readout in _readouts(model).items()
    ]
    try:
        model(graph)
    finally:
        for hook in hooks:
            hook.remove()
    targets: dict[str, list[torch.Tensor]] = {}
    for label in labels:
        for key, coefficients in _coefficients(model, _readouts(model), label):
            targets.setdefault(key, []).append(coefficients)
    for key, readout in _readouts(model).items():
        if key in seen:
            x = seen[key].double()
            _regress(readout, x, torch.cat(targets[key]).to(x.device), _ridge(model, key).to(x))


def _ridge(model: HamiltonianModel, key: str) -> torch.Tensor:
    """(channels,) of what the readout `key` sees: features of the network, terms of one centre, terms of two."""
    own = model.embedding.n_own
    learned = torch.full((model.config.pair_channels,), _RIDGE, dtype=torch.float64)
    if not key.startswith("self_"):
        return torch.cat([learned, learned.new_full((model.two_centre.n_pair,), _RIDGE_CENTRES)])
    exchange = _RIDGE_EXCHANGE_BESIDE_OWN if own else _RIDGE_EXCHANGE
    around = torch.where(model.two_centre.is_exchange, exchange, _RIDGE_CENTRES).to(learned)
    return torch.cat([learned, learned.new_full((own,), _RIDGE_CENTRES), around])


def _keep_input(seen: dict[str, torch.Tensor], key: str, module: torch.nn.Module, inputs: tuple) -> None:
    seen[key] = inputs[0]


def _regress(readout: BlockReadout, features: torch.Tensor, coefficients: torch.Tensor, ridge: torch.Tensor) -> None:
    """`ridge` (channels,), in units of the mean square of all features."""
    coefficients = coefficients.clone()
    coefficients[:, 0] -= readout.shift.double()
    coefficients /= readout.scale.double()[readout.kind][:, readout.irreps.entry]
    start = 0
    for (j, natural), multiplicity in readout.irreps.entries.items():
        width = (2 * j + 1) * multiplicity
        y = coefficients[:, :, start : start + width].reshape(len(features), len(readout.kind), 2 * j + 1, multiplicity)
        x = features[:, j * j : (j + 1) ** 2, natural, : len(readout.kind)].transpose(1, 2)
        start += width
        for kind in range(readout.n_kinds):
            of_kind = readout.kind == kind
            a, b = x[:, of_kind].flatten(0, 2), y[:, of_kind].flatten(0, 2)
            gram = a.T @ a / len(a)
            penalty = ridge * gram.diagonal().mean().clamp(min=1e-12)
            readout.weights[f"{j}_{natural}"][kind] = torch.linalg.solve(gram + penalty.diag(), a.T @ b / len(a))


def _readouts(model: HamiltonianModel) -> dict[str, BlockReadout]:
    readouts: dict[str, BlockReadout] = {f"self_{a}": r for a, r in enumerate(model.self_readout)}  # type: ignore[misc]
    return readouts | dict(model.pair_readout.items())  # type: ignore[arg-type]


def _coefficients(
    model: HamiltonianModel, readouts: dict[str, BlockReadout], hamiltonian: BlockOperator
) -> Iterator[tuple[str, torch.Tensor]]:
    """(readout name, coefficients (n, n_components, total)) in float64 of all blocks that the network computes."""
    for a, b, block in half_blocks(hamiltonian):
        key = f"self_{a}" if b is None else f"{a}_{b}"
        irreps = readouts[key].irreps
        parts = parts_from_blocks(block, model.config.mode).to(readouts[key].scale)
        yield key, irreps.from_parts(parts).double()
