"""What is predicted: a checked structure on its pairs, with the overlap of a given run. The prediction in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hamnet import __version__
from hamnet.blocks import BlockOperator, Pairs
from hamnet.errors import HamnetError, ModelError
from hamnet.models.guards import check_basis, check_pairs, check_structure, renumbered
from hamnet.models.io import LoadedModel
from hamnet.neighbours import basis_pairs, check_distances
from hamnet.sample import Sample
from hamnet.structure import Structure
from hamnet.supercell import RepeatedOperator, repeat_operator, supercell_matrix, tile_structure
from hamnet.symmetry import match_atoms

__all__ = [
    "Plan",
    "Prediction",
    "count_electrons",
    "make_plan",
    "predict",
    "predict_operator",
    "prediction_pairs",
    "source_on",
]

_POSITION_TOLERANCE_ANG = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is to be predicted, checked against what the model was trained on. See :func:`make_plan`.

    Attributes
    ----------
    structure : with the labels of the model's basis. pairs : species numbered as in it.
    overlap : in the model's basis, or None. n_electrons : None where nothing tells.
    warnings : what the model has to extrapolate. provenance : of the sample to come; JSON values.
    """

    structure: Structure
    pairs: Pairs
    overlap: RepeatedOperator | None
    n_electrons: float | None
    warnings: tuple[str, ...]
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A sample with the predicted H, and what the model had to extrapolate."""

    sample: Sample
    warnings: tuple[str, ...]


@torch.no_grad()
def predict_operator(loaded: LoadedModel, structure: Structure, pairs: Pairs) -> BlockOperator:
    """H in eV on `pairs` (species numbered as in the model's basis), in double precision, without any check.

    The network computes in its own precision; what it gives is widened for what comes after.
    """
    operator = loaded.model.hamiltonian(structure, pairs)
    wide = torch.complex128 if operator.dtype.is_complex else torch.float64
    return operator.to(wide, "cpu")


def predict(
    loaded: LoadedModel, structure: Structure, *, source: Sample | None = None, name: str = "predicted"
) -> Prediction:
    """Predict the Hamiltonian of `structure`, its moments included, all at once and in memory.

    For thousands of atoms use :func:`hamnet.predict.predict_to_file`. Parameters and errors: :func:`make_plan`.
    """
    plan = make_plan(loaded, structure, source)
    sample = Sample(
        name=name,
        structure=plan.structure,
        basis=loaded.model.basis,
        overlap=None if plan.overlap is None else plan.overlap.whole(),
        hamiltonian=predict_operator(loaded, structure, plan.pairs),
        n_electrons=plan.n_electrons,
        spin_orbit=loaded.trained_on.spin_orbit,
        provenance=plan.provenance,
    )
    return Prediction(sample, plan.warnings)


def make_plan(loaded: LoadedModel, structure: Structure, source: Sample | None = None) -> Plan:
    """Check the structure and find its pairs and its overlap.

    Parameters
    ----------
    source : sample of the same crystal, or of a cell that it is made of (see :func:`source_on`), from which pairs,
        overlap and the number of electrons are taken; its own moments and Hamiltonian are not looked at. Without it
        the pairs follow from the basis, and there is no overlap.

    Raises
    ------
    StructureError : atoms that overlap.
    ModelError : species, moments, pairs or a basis that the model was not trained on; a source of another crystal.
    """
    warnings = check_structure(loaded, structure)
    if source is not None and structure.grid_axes is None:
        # H on the grid of the run that gives the overlap, as that run would compute it.
        structure = replace(structure, grid_axes=source.structure.grid_axes)
    basis = loaded.model.basis
    repeated = None if source is None else _operator_on(structure, source)
    pairs, overlap = _pairs(loaded, structure, source, repeated), None
    warnings += check_pairs(loaded, structure, pairs)
    electrons = None
    if source is not None and repeated is not None:
        electrons = _electrons_of(source, structure)
        if source.overlap is not None:
            overlap = replace(repeated, pairs=pairs, origin=repeated.origin.with_basis(basis))
    return Plan(
        structure=replace(structure, labels=tuple(basis[int(s)].label for s in pairs.species)),
        pairs=pairs,
        overlap=overlap,
        n_electrons=count_electrons(loaded, structure) if electrons is None else electrons,
        warnings=tuple(warnings),
        provenance=_provenance(loaded, source, warnings),
    )


def prediction_pairs(loaded: LoadedModel, structure: Structure, source: Sample | None) -> Pairs:
    """Pairs of the source (see :func:`source_on`), or those a DFT run with the model's basis would have.

    Species are numbered as in the model's basis. Raises as :func:`predict`.
    """
    return _pairs(loaded, structure, source, None if source is None else _operator_on(structure, source))


def _pairs(
    loaded: LoadedModel, structure: Structure, source: Sample | None, repeated: RepeatedOperator | None
) -> Pairs:
    check_distances(structure)
    if source is None or repeated is None:
        return basis_pairs(structure, loaded.model.basis)
    check_basis(loaded, source)
    return renumbered(repeated.pairs, source.basis, loaded.model.basis)


def source_on(structure: Structure, source: Sample) -> Sample:
    """The overlap and the pairs of `source` on `structure`: the same crystal, or a supercell of it, atoms in any order.

    The overlap depends on positions alone, so that of a small cell, tiled, is that of every magnetic texture on the
    same lattice. Other operators and the energies of the source are left behind.

    Raises :class:`ModelError` where `structure` is not made of copies of the source's cell.
    """
    if _is_same_crystal(structure, source.structure):
        return source
    moved = _operator_on(structure, source).whole()
    return Sample(
        name=source.name,
        structure=replace(structure, labels=tuple(source.basis[int(s)].label for s in moved.pairs.species)),
        basis=source.basis,
        overlap=None if source.overlap is None else moved,
        hamiltonian=moved if source.overlap is None else None,
        n_electrons=_electrons_of(source, structure),
        provenance=source.provenance,
    )


def _operator_on(structure: Structure, source: Sample) -> RepeatedOperator:
    """The overlap of the source – or its H, which tells the pairs as well – on `structure`, as in :func:`source_on`."""
    # A source without an overlap still tells which pairs there are.
    stored = source.operator("hamiltonian" if source.overlap is None else "overlap")
    if _is_same_crystal(structure, source.structure):
        return RepeatedOperator(stored.pairs, stored, np.arange(len(stored.pairs)))
    try:
        matrix = supercell_matrix(structure.cell, source.structure.cell, tolerance_ang=_POSITION_TOLERANCE_ANG)
        tiled = tile_structure(source.structure, matrix)
        order, shifts = match_atoms(tiled, structure, tolerance_ang=_POSITION_TOLERANCE_ANG)
    except HamnetError as error:
        raise ModelError(
            f"an overlap of another crystal: {error}",
            expected=f"the overlap of this structure, or of a cell that it is made of, to {_POSITION_TOLERANCE_ANG} Å",
            remedy="compute the overlap for this structure, without self-consistency, and give that run",
        ) from error
    return repeat_operator(stored, matrix).permuted(order, shifts)


def count_electrons(loaded: LoadedModel, structure: Structure) -> float | None:
    """Valence electrons of the neutral crystal, or None where the basis does not tell them."""
    species = loaded.model.basis.species_of(structure)
    valence = np.array([np.nan if s.valence is None else s.valence for s in loaded.model.basis.species])[species]
    return None if np.isnan(valence).any() else float(valence.sum())


def _electrons_of(source: Sample, structure: Structure) -> float | None:
    copies = len(structure) // len(source.structure)
    return None if source.n_electrons is None else copies * source.n_electrons


def _is_same_crystal(structure: Structure, other: Structure) -> bool:
    """Whether the atoms of both are the same, one by one; moments may differ."""
    return (
        len(structure) == len(other)
        and np.array_equal(structure.numbers, other.numbers)
        and bool(np.abs(structure.cell - other.cell).max() <= _POSITION_TOLERANCE_ANG)
        and bool(np.abs(structure.positions - other.positions).max() <= _POSITION_TOLERANCE_ANG)
    )


def _provenance(loaded: LoadedModel, source: Sample | None, warnings: list[str]) -> dict[str, Any]:
    provenance: dict[str, Any] = {
        "code": "hamnet",
        "version": __version__,
        "predicted": True,
        "model": {
            "sha256": loaded.checksum,
            "name": loaded.name,
            "trained_on_code": loaded.trained_on.code,
            "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        },
        "choices": {"constraint": loaded.trained_on.constraint, "moments": "given"},
        "warnings": list(warnings),
    }
    if source is not None:
        provenance["overlap"] = {"sample": source.name, "checksum": source.provenance.get("checksum")}
    return provenance
