"""Predicted Hamiltonians: of a structure, on the pairs of a given overlap or of the model's basis."""

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
from hamnet.supercell import supercell_matrix, tile_operator, tile_structure
from hamnet.symmetry import match_atoms

__all__ = [
    "Estimate",
    "Prediction",
    "count_electrons",
    "estimate",
    "predict",
    "predict_operator",
    "prediction_pairs",
    "source_on",
]

_POSITION_TOLERANCE_ANG = 1e-3
_FIXED_BYTES = 2**27


@dataclass(frozen=True, slots=True)
class Estimate:
    """Size of a prediction before it is made. memory_gb is an upper guess of what the network and the result need."""

    n_atoms: int
    n_pairs: int
    n_elements: int
    memory_gb: float


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A sample with the predicted H, and what the model had to extrapolate."""

    sample: Sample
    warnings: tuple[str, ...]


def estimate(loaded: LoadedModel, pairs: Pairs) -> Estimate:
    """What the prediction of H on `pairs` will take."""
    model = loaded.model
    n_orbitals = model.basis.n_orbitals
    parts = {"none": 1, "collinear": 2, "spin-group": 4, "soc": 8}[model.config.mode]
    areas = n_orbitals[pairs.species[pairs.row]] * n_orbitals[pairs.species[pairs.col]]
    n_elements = int(areas.sum()) * parts
    # Per readout pair: features in and out of the edge network, a few of each, and two rotation matrices.
    components = (model.l_readout + 1) ** 2
    width = max(model.config.hidden, model.config.pair_channels)
    kinds = 2 * {"none": 1, "collinear": 2, "soc": 2, "spin-group": 8}[model.config.mode]
    size = torch.finfo(next(model.parameters()).dtype).bits // 8
    per_pair = (6 * components * kinds * width + 2 * components**2) * size
    memory = 1.5 * (len(pairs) * per_pair / 2 + 4 * n_elements * size) + _FIXED_BYTES
    return Estimate(pairs.n_atoms, len(pairs), n_elements, memory / 2**30)


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
    """Predict the Hamiltonian of `structure`, its moments included.

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
    source = None if source is None else source_on(structure, source)
    if source is not None and structure.grid_axes is None:
        # H on the grid of the run that gives the overlap, as that run would compute it.
        structure = replace(structure, grid_axes=source.structure.grid_axes)
    pairs, overlap = prediction_pairs(loaded, structure, source), None
    warnings += check_pairs(loaded, structure, pairs)
    if source is not None and source.overlap is not None:
        overlap = replace(source.overlap, basis=loaded.model.basis, pairs=pairs)
    electrons = None if source is None else source.n_electrons
    sample = Sample(
        name=name,
        structure=replace(structure, labels=tuple(loaded.model.basis[int(s)].label for s in pairs.species)),
        basis=loaded.model.basis,
        overlap=overlap,
        hamiltonian=predict_operator(loaded, structure, pairs),
        n_electrons=count_electrons(loaded, structure) if electrons is None else electrons,
        spin_orbit=loaded.trained_on.spin_orbit,
        provenance=_provenance(loaded, source, warnings),
    )
    return Prediction(sample, tuple(warnings))


def prediction_pairs(loaded: LoadedModel, structure: Structure, source: Sample | None) -> Pairs:
    """Pairs of the source (see :func:`source_on`), or those a DFT run with the model's basis would have.

    Species are numbered as in the model's basis. Raises as :func:`predict`.
    """
    check_distances(structure)
    if source is None:
        return basis_pairs(structure, loaded.model.basis)
    source = source_on(structure, source)
    check_basis(loaded, source)
    return renumbered(source.pairs, source.basis, loaded.model.basis)


def source_on(structure: Structure, source: Sample) -> Sample:
    """The overlap and the pairs of `source` on `structure`: the same crystal, or a supercell of it, atoms in any order.

    The overlap depends on positions alone, so that of a small cell, tiled, is that of every magnetic texture on the
    same lattice. Other operators and the energies of the source are left behind.

    Raises :class:`ModelError` where `structure` is not made of copies of the source's cell.
    """
    if _is_same_crystal(structure, source.structure):
        return source
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
    # A source without an overlap still tells which pairs there are.
    stored = source.operator("hamiltonian" if source.overlap is None else "overlap")
    moved = tile_operator(stored, matrix).permuted(order, shifts)
    copies = len(structure) // len(source.structure)
    return Sample(
        name=source.name,
        structure=tiled.permuted(order, shifts),
        basis=source.basis,
        overlap=None if source.overlap is None else moved,
        hamiltonian=moved if source.overlap is None else None,
        n_electrons=None if source.n_electrons is None else copies * source.n_electrons,
        provenance=source.provenance,
    )


def count_electrons(loaded: LoadedModel, structure: Structure) -> float | None:
    """Valence electrons of the neutral crystal, or None where the basis does not tell them."""
    species = loaded.model.basis.species_of(structure)
    valence = [loaded.model.basis[int(s)].valence for s in species]
    return None if None in valence else float(sum(v for v in valence if v is not None))


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
