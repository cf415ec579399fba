"""The sparse matrices of SIESTA as they stand in its files: HSX of all versions, DM, and the NetCDF file.

Nothing is converted here: rows, columns, spin columns, Ry and Bohr are those of the files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import ReaderError

from .siesta_netcdf import NetcdfGroup
from .siesta_records import Records

__all__ = ["Pattern", "SiestaCell", "SiestaMatrices", "read_dm", "read_hsx", "read_netcdf_matrices"]

_LABEL_BYTES = 20
_HUGE = 1e30  # SIESTA's mark for an E_F that was not computed


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """Which elements are stored.

    counts : (n_orbitals,) elements of each row.
    columns : (nnz,) orbital in the auxiliary supercell, from 0; ``columns % n_orbitals`` is its orbital in the cell
        and ``columns // n_orbitals`` its image.
    """

    counts: NDArray[np.int64]
    columns: NDArray[np.int64]

    @property
    def n_orbitals(self) -> int:
        return len(self.counts)

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(self.n_orbitals), self.counts)

    def equals(self, other: Pattern) -> bool:
        return np.array_equal(self.counts, other.counts) and np.array_equal(self.columns, other.columns)


@dataclass(frozen=True, slots=True, eq=False)
class SiestaCell:
    """Geometry that a matrix file brings along.

    cell_bohr : (3, 3), rows are vectors. positions_bohr : (n_atoms, 3).
    image_shifts : (n_images, 3) cell of each image of the auxiliary supercell. supercell : (3,) its size.
    species : (n_atoms,) species index from 0, or None.
    """

    cell_bohr: NDArray[np.float64]
    positions_bohr: NDArray[np.float64]
    image_shifts: NDArray[np.int64]
    supercell: NDArray[np.int64]
    species: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True, eq=False)
class SiestaMatrices:
    """H and S of one run.

    Attributes
    ----------
    pattern : the elements.
    hamiltonian_ry : (n_spin, nnz) float64, n_spin = 1, 2, 4 or 8 as in the file; absolute energies.
    overlap : (nnz,).
    density : (n_spin, nnz) if the same file holds it.
    precision : of the numbers in the file.
    n_electrons : as the file says.
    orbital_atoms : (n_orbitals,) atom of each orbital, from 0.
    orbital_l : (n_orbitals,) angular momentum, or None where the file does not tell.
    vectors_bohr : (nnz, 3) from orbital i to orbital j, in the HSX of version 0.
    cell : geometry, in all other files.
    fermi_ry : or None.
    format_name : for people and provenance.
    """

    pattern: Pattern
    hamiltonian_ry: NDArray[np.float64]
    overlap: NDArray[np.float64]
    density: NDArray[np.float64] | None
    precision: Literal["single", "double"]
    n_electrons: float
    orbital_atoms: NDArray[np.int64]
    orbital_l: NDArray[np.int64] | None
    vectors_bohr: NDArray[np.float64] | None
    cell: SiestaCell | None
    fermi_ry: float | None
    format_name: str


def _check_spin(records: Records, n_spin: int) -> None:
    if n_spin not in (1, 2, 4, 8):
        raise records.fail(f"{n_spin} spin components", "1 (none), 2 (collinear), 4 (non-collinear) or 8 (spin–orbit)")


def _read_pattern(records: Records, n_orbitals: int, n_images: int, nnz: int | None) -> Pattern:
    counts = records.read("<i4", n_orbitals, f"the row lengths of {n_orbitals} orbitals").astype(np.int64)
    if (counts < 0).any() or (nnz is not None and counts.sum() != nnz):
        raise records.fail(f"rows with {counts.sum()} elements", f"{nnz} as in the header")
    columns = records.rows("<i4", counts, "column indices").astype(np.int64) - 1
    _check_columns(records, columns, n_orbitals, n_images)
    return Pattern(counts, columns)


def _check_finite(records: Records, **matrices: NDArray) -> None:
    for name, values in matrices.items():
        if not np.isfinite(values).all():
            raise records.fail(f"elements of the {name} that are not numbers", "finite numbers")


def _check_columns(records: Records, columns: NDArray, n_orbitals: int, n_images: int) -> None:
    if len(columns) == 0 or columns.min() < 0 or columns.max() >= n_orbitals * n_images:
        raise records.fail(
            f"column indices {columns.min(initial=-1) + 1} … {columns.max(initial=-1) + 1}",
            f"1 … {n_orbitals * n_images}",
        )


def read_hsx(data: bytes | mmap, path: Path) -> SiestaMatrices:
    """H and S of a ``.HSX`` file of version 0 (SIESTA up to 4.1), 1 or 2 (4.1.5 and 5).

    Raises :class:`ReaderError` for a damaged file, an unknown version, and Gamma-only runs: there SIESTA adds up all
    images of a pair, and H(k) cannot be told from them.
    """
    records = Records(data, path)
    size = records.peek_size()
    if size == 16:
        return _read_hsx0(records)
    if size == 4:
        version = int(records.read("<i4", 1, "the file version")[0])
        if version in (1, 2):
            return _read_hsx1(records, version)
        raise records.fail(f"HSX version {version}", "version 0, 1 or 2")
    raise records.fail(f"a first record of {size} bytes", "16 (HSX version 0) or 4 (versions 1 and 2)")


def _refuse_gamma(records: Records) -> ReaderError:
    error = records.fail("a Gamma-only matrix: all images of a pair are summed up", "an auxiliary supercell")
    return ReaderError(
        error.found,
        expected=error.expected,
        remedy="run SIESTA again with `ForceAuxCell T` in the fdf",
        path=error.path,
    )


def _read_hsx0(records: Records) -> SiestaMatrices:
    n_orbitals, n_supercell, n_spin, nnz = (int(n) for n in records.read("<i4", 4, "the sizes"))
    _check_spin(records, n_spin)
    if n_orbitals <= 0 or n_supercell <= 0 or n_supercell % n_orbitals or nnz <= 0:
        raise records.fail(
            f"{n_orbitals} orbitals, {n_supercell} in the supercell, {nnz} elements", "positive multiples"
        )
    if int(records.read("<i4", 1, "the Gamma-only flag")[0]):
        raise _refuse_gamma(records)
    home = records.read("<i4", n_supercell, "the orbital in the cell of each orbital in the supercell")
    if not np.array_equal(
        home.reshape(-1, n_orbitals),
        np.broadcast_to(np.arange(1, n_orbitals + 1), (1, n_orbitals)).repeat(n_supercell // n_orbitals, axis=0),
    ):
        raise records.fail("images whose orbitals are not those of the cell in order", "1 … n, 1 … n, …")
    pattern = _read_pattern(records, n_orbitals, n_supercell // n_orbitals, nnz)
    counts = pattern.counts
    hamiltonian = records.rows("<f4", np.tile(counts, n_spin), "the Hamiltonian").reshape(n_spin, nnz)
    overlap = records.rows("<f4", counts, "the overlap")
    _check_finite(records, hamiltonian=hamiltonian, overlap=overlap)
    n_electrons, _ = records.read("<f8", 2, "electrons and temperature")
    vectors = records.rows("<f4", 3 * counts, "the vectors between orbitals").reshape(nnz, 3)
    _check_finite(records, vectors=vectors)
    n_species = int(records.read("<i4", 1, "the number of species")[0])
    if not 0 < n_species < 1000:
        raise records.fail(f"{n_species} species", "a small positive number")
    names = np.dtype([("label", f"S{_LABEL_BYTES}"), ("valence", "<f8"), ("n_orbitals", "<i4")])
    species = records.read(names, n_species, "the species")
    quantum = [
        [records.read("<i4", 3, "n, l and zeta of an orbital")[1] for _ in range(int(n))] for n in species["n_orbitals"]
    ]
    n_atoms = int(records.read("<i4", 1, "the number of atoms")[0])
    if not 0 < n_atoms <= n_orbitals:
        raise records.fail(f"{n_atoms} atoms", f"1 … {n_orbitals}, the number of orbitals")
    species_of = records.read("<i4", n_atoms, "the species of each atom").astype(np.int64) - 1
    place = records.read("<i4", 2 * n_orbitals, "the atom of each orbital").astype(np.int64).reshape(-1, 2) - 1
    atoms, inside = place[:, 0], place[:, 1]
    _check_atoms(records, atoms, species_of, n_species)
    return SiestaMatrices(
        pattern=pattern,
        hamiltonian_ry=hamiltonian.astype(np.float64),
        overlap=overlap.astype(np.float64),
        density=None,
        precision="single",
        n_electrons=float(n_electrons),
        orbital_atoms=atoms,
        orbital_l=np.array([quantum[species_of[a]][o] for a, o in zip(atoms, inside, strict=True)], dtype=np.int64),
        vectors_bohr=vectors.astype(np.float64),
        cell=None,
        fermi_ry=None,
        format_name="HSX version 0",
    )


def _check_atoms(records: Records, atoms: NDArray, species_of: NDArray, n_species: int) -> None:
    n_atoms = len(species_of)
    in_order = len(atoms) and atoms[0] == 0 and atoms[-1] == n_atoms - 1 and np.isin(np.diff(atoms), (0, 1)).all()
    if not in_order or species_of.min() < 0 or species_of.max() >= n_species:
        raise records.fail("orbitals that are not listed atom by atom", f"{n_atoms} atoms in order")


def _read_hsx1(records: Records, version: int) -> SiestaMatrices:
    double = bool(records.read("<i4", 1, "the precision flag")[0])
    n_atoms, n_orbitals, n_spin, n_species, *supercell = (int(n) for n in records.read("<i4", 7, "the sizes"))
    _check_spin(records, n_spin)
    n_images = math.prod(supercell)
    if not (0 < n_atoms <= n_orbitals and 0 < n_species <= n_atoms and min(supercell) > 0):
        raise records.fail(f"{n_atoms} atoms, {n_orbitals} orbitals, supercell {supercell}", "positive numbers")
    header = records.read("<f8", 12, "cell, E_F, electrons and temperature")
    expected = 12 * n_images + 32 * n_atoms
    if records.peek_size() != expected:
        raise records.fail(f"a record of {records.peek_size()} bytes", f"{expected} bytes with the geometry")
    fields = [("shifts", "<i4", (n_images, 3)), ("positions", "<f8", (n_atoms, 3))]
    geometry = np.dtype([*fields, ("species", "<i4", (n_atoms,)), ("last", "<i4", (n_atoms,))])
    atoms_record = records.read(geometry, 1, "supercell offsets, positions and species")[0]
    names = np.dtype([("label", f"S{_LABEL_BYTES}"), ("valence", "<f8"), ("n_orbitals", "<i4")])
    species = records.read(names, n_species, "the species")
    quantum = [
        records.read("<i4", 3 * int(n), "n, l and zeta of the orbitals").reshape(-1, 3)[:, 1]
        for n in species["n_orbitals"]
    ]
    if version == 2:
        records.skip()  # the k mesh: .KP and the fdf have it too
    species_of = atoms_record["species"].astype(np.int64) - 1
    counts = np.diff(np.concatenate([[0], atoms_record["last"].astype(np.int64)]))
    if (counts <= 0).any() or counts.sum() != n_orbitals or species_of.min() < 0 or species_of.max() >= n_species:
        raise records.fail(f"orbitals per atom {counts.tolist()[:8]}", f"{n_orbitals} in all")
    pattern = _read_pattern(records, n_orbitals, n_images, None)
    real = "<f8" if double else "<f4"
    nnz = len(pattern.columns)
    hamiltonian = records.rows(real, np.tile(pattern.counts, n_spin), "the Hamiltonian").reshape(n_spin, nnz)
    overlap = records.rows(real, pattern.counts, "the overlap")
    _check_finite(records, hamiltonian=hamiltonian, overlap=overlap, cell=header[:9])
    if n_images == 1:
        raise _refuse_gamma(records)
    cell = SiestaCell(
        cell_bohr=header[:9].reshape(3, 3).copy(),
        positions_bohr=atoms_record["positions"].copy(),
        image_shifts=atoms_record["shifts"].astype(np.int64),
        supercell=np.array(supercell, dtype=np.int64),
        species=species_of,
    )
    fermi = float(header[9])
    return SiestaMatrices(
        pattern=pattern,
        hamiltonian_ry=hamiltonian.astype(np.float64),
        overlap=overlap.astype(np.float64),
        density=None,
        precision="double" if double else "single",
        n_electrons=float(header[10]),
        orbital_atoms=np.repeat(np.arange(n_atoms), counts),
        orbital_l=np.concatenate([quantum[s] for s in species_of]).astype(np.int64),
        vectors_bohr=None,
        cell=cell,
        fermi_ry=fermi if abs(fermi) < _HUGE else None,
        format_name=f"HSX version {version}",
    )


def read_dm(data: bytes | mmap, path: Path, *, n_orbitals: int, n_spin: int) -> tuple[Pattern, NDArray[np.float64]]:
    """Pattern and density matrix (n_spin, nnz) of a ``.DM`` file.

    Raises :class:`ReaderError` for a damaged file and for the density of another run (other sizes).
    """
    records = Records(data, path)
    size = records.peek_size()
    if size not in (8, 20):
        raise records.fail(f"a first record of {size} bytes", "20 bytes with the sizes")
    header = records.read("<i4", size // 4, "the sizes")
    if (int(header[0]), int(header[1])) != (n_orbitals, n_spin):
        raise records.fail(
            f"{header[0]} orbitals and {header[1]} spin components", f"{n_orbitals} and {n_spin} as in the Hamiltonian"
        )
    n_images = math.prod(int(n) for n in header[2:5]) if size == 20 else np.iinfo(np.int32).max // n_orbitals
    pattern = _read_pattern(records, n_orbitals, n_images, None)
    density = records.rows("<f8", np.tile(pattern.counts, n_spin), "the density matrix").reshape(n_spin, -1)
    _check_finite(records, density=density)
    return pattern, density


def _all_written(group: NetcdfGroup, names: tuple[str, ...], path: Path) -> dict[str, NDArray]:
    values = {name: group.array(name) for name in names}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise ReaderError(f"{', '.join(missing)} never written", expected="a complete file beside H", path=path)
    return {name: value for name, value in values.items() if value is not None}


def read_netcdf_matrices(root: NetcdfGroup, path: Path) -> SiestaMatrices | None:
    """H, S and, if it is there, the density matrix of the root group of a ``.nc``; None where it holds no H.

    Raises :class:`ReaderError` if parts of the file contradict each other.
    """
    sparse = root.groups.get("SPARSE")
    hamiltonian = sparse.array("H") if sparse is not None and sparse.has("H") else None
    if sparse is None or hamiltonian is None:
        return None
    parts = _all_written(sparse, ("S", "n_col", "list_col", "isc_off"), path)
    atoms = _all_written(root, ("cell", "xa", "nsc", "lasto", "Qtot", "Ef"), path)
    counts, columns = parts["n_col"].astype(np.int64), parts["list_col"].astype(np.int64) - 1
    n_images = len(parts["isc_off"])
    per_atom = np.diff(np.concatenate([[0], atoms["lasto"].astype(np.int64)]))
    density = sparse.array("DM") if sparse.has("DM") else None
    basis = root.groups.get("BASIS")
    species = basis.array("basis") if basis is not None and basis.has("basis") else None
    sound = (
        hamiltonian.ndim == 2
        and hamiltonian.shape[0] in (1, 2, 4, 8)
        and hamiltonian.shape[1] == counts.sum() == len(columns) == len(parts["S"])
        and columns.min() >= 0
        and columns.max() < len(counts) * n_images
        and per_atom.sum() == len(counts)
        and (per_atom > 0).all()
        and (counts >= 0).all()
        and n_images == np.prod(atoms["nsc"])
        and parts["isc_off"].shape == (n_images, 3)
        and atoms["cell"].shape == (3, 3)
        and atoms["xa"].shape == (len(per_atom), 3)
        and (density is None or density.shape == hamiltonian.shape)
        and (species is None or len(species) == len(per_atom))
    )
    if not sound:
        raise ReaderError("sizes that do not fit each other in group SPARSE", expected="a file of one run", path=path)
    numbers = (hamiltonian, parts["S"], atoms["cell"], atoms["xa"], *([] if density is None else [density]))
    if not all(np.isfinite(values).all() for values in numbers):
        raise ReaderError("matrix elements that are not numbers", expected="finite numbers", path=path)
    if n_images == 1:
        raise ReaderError(
            "a Gamma-only matrix: all images of a pair are summed up",
            expected="an auxiliary supercell",
            remedy="run SIESTA again with `ForceAuxCell T` in the fdf",
            path=path,
        )
    return SiestaMatrices(
        pattern=Pattern(counts, columns),
        hamiltonian_ry=hamiltonian.astype(np.float64),
        overlap=parts["S"].astype(np.float64),
        density=None if density is None else density.astype(np.float64),
        precision="double",
        n_electrons=float(atoms["Qtot"].ravel()[0]),
        orbital_atoms=np.repeat(np.arange(len(per_atom)), per_atom),
        orbital_l=None,
        vectors_bohr=None,
        cell=SiestaCell(
            cell_bohr=atoms["cell"].astype(np.float64),
            positions_bohr=atoms["xa"].astype(np.float64),
            image_shifts=parts["isc_off"].astype(np.int64),
            supercell=atoms["nsc"].astype(np.int64).ravel(),
            species=None if species is None else np.asarray(species, dtype=np.int64) - 1,
        ),
        fermi_ry=float(atoms["Ef"].ravel()[0]),
        format_name="NetCDF",
    )
