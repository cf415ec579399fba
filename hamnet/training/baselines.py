"""What trivial models score: predictors without any physics, fitted to a training set.

Runs with the same lattice vectors and atoms are one *cell*: their pairs correspond one to one. :func:`mean_block`
predicts for each pair its mean over the runs; a test cell that is made of copies of the training cell takes the mean of
the corresponding pairs. :func:`linear_in_moments` fits each matrix element of the cell for itself as a linear function
of all moments in it, and cannot leave that cell. Where fewer than two runs have the very crystal of the test, all count
whose atoms are displaced by less than half a bond.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hamnet.basis import Basis
from hamnet.blocks import BlockOperator, Pairs
from hamnet.errors import HamnetError, StructureError
from hamnet.sample import Sample
from hamnet.structure import Structure
from hamnet.supercell import supercell_matrix, tile_operator, tile_structure
from hamnet.symmetry import match_atoms

from .samples import SampleList

__all__ = ["CellFit", "fit_cells", "linear_in_moments", "mean_block"]

_SAME_CRYSTAL_ANG, _SAME_SITE_ANG = 0.02, 0.8
_Correspondence = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Supercell matrix, order and shifts of the atoms."""


@dataclass(frozen=True, slots=True, eq=False)
class CellFit:
    """The training runs of one cell.

    Attributes
    ----------
    tolerance_ang : how far lattice vectors and atoms of one cell may be apart.
    structure : of the first run; the atoms of all others are named as in it.
    n_runs : how many.
    atoms : (n_magnetic,) atoms whose moments H is fitted to.
    mean_moments : (n_magnetic, 3) μ_B.
    mean : mean H, eV, on every pair that a run has; pairs that a run lacks are zero in it.
    slopes : 3 n_magnetic operators, ∂H/∂m in eV/μ_B, component fast. The fit of smallest norm where the runs do not
        decide.
    """

    tolerance_ang: float
    structure: Structure
    n_runs: int
    atoms: NDArray[np.int64]
    mean_moments: NDArray[np.float64]
    mean: BlockOperator
    slopes: tuple[BlockOperator, ...]


@dataclass(slots=True)
class _Cell:
    """Runs of one cell: (index of the sample, order and shifts that name its atoms as in `structure`)."""

    structure: Structure
    runs: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    moments: list[NDArray[np.float64]] = field(default_factory=list)


def fit_cells(samples: SampleList, magnetic: Collection[str]) -> tuple[CellFit, ...]:
    """Fits to each cell that occurs among `samples`, for either tolerance; samples are read one at a time.

    magnetic : labels of the species whose moments are an input.

    Raises :class:`StructureError` where a run has no moments though there are magnetic species.
    """
    cells: dict[float, list[_Cell]] = {_SAME_CRYSTAL_ANG: [], _SAME_SITE_ANG: []}
    basis = Basis(())
    for index in range(len(samples)):
        structure, basis = samples.structure(index), basis.merged(samples.basis(index))
        if magnetic and structure.moments is None:
            raise StructureError(f"{samples.name(index)} without moments", expected="moments in every training run")
        for tolerance, known in cells.items():
            _sort_in(known, index, structure, tolerance)
    fits: dict[tuple[int, ...], CellFit] = {}
    result: list[CellFit] = []
    for tolerance, known in cells.items():
        for cell in known:
            runs = tuple(index for index, _, _ in cell.runs)
            if tolerance == _SAME_CRYSTAL_ANG and len(runs) < 2:
                continue  # a set of shaken crystals has as many as runs: nothing to average, and much to keep
            if runs not in fits:
                fits[runs] = _fit(cell, samples, basis, magnetic, tolerance)
            result.append(replace(fits[runs], tolerance_ang=tolerance))
    return tuple(result)


def mean_block(cells: Sequence[CellFit], sample: Sample) -> BlockOperator:
    """H in eV on the pairs of `sample`: the mean of each pair over all training runs whose cell it is made of.

    Raises :class:`StructureError` where it is made of none.
    """
    for tolerance in (_SAME_CRYSTAL_ANG, _SAME_SITE_ANG):
        total, n_runs = None, 0
        for cell, found in _matching(cells, sample, tolerance):
            part = _carried(cell.mean, found, sample) * cell.n_runs
            total, n_runs = part if total is None else total + part, n_runs + cell.n_runs
        if total is not None:
            return total * (1 / n_runs)
    raise StructureError("made of no cell of the training set", expected="a training cell, or a supercell of one")


