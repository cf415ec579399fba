"""The binary ``*.scfout`` of OpenMX: bytes to arrays, in the code's own units, order and sign conventions.

File version 3 (3.9, 4.0) and version 0 (3.7, 3.8), either byte order. The file is a plain stream of C ``int`` and
``double`` without record marks, so nothing but its length and a few identities tell whether it is what it seems to be:
all of them are checked here, and no count is believed before the file is known to be long enough for it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import ReaderError

__all__ = ["Scfout", "parse_scfout"]

_KNOWN_VERSIONS = (0, 3)
_TEXT_RECORD_BYTES = 256
_LARGEST_VALUE = 1e9  # of a matrix element in atomic units; larger ones are damage and would overflow later
_LARGEST_LENGTH_BOHR = 1e6
_MOST_ORBITALS = 10_000
_NEGF_SOLVER = 4
_DAMAGE = "the file is damaged or not what its header says; copy it again, or repeat the run"


@dataclass(frozen=True, slots=True, eq=False)
class Scfout:
    """Content of one file. Hartree, Bohr, Kelvin; atoms from 0; matrix elements of all pairs in one row, as stored.

    Attributes
    ----------
    version : of the file: 3 or 0.
    spin_switch : OpenMX's SpinP: 0 unpolarised, 1 collinear, 3 non-collinear.
    byte_order : of the machine that wrote the file.
    n_orbitals : (n,) orbitals of each atom.
    row, col, shift : (n_pairs,), (n_pairs,), (n_pairs, 3) the pairs in file order.
    start : (n_pairs + 1,) place of each pair's block (row-major, n_orbitals[row] × n_orbitals[col]) in a row of
        matrix elements, and the total.
    cell_bohr, positions_bohr : (3, 3) rows are vectors, (n, 3).
    hamiltonian : (SpinP + 1, total). SpinP 3: ↑↑, ↓↓, Re ↑↓, Im ↑↓ (exchange–correlation part).
    hamiltonian_imag : (3, total) Im ↑↑, Im ↓↓, Im ↑↓ (the rest); SpinP 3 only.
    overlap : (total,).
    position : (3, total) ⟨i| x − X_i |j⟩, or None if not asked for.
    momentum : (3, total) ±⟨i| d/dx |j⟩, sign as stored; None if not asked for or not in the file (version 0).
    density : (SpinP + 1, total), components as in `hamiltonian`; the complex conjugate of |ψ⟩⟨ψ|.
    density_imag : (2, total) Im ↑↑, Im ↓↓; version 3 only.
    total_spin : half the total moment in μ_B (its norm for SpinP 3).
    text : the input file embedded at the end, or None.
    has_xc_tail : whether the matrix of the exchange–correlation potential follows (3.9: yes, 4.0: no).
    """

    path: Path
    version: int
    spin_switch: int
    byte_order: Literal["little", "big"]
    n_orbitals: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    shift: NDArray[np.int64]
    start: NDArray[np.int64]
    cell_bohr: NDArray[np.float64]
    positions_bohr: NDArray[np.float64]
    hamiltonian: NDArray[np.float64]
    hamiltonian_imag: NDArray[np.float64] | None
    overlap: NDArray[np.float64]
    position: NDArray[np.float64] | None
    momentum: NDArray[np.float64] | None
    density: NDArray[np.float64]
    density_imag: NDArray[np.float64] | None
    solver: int
    chemical_potential_ha: float
    temperature_k: float
    n_electrons: float
    total_spin: float
    text: str | None
    has_xc_tail: bool

    @property
    def n_atoms(self) -> int:
        return len(self.n_orbitals)


class _Cursor:
    """Reads record after record; refuses one that the file is too short for, before anything is allocated."""

    def __init__(self, buffer: bytes | mmap.mmap, path: Path) -> None:
        self.buffer, self.path = buffer, path
        self.size, self.offset, self.order = len(buffer), 0, "<"

    def fault(self, record: str, found: str, expected: str = "", *, offset: int | None = None, remedy: str = _DAMAGE):
        place = f"record {record} at byte {self.offset if offset is None else offset}"
        return ReaderError(found, expected=expected, remedy=remedy, path=self.path, place=place)

    def need(self, record: str, n_bytes: int) -> None:
        if n_bytes > self.size - self.offset:
            raise self.fault(
                record,
                f"{self.size - self.offset} bytes are left of {self.size}",
                f"{n_bytes} bytes for this record",
                remedy="the file is truncated or one of its counts is damaged; copy it again, or repeat the run",
            )

    def take(self, record: str, kind: Literal["i4", "f8"], count: int) -> NDArray:
        """A view of the next `count` numbers, in the byte order of the file."""
        n_bytes = count * int(kind[1])
        self.need(record, n_bytes)
        values = np.frombuffer(self.buffer, self.order + kind, count, self.offset)
        self.offset += n_bytes
        return values

    def integers(self, record: str, count: int, low: int, high: int) -> NDArray[np.int64]:
        """The next `count` ints, each inside low … high."""
        offset = self.offset
        values = self.take(record, "i4", count).astype(np.int64)
        if count and not (low <= values.min() and values.max() <= high):
            bad = int(np.argmax((values < low) | (values > high)))
            raise self.fault(record, f"number {bad} is {values[bad]}", f"{low} … {high}", offset=offset + 4 * bad)
        return values

    def doubles(self, record: str, count: int, largest: float = _LARGEST_VALUE) -> NDArray[np.float64]:
        """An aligned native copy of the next `count` doubles, finite and no larger than `largest`."""
        offset = self.offset
        values = self.take(record, "f8", count).astype(np.float64)
        # max and min hand NaN on, so that one comparison finds it too.
        if count and not (values.max() <= largest and values.min() >= -largest):
            bad = int(np.argmax(~(np.abs(values) <= largest)))
            raise self.fault(
                record, f"number {bad} is {values[bad]}", f"at most {largest:.0e} in size", offset=offset + 8 * bad
            )
        return values

    def vectors(self, record: str, count: int, largest: float) -> NDArray[np.float64]:
        """(count, 3) from four-vectors, whose first component is unused and may hold anything."""
        offset = self.offset
        values = self.take(record, "f8", 4 * count).reshape(count, 4)[:, 1:].astype(np.float64)
        if not (values.max() <= largest and values.min() >= -largest):
            bad = np.argwhere(~(np.abs(values) <= largest))[0]
            raise self.fault(
                record,
                f"component {bad[1] + 1} of vector {bad[0]} is {values[tuple(bad)]}",
                f"at most {largest:.0e} in size",
                offset=int(offset + 32 * bad[0] + 8 * (bad[1] + 1)),
            )
        return values


class _Header(NamedTuple):
    n_atoms: int
    version: int
    spin_switch: int
    n_copies: int
    order_max: int


def _header(cursor: _Cursor) -> _Header:
    cursor.need("header", 24)
    readings = {order: [int(w) for w in np.frombuffer(cursor.buffer, order + "i4", 6)] for order in "<>"}
    fitting = [order for order, words in readings.items() if _plausible(words, cursor.size)]
    if not fitting:
        raise cursor.fault(
            "header",
            f"six integers {readings['<']} (or, in the other byte order, {readings['>']})",
            "atoms >= 1, a code word SpinP + 4·version with SpinP 0, 1 or 3, three counts >= 0, "
            "and an odd cube less one, all small enough for the file",
            remedy="is this an OpenMX .scfout file? It needs `HS.fileout on` in the input",
        )
    cursor.order = fitting[0]
    cursor.offset = 24
    n_atoms, code, *negf, n_copies = readings[cursor.order]
    version, spin_switch = divmod(code, 4)
    if version not in _KNOWN_VERSIONS:
        raise cursor.fault(
            "header",
            f"file version {version}",
            "version 3 (OpenMX 3.9, 4.0) or version 0 (OpenMX 3.7, 3.8)",
            offset=4,
            remedy="repeat the run with one of these releases",
        )
    if any(negf):
        raise cursor.fault(
            "header",
            f"{negf[0]} centre, {negf[1]} left and {negf[2]} right atoms, as in a transport (NEGF) run",
            "a periodic run",
            offset=8,
            remedy="open boundaries are not supported; run the bulk with scf.EigenvalueSolver Band",
        )
    order_max = 1 if version == 0 else int(cursor.integers("order_max", 1, 1, 8)[0])
    return _Header(n_atoms, version, spin_switch, n_copies, order_max)


def _plausible(words: list[int], size: int) -> bool:
    """Whether the first six integers can be a header in this byte order; other versions pass, to be named."""
    n_atoms, code, *negf, n_copies = words
    edge = round(max(n_copies + 1, 0) ** (1 / 3))
    return (
        1 <= n_atoms <= size // 48
        and 0 <= code < 256
        and code % 4 != 2
        and all(0 <= n <= n_atoms for n in negf)
        and 0 <= n_copies <= size // 48
        and edge % 2 == 1
        and edge**3 == n_copies + 1
    )


def _sections(header: _Header) -> list[tuple[str, int]]:
    """Matrices in file order and their number of sweeps over all pairs."""
    s, vector = header.spin_switch + 1, header.spin_switch == 3
    new = header.version == 3
    return [
        ("Hks", s),
        ("iHks", 3 if vector else 0),
        ("OLP", 1),
        ("OLPpo", 3 * header.order_max),
        ("OLPmo", 3 if new else 0),
        ("DM", s),
        ("iDM", 2 if new else 0),
    ]


def parse_scfout(buffer: bytes | mmap.mmap, path: Path, *, position: bool = True, momentum: bool = True) -> Scfout:
    """Read and check the content of one file; `path` only names it.

    Raises :class:`ReaderError` that names the record and its byte for a file that is truncated, damaged, or of another
    kind or version.
    """
    cursor = _Cursor(buffer, path)
    header = _header(cursor)
    n = header.n_atoms
    cells_at = cursor.offset
    cells = cursor.vectors("atv", header.n_copies + 1, 1e3 * _LARGEST_LENGTH_BOHR)
    cell_index = _cell_index(cursor, header.n_copies)
    n_orbitals = cursor.integers("Total_NumOrbs", n, 1, _MOST_ORBITALS)
    neighbours = cursor.integers("FNAN", n, 0, cursor.size // 8) + 1
    row, col, shift_row = _pairs(cursor, neighbours, header.n_copies)
    shift = cell_index[shift_row]
    cell = cursor.vectors("tv", 3, _LARGEST_LENGTH_BOHR)
    reciprocal_at = cursor.offset
    reciprocal = cursor.vectors("rtv", 3, 1e6)
    _check_lattice(cursor, cells, cells_at, cell_index, cell, reciprocal, reciprocal_at)
    positions = cursor.vectors("Gxyz", n, _LARGEST_LENGTH_BOHR)

    sizes = n_orbitals[row] * n_orbitals[col]
    start = np.concatenate([[0], np.cumsum(sizes)])
    total = int(start[-1])
    sections = _sections(header)
    n_sweeps = sum(sweeps for _, sweeps in sections)
    cursor.need("matrices", 8 * total * n_sweeps + 84)
    wanted = {"OLPpo": position, "OLPmo": momentum}
    matrices: dict[str, NDArray[np.float64] | None] = {}
    for name, sweeps in sections:
        if sweeps and wanted.get(name, True):
            matrices[name] = cursor.doubles(name, sweeps * total).reshape(sweeps, total)
        else:
            matrices[name] = None
            cursor.offset += 8 * sweeps * total

    solver = int(cursor.integers("Solver", 1, 0, 64)[0])
    if solver == _NEGF_SOLVER:
        raise cursor.fault("Solver", "a transport (NEGF) run", "a periodic run", offset=cursor.offset - 4)
    numbers = cursor.doubles("ChemP … Total_SpinS", 10)
    # Files of version 0 have no tail.
    text, has_xc_tail = _text_and_tail(cursor, 8 * (header.spin_switch + 1) * total if header.version == 3 else 0)
    positions_in_file = matrices["OLPpo"]
    overlap = matrices["OLP"]
    hamiltonian, density = matrices["Hks"], matrices["DM"]
    assert hamiltonian is not None
    assert overlap is not None
    assert density is not None
    return Scfout(
        path=cursor.path,
        version=header.version,
        spin_switch=header.spin_switch,
        byte_order="little" if cursor.order == "<" else "big",
        n_orbitals=n_orbitals,
        row=row,
        col=col,
        shift=shift,
        start=start,
        cell_bohr=cell,
        positions_bohr=positions,
        hamiltonian=hamiltonian,
        hamiltonian_imag=matrices["iHks"],
        overlap=overlap[0],
        # Direction is the slow index, the power of x the fast one; only the first power is of use.
        position=None if positions_in_file is None else positions_in_file[:: header.order_max],
        momentum=matrices["OLPmo"],
        density=density,
        density_imag=matrices["iDM"],
        solver=solver,
        chemical_potential_ha=float(numbers[0]),
        temperature_k=float(numbers[1]),
        n_electrons=float(numbers[8]),
        total_spin=float(numbers[9]),
        text=text,
        has_xc_tail=has_xc_tail,
    )


def _cell_index(cursor: _Cursor, n_copies: int) -> NDArray[np.int64]:
    """(n_copies + 1, 3) integer cells; row 0 is the home cell."""
    offset = cursor.offset
    values = cursor.take("atv_ijk", "i4", 4 * (n_copies + 1)).reshape(-1, 4)[:, 1:].astype(np.int64)
    reach = (round((n_copies + 1) ** (1 / 3)) - 1) // 2
    bad = (np.abs(values) > reach).any(axis=1)
    bad[0] |= bool(values[0].any())
    if bad.any():
        at = int(np.argmax(bad))
        raise cursor.fault(
            "atv_ijk",
            f"cell {at} is {tuple(values[at].tolist())}",
            "(0, 0, 0)" if at == 0 else f"integers up to {reach}",
            offset=offset + 16 * at + 4,
        )
    return values


def _pairs(
    cursor: _Cursor, neighbours: NDArray[np.int64], n_copies: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(row atom, column atom, row of atv) of each pair, from 0. `neighbours` counts the atom itself."""
    n, n_pairs = len(neighbours), int(neighbours.sum())
    first = np.concatenate([[0], np.cumsum(neighbours)[:-1]])
    cursor.need("natn and ncn", 8 * n_pairs)
    natn_at = cursor.offset
    col = cursor.integers("natn", n_pairs, 1, n) - 1
    ncn_at = cursor.offset
    cell = cursor.integers("ncn", n_pairs, 0, n_copies)
    if (bad := col[first] != np.arange(n)).any():
        atom = int(np.argmax(bad))
        raise cursor.fault(
            "natn",
            f"the list of atom {atom + 1} begins with atom {col[first[atom]] + 1}",
            "the atom itself",
            offset=natn_at + 4 * int(first[atom]),
        )
    if (bad := cell[first] != 0).any():
        atom = int(np.argmax(bad))
        raise cursor.fault(
            "ncn",
            f"atom {atom + 1} itself is in cell {cell[first[atom]]}",
            "the home cell, 0",
            offset=ncn_at + 4 * int(first[atom]),
        )
    return np.repeat(np.arange(n), neighbours), col, cell


