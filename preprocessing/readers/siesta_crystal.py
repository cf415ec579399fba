"""Structure and basis of a SIESTA run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamnet.basis import Basis
from hamnet.errors import ReaderError
from hamnet.structure import Structure

from .compressed import companion, read_buffer
from .siesta_files import RunFiles, missing
from .siesta_ions import Ion, ion_from_group, read_ion
from .siesta_matrices import SiestaCell, SiestaMatrices
from .siesta_netcdf import open_netcdf
from .siesta_tables import Geometry, read_orbital_index, read_struct, read_xv
from .siesta_units import SiestaUnits

__all__ = ["Crystal", "read_crystal"]


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """Structure without moments, species of its atoms, and basis.

    Attributes
    ----------
    ions : species of each atom, (n_atoms,).
    cell_bohr : (3, 3) as SIESTA has it. axes : order of its vectors in the structure, which is right-handed.
    source : file of the geometry.
    """

    structure: Structure
    ions: tuple[Ion, ...]
    basis: Basis
    cell_bohr: NDArray[np.float64]
    axes: NDArray[np.int64]
    source: str

    def ordered(self, cell: SiestaCell) -> SiestaCell:
        """Images and supercell of a matrix file in the order of the structure's lattice vectors."""
        return replace(cell, image_shifts=cell.image_shifts[:, self.axes], supercell=cell.supercell[self.axes])


def read_crystal(files: RunFiles, matrices: SiestaMatrices, units: SiestaUnits) -> Crystal:
    """Geometry from the file with H where it holds one (double precision), else ``.XV`` or ``.STRUCT_OUT``.

    Raises :class:`ReaderError` for what is missing, ghost atoms, and orbitals that are not those of the species files.
    """
    geometry, source = _geometry(files, matrices, units)
    labels = _species_labels(files)
    if geometry.species.min() < 0 or geometry.species.max() >= len(labels):
        raise ReaderError(
            f"species {geometry.species.max() + 1}",
            expected=f"1 … {len(labels)} as in ChemicalSpeciesLabel",
            path=files.folder,
            place=source,
        )
    ions = {int(s): _ion(files, labels[s]) for s in np.unique(geometry.species)}
    atoms = tuple(ions[int(s)] for s in geometry.species)
    _check_orbitals(files, matrices, atoms)
    projectors = not files.fdf.logical("NeglNonOverlapInt", default=False)
    basis = Basis(tuple(ion.basis(units, projectors=projectors) for ion in ions.values()))
    axes = np.array([0, 1, 2] if np.linalg.det(geometry.cell) > 0 else [1, 0, 2])
    structure = Structure(
        cell=geometry.cell[axes] * units.bohr_ang,
        positions=geometry.positions * units.bohr_ang,
        numbers=np.array([ion.number for ion in atoms]),
        labels=tuple(ion.label for ion in atoms),
    )
    return Crystal(structure, atoms, basis, geometry.cell, axes, source)


def _geometry(files: RunFiles, matrices: SiestaMatrices, units: SiestaUnits) -> tuple[Geometry, str]:
    """Cell and positions in Bohr, and the file that they are from."""
    xv, struct = files.find("XV"), files.find("STRUCT_OUT")
    listed = read_xv(xv) if xv else None
    source = xv.name if xv else ""
    if listed is None and struct is not None:
        ang = read_struct(struct)
        listed = ang._replace(cell=ang.cell / units.bohr_ang, positions=ang.positions / units.bohr_ang)
        source = struct.name
    cell = matrices.cell
    n_atoms = int(matrices.orbital_atoms[-1]) + 1
    if listed is not None and len(listed.positions) != n_atoms:
        raise ReaderError(f"{len(listed.positions)} atoms", expected=f"{n_atoms} as in H", path=xv or struct)
    if cell is None:
        if listed is None:
            raise missing(files.folder, f"{files.label}.XV", "cell and positions of the run")
        return listed, source
    species = cell.species if cell.species is not None else (listed.species if listed else None)
    if species is None:
        raise missing(files.folder, f"{files.label}.XV", "the species of each atom")
    numbers = listed.numbers if listed else np.zeros(n_atoms, dtype=np.int64)
    return Geometry(cell.cell_bohr, cell.positions_bohr, species, numbers), matrices.format_name


def _species_labels(files: RunFiles) -> dict[int, str]:
    """{species from 0: label}. A negative atomic number marks a ghost."""
    lines = files.fdf.block("ChemicalSpeciesLabel", "Chemical.Species.Label")
    if not lines:
        raise ReaderError("no block ChemicalSpeciesLabel", expected="labels of the species", path=files.fdf.path)
    try:
        table = [(int(w[0]) - 1, int(w[1]), w[2]) for w in (line.split() for line in lines)]
    except (ValueError, IndexError) as error:
        raise ReaderError(
            "unreadable block ChemicalSpeciesLabel", expected="index, atomic number and label", path=files.fdf.path
        ) from error
    for _, number, label in table:
        if not 0 < number <= 120:
            raise ReaderError(
                f"species {label} with Z = {number}: a ghost or synthetic atom",
                expected="real atoms only; these have no place in a structure",
                remedy="leave this run out",
                path=files.fdf.path,
                place="block ChemicalSpeciesLabel",
            )
    return {index: label for index, _, label in table}


def _ion(files: RunFiles, label: str) -> Ion:
    if not any(companion(files.folder, f"{label}.ion.{kind}") for kind in ("nc", "xml")):
        netcdf = files.find("nc")
        if netcdf is not None:
            ion = _ion_of_run(netcdf, label)
            if ion is not None:
                return ion
    ion = read_ion(files.folder, label)
    if ion.label != label:
        raise ReaderError(f"species {ion.label}", expected=f"species {label}", path=ion.path)
    return ion


def _ion_of_run(path: Path, label: str) -> Ion | None:
    """The species as the ``.nc`` of the run holds it, or None."""
    with open_netcdf(bytes(read_buffer(path)), path) as root:
        groups = root.groups["BASIS"].groups if "BASIS" in root.groups else {}
        group = next((g for g in groups.values() if str(g.attribute("Label")).strip() == label), None)
        return None if group is None or not group.has("orbnl_l") else ion_from_group(group, path)


def _check_orbitals(files: RunFiles, matrices: SiestaMatrices, atoms: tuple[Ion, ...]) -> None:
    """Angular momenta in the species files, the file with H and ``.ORB_INDX`` must be the same."""
    l_of = [np.concatenate([[s.l] * (2 * s.l + 1) for s in ion.shells]) for ion in atoms]
    expected_l = np.concatenate(l_of)
    expected_atom = np.repeat(np.arange(len(atoms)), [len(l) for l in l_of])
    n = matrices.pattern.n_orbitals
    same = len(expected_l) == n and np.array_equal(expected_atom, matrices.orbital_atoms)
    if not same or (matrices.orbital_l is not None and not np.array_equal(expected_l, matrices.orbital_l)):
        raise ReaderError(
            f"{n} orbitals in H that are not the {len(expected_l)} of the species files",
            expected="species files of this run",
            remedy="was the basis changed between two runs in this folder?",
            path=files.folder,
        )
    index = files.find("ORB_INDX")
    if index is None:
        return
    listed = read_orbital_index(index, n)
    m = np.concatenate([np.arange(-s.l, s.l + 1) for ion in atoms for s in ion.shells])
    if not (
        np.array_equal(listed.l, expected_l)
        and np.array_equal(listed.m, m)
        and np.array_equal(listed.atom, expected_atom)
    ):
        raise ReaderError(
            "orbitals in another order than in the species files", expected="m = −l … l in each shell", path=index
        )