def linear_in_moments(cells: Sequence[CellFit], sample: Sample) -> BlockOperator:
    """H in eV on the pairs of `sample`: for each matrix element its own function linear in the moments of the cell.

    H(m) = H̄ + Σ_a (m_a − m̄_a) · ∂H/∂m_a, least squares over the runs of the same cell.

    Raises :class:`StructureError` where the training set has no run of this cell, or the sample no moments.
    """
    matching = [m for tolerance in (_SAME_CRYSTAL_ANG, _SAME_SITE_ANG) for m in _matching(cells, sample, tolerance)]
    for cell, found in matching:
        if len(cell.structure) != len(sample.structure):
            continue
        result = cell.mean
        if len(cell.atoms):
            if sample.structure.moments is None:
                raise StructureError("no moments", expected="moments, which the fit takes as input")
            moments = np.empty_like(sample.structure.moments)
            moments[found[1]] = sample.structure.moments
            change = moments[cell.atoms] - cell.mean_moments
            for slope, step in zip(cell.slopes, change.ravel().tolist(), strict=True):
                result = result + slope * step
        return _carried(result, found, sample)
    raise StructureError("not a cell of the training set", expected="the cell of a training run: it cannot leave it")


def _sort_in(cells: list[_Cell], index: int, structure: Structure, tolerance_ang: float) -> None:
    """Add a run to the cell that it has, or begin a new one."""
    for cell in cells:
        same_size = len(structure) == len(cell.structure)
        found = _correspondence(structure, cell.structure, tolerance_ang) if same_size else None
        if found is not None:
            _, order, shifts = found
            break
    else:
        cell, order, shifts = _Cell(structure), np.arange(len(structure)), np.zeros((len(structure), 3), np.int64)
        cells.append(cell)
    cell.runs.append((index, order, shifts))
    cell.moments.append(np.zeros((len(structure), 3)) if structure.moments is None else structure.moments[order])


def _fit(cell: _Cell, samples: SampleList, basis: Basis, magnetic: Collection[str], tolerance_ang: float) -> CellFit:
    atoms = np.flatnonzero([label in magnetic for label in cell.structure.labels])
    moments = np.stack(cell.moments)[:, atoms].reshape(len(cell.runs), -1)
    # What a run counts in the mean and in each slope: the same for every matrix element.
    weights = np.vstack([np.full(len(moments), 1 / len(moments)), np.linalg.pinv(moments - moments.mean(axis=0))])
    sums: list[BlockOperator] = []
    for (index, order, shifts), shares in zip(cell.runs, weights.T.tolist(), strict=True):
        h = samples.operator(index, "hamiltonian", basis).permuted(order, shifts)
        if sums:
            pairs = _united(sums[0].pairs, h.pairs)
            h = h.with_pairs(pairs)
            sums = [known.with_pairs(pairs) + h * share for known, share in zip(sums, shares, strict=True)]
        else:
            sums = [h * share for share in shares]
    means = moments.mean(axis=0).reshape(-1, 3)
    return CellFit(tolerance_ang, cell.structure, len(cell.runs), atoms, means, sums[0], tuple(sums[1:]))


def _united(a: Pairs, b: Pairs) -> Pairs:
    new = a.find(b) < 0
    if not new.any():
        return a
    arrays = (np.concatenate([getattr(a, name), getattr(b, name)[new]]) for name in ("row", "col", "shift"))
    return Pairs.build(a.species, *arrays)[0]


def _matching(
    cells: Sequence[CellFit], sample: Sample, tolerance_ang: float
) -> Iterator[tuple[CellFit, _Correspondence]]:
    """The cells of this tolerance of which the sample is made."""
    for cell in cells:
        if cell.tolerance_ang == tolerance_ang:
            found = _correspondence(cell.structure, sample.structure, tolerance_ang)
            if found is not None:
                yield cell, found


def _correspondence(small: Structure, large: Structure, tolerance_ang: float) -> _Correspondence | None:
    """(M, order, shifts): the supercell M of `small`, so permuted, has the atoms of `large`. None if it has not."""
    try:
        matrix = supercell_matrix(large.cell, small.cell, tolerance_ang=tolerance_ang)
        tiled = tile_structure(small, matrix)
        tiled = replace(tiled, cell=large.cell, positions=tiled.fractional_positions @ large.cell)
        return matrix, *match_atoms(tiled, large, tolerance_ang=tolerance_ang)
    except HamnetError:
        return None


def _carried(operator: BlockOperator, found: _Correspondence, sample: Sample) -> BlockOperator:
    """The operator of a training cell on the pairs of `sample`; pairs that the cell does not know are zero."""
    matrix, order, shifts = found
    true = sample.operator("hamiltonian")
    basis = operator.basis.merged(sample.basis)
    moved = tile_operator(operator, matrix).permuted(order, shifts).with_basis(basis)
    moved = moved.with_pairs(true.with_basis(basis).pairs).to(torch.promote_types(operator.dtype, true.dtype))
    # Both bases are sorted alike, so the canonical order of the pairs is the same.
    return replace(moved, basis=sample.basis, pairs=true.pairs)