def _check_lattice(
    cursor: _Cursor, cells: NDArray, cells_at: int, index: NDArray, cell: NDArray, reciprocal: NDArray, rtv_at: int
) -> None:
    size = float(np.abs(cell).max())
    deviation = np.abs(cells - index @ cell).max(axis=1)
    if deviation.max() > 1e-8 * max(size, 1.0) * max(1, int(np.abs(index).max())):
        bad = int(np.argmax(deviation))
        raise cursor.fault(
            "atv",
            f"vector {bad} is {deviation[bad]:.3g} Bohr away from the lattice vector of its cell",
            "atv = atv_ijk · tv",
            offset=cells_at + 32 * bad + 8,
        )
    product = cell @ reciprocal.T / (2 * np.pi)
    if np.abs(product - np.eye(3)).max() > 1e-8:
        raise cursor.fault(
            "rtv", "vectors that are not the reciprocal ones of tv", "tv_i · rtv_j = 2π δ_ij", offset=rtv_at
        )


def _text_and_tail(cursor: _Cursor, tail_bytes: int) -> tuple[str | None, bool]:
    """The embedded input, and whether the exchange–correlation matrix follows: only the length of the rest tells.

    `tail_bytes` is the size of that matrix, 0 where the version has none.
    """
    rest = cursor.size - cursor.offset
    if rest in (0, tail_bytes):
        return None, rest > 0
    n_lines = int(cursor.take("number of input lines", "i4", 1)[0]) if rest >= 4 else -1
    text_bytes = _TEXT_RECORD_BYTES * n_lines
    if n_lines < 0 or rest - 4 - text_bytes not in (0, tail_bytes):
        raise cursor.fault(
            "number of input lines",
            f"{n_lines} lines in the last {rest} bytes",
            "nothing, or 4 + 256 per line" + (f", then nothing or {tail_bytes} bytes" if tail_bytes > 0 else ""),
            offset=cursor.size - rest,
        )
    raw = cursor.buffer[cursor.offset : cursor.offset + text_bytes]
    # Each record is one line (or 255 characters of one) and, behind its NUL, rubbish of earlier lines.
    records = [raw[i : i + _TEXT_RECORD_BYTES].split(b"\0", 1)[0] for i in range(0, text_bytes, _TEXT_RECORD_BYTES)]
    cursor.offset += text_bytes
    return b"".join(records).decode("utf-8", errors="replace"), cursor.offset < cursor.size
