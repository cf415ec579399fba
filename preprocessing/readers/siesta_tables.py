"""The small text files of SIESTA: ``.XV``, ``.STRUCT_OUT``, ``.EIG``, ``.KP``, ``.bands``, ``.FA``, ``.ORB_INDX``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import ReaderError

from .compressed import read_text

__all__ = [
    "Bands",
    "Eigenvalues",
    "Geometry",
    "OrbitalIndex",
    "read_bands",
    "read_eig",
    "read_forces",
    "read_kpoints",
    "read_orbital_index",
    "read_struct",
    "read_xv",
]

_DAMAGED = "the file is damaged or truncated: copy it again, or run SIESTA again"


class Geometry(NamedTuple):
    """cell (3, 3), rows are vectors; positions (n, 3); species (n,) from 0; atomic numbers (n,). Bohr or Å."""

    cell: NDArray[np.float64]
    positions: NDArray[np.float64]
    species: NDArray[np.int64]
    numbers: NDArray[np.int64]


class Eigenvalues(NamedTuple):
    """fermi_ev; energies_ev (n_k, n_channel, n_states), n_channel 2 for collinear spin, else 1."""

    fermi_ev: float
    energies_ev: NDArray[np.float64]


class Bands(NamedTuple):
    """fermi_ev; path (n_k,) 1/Bohr along lines, or None for points; energies_ev (n_k, n_channel, n_states)."""

    fermi_ev: float
    path: NDArray[np.float64] | None
    energies_ev: NDArray[np.float64]


class OrbitalIndex(NamedTuple):
    """Atom from 0, l and m of each orbital in the cell."""

    atom: NDArray[np.int64]
    l: NDArray[np.int64]
    m: NDArray[np.int64]


def _words(path: Path) -> list[str]:
    text = read_text(path)
    if not text.endswith("\n"):  # a number cut short is still a number
        raise ReaderError("ends in the middle of a line", expected="whole lines", remedy=_DAMAGED, path=path)
    return text.split()


def _numbers(words: list[str], count: int, path: Path, what: str) -> NDArray[np.float64]:
    """The first `count` words as numbers; the size is checked before anything is converted."""
    if count < 0 or len(words) < count:
        raise ReaderError(f"{len(words)} numbers left", expected=f"{count} {what}", remedy=_DAMAGED, path=path)
    try:
        values = np.array(words[:count], dtype=np.float64)
    except ValueError as error:
        raise ReaderError(f"{error} among the {what}", expected="numbers", remedy=_DAMAGED, path=path) from error
    if not np.isfinite(values).all():
        raise ReaderError(f"NaN or infinity among the {what}", expected="finite numbers", path=path)
    return values


def _integers(words: list[str], count: int, path: Path, what: str) -> list[int]:
    values = _numbers(words, count, path, what)
    if (values != np.rint(values)).any():
        raise ReaderError(f"{values.tolist()}", expected=f"integers: {what}", remedy=_DAMAGED, path=path)
    return [int(v) for v in values]


def _geometry(path: Path, cell_columns: int, atom_columns: int) -> tuple[NDArray, NDArray]:
    words = _words(path)
    head = 3 * cell_columns
    cell = _numbers(words, head, path, "cell components").reshape(3, cell_columns)[:, :3]
    n_atoms = _integers(words[head:], 1, path, "number of atoms")[0]
    table = _numbers(words[head + 1 :], n_atoms * atom_columns, path, f"columns of {n_atoms} atoms")
    return cell, table.reshape(n_atoms, atom_columns)


def read_xv(path: Path) -> Geometry:
    """Cell and positions in Bohr from ``.XV``."""
    cell, atoms = _geometry(path, 6, 8)
    return Geometry(cell, atoms[:, 2:5], atoms[:, 0].astype(np.int64) - 1, atoms[:, 1].astype(np.int64))


def read_struct(path: Path) -> Geometry:
    """Cell and positions in Å from ``.STRUCT_OUT``."""
    cell, atoms = _geometry(path, 3, 5)
    return Geometry(cell, atoms[:, 2:5] @ cell, atoms[:, 0].astype(np.int64) - 1, atoms[:, 1].astype(np.int64))


def _levels(numbers: NDArray, n_k: int, n_channel: int, n_states: int, skip: int) -> NDArray[np.float64]:
    return numbers.reshape(n_k, skip + n_channel * n_states)[:, skip:].reshape(n_k, n_channel, n_states)


def read_eig(path: Path) -> Eigenvalues:
    """E_F and the eigenvalues at the k points of the run, in the order of ``.KP``."""
    words = _words(path)
    fermi = float(_numbers(words, 1, path, "Fermi energy")[0])
    n_states, n_spin, n_k = _integers(words[1:], 3, path, "numbers of states, spins and k")
    if n_spin not in (1, 2, 4, 8) or n_states <= 0 or n_k <= 0:
        raise ReaderError(f"{n_states} states, {n_spin} spins, {n_k} k", expected="a .EIG header", path=path)
    n_channel = 2 if n_spin == 2 else 1  # with 4 and 8 columns: one list of spinor states
    numbers = _numbers(words[4:], n_k * (1 + n_channel * n_states), path, "eigenvalues")
    if len(words) != 4 + len(numbers):
        raise ReaderError(f"{len(words) - 4} numbers", expected=f"{len(numbers)}", remedy=_DAMAGED, path=path)
    return Eigenvalues(fermi, _levels(numbers, n_k, n_channel, n_states, 1))


def read_kpoints(path: Path) -> NDArray[np.float64]:
    """(n_k, 3) k points in 1/Bohr, Cartesian, six digits, from ``.KP``."""
    words = _words(path)
    n_k = _integers(words, 1, path, "number of k points")[0]
    return _numbers(words[1:], 5 * n_k, path, f"columns of {n_k} k points").reshape(n_k, 5)[:, 1:4]


def read_bands(path: Path, *, lines: bool) -> Bands:
    """Bands along lines (the fdf has a block BandLines) or at single points (BandPoints)."""
    words = _words(path)
    ranges = 5 if lines else 3
    fermi = float(_numbers(words, 1, path, "Fermi energy")[0])
    n_states, n_channel, n_k = _integers(words[ranges:], 3, path, "numbers of bands, channels and k")
    if n_channel not in (1, 2) or n_states <= 0 or n_k <= 0:
        raise ReaderError(f"{n_states} bands, {n_channel} channels, {n_k} k", expected="a .bands header", path=path)
    skip = 1 if lines else 3
    numbers = _numbers(words[ranges + 3 :], n_k * (skip + n_channel * n_states), path, "bands")
    energies = _levels(numbers, n_k, n_channel, n_states, skip)
    return Bands(fermi, numbers.reshape(n_k, -1)[:, 0] if lines else None, energies)


def read_forces(path: Path, n_atoms: int) -> NDArray[np.float64]:
    """(n_atoms, 3) eV/Å from ``.FA``."""
    words = _words(path)
    found = _integers(words, 1, path, "number of atoms")[0]
    if found != n_atoms:
        raise ReaderError(f"forces on {found} atoms", expected=f"{n_atoms} atoms", path=path)
    return _numbers(words[1:], 4 * n_atoms, path, "forces").reshape(n_atoms, 4)[:, 1:]


_ORBITAL = re.compile(r"^\s*\d+\s+(\d+)\s+\d+\s+\S+\s+\d+\s+\d+\s+(\d+)\s+(-?\d+)\s", re.MULTILINE)


def read_orbital_index(path: Path, n_orbitals: int) -> OrbitalIndex:
    """Atom, l and m of the orbitals in the cell from the first lines of ``.ORB_INDX``."""
    found = []
    for match in _ORBITAL.finditer(read_text(path)):
        found.append(match.groups())
        if len(found) == n_orbitals:
            break
    if len(found) < n_orbitals:
        raise ReaderError(f"{len(found)} orbitals", expected=f"{n_orbitals}", remedy=_DAMAGED, path=path)
    table = np.array(found, dtype=np.int64)
    return OrbitalIndex(table[:, 0] - 1, table[:, 1], table[:, 2])
