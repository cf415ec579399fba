"""Where verbs get the structure that they predict: a file that ASE reads, a DFT run, or a sample of a set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hamnet.errors import StructureError

if TYPE_CHECKING:
    from ase import Atoms

    from hamnet.sample import Sample
    from hamnet.structure import Structure

__all__ = ["load_structure", "read_moments", "read_structure", "read_structures"]

_SET_SUFFIXES = (".h5", ".hdf5")


def load_structure(
    path: Path,
    *,
    sample: str | None = None,
    moments: Path | None = None,
    overlap: Path | None = None,
    overlap_sample: str | None = None,
) -> tuple[Structure, Sample | None]:
    """(structure with moments, source of its overlap or None).

    Parameters
    ----------
    path : DFT run folder, sample set, or any structure file. sample : name in a set.
    moments : file that replaces the moments. overlap : run or set with the overlap; default: `path` if it has one.
    """
    from hamnet.cli.sources import load_sample

    own = None
    if path.is_dir() or path.suffix.lower() in _SET_SUFFIXES:
        own = load_sample(path, sample)
        structure = own.structure
    else:
        structure = read_structure(path)
    if moments is not None:
        structure = structure.with_moments(read_moments(moments, len(structure)))
    return structure, own if overlap is None else load_sample(overlap, overlap_sample)


def read_structure(path: str | Path) -> Structure:
    """The one structure in a file; see :func:`read_structures`."""
    structures = read_structures(path)
    if len(structures) > 1:
        raise StructureError(f"{len(structures)} structures", expected="one", path=path)
    return structures[0]


def read_structures(path: str | Path) -> list[Structure]:
    """All structures of any file that ASE reads.

    Moments: an array ``moments`` or ``magmoms`` (n, 3) of an extended xyz file, or the initial magnetic moments (n, 3),
    or (n,) along z. Labels of species: an array ``labels`` of an extended xyz file, else the chemical symbols. Raises
    :class:`StructureError` for what cannot be read or has no cell.
    """
    from ase.io import read

    path = Path(path)
    if not path.is_file():
        raise StructureError("no such file", expected="a structure file, a DFT run folder or a sample set", path=path)
    try:
        found = read(path, index=":")
    except Exception as error:
        raise StructureError(
            f"cannot be read as a structure ({type(error).__name__}: {error})",
            expected="a file that ASE reads (extxyz, cif, POSCAR, …), with the suffix of its format",
            path=path,
        ) from error
    found = found if isinstance(found, list) else [found]
    if not found:
        raise StructureError("no structure", expected="at least one", path=path)
    return [_structure_of(atoms, path) for atoms in found]


def _structure_of(atoms: Atoms, path: Path) -> Structure:
    import numpy as np

    from hamnet.structure import Structure

    if not atoms.cell.rank == 3:
        raise StructureError(f"a cell of rank {atoms.cell.rank}", expected="three lattice vectors", path=path)
    moments = None
    for name in ("moments", "magmoms", "initial_magmoms"):
        if name in atoms.arrays:
            moments = np.asarray(atoms.arrays[name], dtype=float)
            break
    if moments is not None and moments.ndim == 1:
        moments = np.stack([np.zeros_like(moments), np.zeros_like(moments), moments], axis=1)
    try:
        return Structure(
            cell=atoms.cell.array,
            positions=atoms.positions,
            numbers=atoms.numbers,
            labels=tuple(map(str, atoms.arrays.get("labels", atoms.get_chemical_symbols()))),
            moments=moments,
            pbc=atoms.pbc,
        )
    except StructureError as error:
        raise StructureError(error.found, expected=error.expected, remedy=error.remedy, path=path) from error


def read_moments(path: str | Path, n_atoms: int):
    """(n, 3) μ_B from ``.npy`` or a text file with three columns. Raises :class:`StructureError`."""
    import numpy as np

    path = Path(path)
    expected = f"({n_atoms}, 3): one Cartesian vector in μ_B for each atom, as .npy or text with three columns"
    try:
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, ndmin=2)
        values = np.asarray(values, dtype=np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise StructureError(f"cannot be read as moments ({error})", expected=expected, path=path) from error
    if values.shape != (n_atoms, 3):
        raise StructureError(f"moments of shape {values.shape}", expected=expected, path=path)
    if not np.isfinite(values).all():
        raise StructureError("moments that are not finite", expected="finite numbers", path=path)
    return values
