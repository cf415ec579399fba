"""What OpenMX prints: ``System.out``, the redirected standard output, and ``System.Band``.

Numbers are in the code's units, as printed. Sections are found from the end of the file, so that a run of many
geometries gives its last one, to which the binary file belongs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import ReaderError

from .compressed import read_buffer

__all__ = ["BandFile", "OutFile", "StdFile", "read_band", "read_out", "read_std", "system_name"]

_VERSION = re.compile(rb"OpenMX\s+Ver\.\s*([0-9][0-9A-Za-z.]*)")
_SYSTEM_NAME = re.compile(rb"^\s*System\.Name\s+(\S+)", re.MULTILINE | re.IGNORECASE)
_GRID = re.compile(rb"Num\. of grids of a-, b-, and c-axes = *([1-9]\d{0,6}), *([1-9]\d{0,6}), *([1-9]\d{0,6})\s")
_STEP = re.compile(rb"SCF=\s*(\d+)\s+NormRD=\s*(\S+)\s+Uele=\s*(\S+)")
_STD_UELE = re.compile(
    rb"<DFT>\s+Uele\s*=\s*(\S+)\s+dUele\s*=\s*(\S+)\s+<DFT>\s+NormRD\s*=\s*(\S+)\s+Criterion\s*=\s*(\S+)"
)
_FIRST_ATOM = re.compile(rb"^ +1 +\S+ +[-0-9.]", re.MULTILINE)
_RULE = b"*" * 20


@dataclass(frozen=True, slots=True, eq=False)
class OutFile:
    """Numbers of a ``.out`` file; None where the section is missing (a run that was stopped).

    Attributes
    ----------
    input_text : the input, which the file repeats before its results.
    n_steps, residue, energy_change_ha : number of SCF steps, last NormRD, last change of the band energy (None after
        a single step).
    charges : (n,) printed electrons of each atom.
    moments : (n, 3) μ_B, from up − down and the printed angles; None in an unpolarised run.
    forces_ha_per_bohr : (n, 3).
    grid : points of the real-space grid along the three lattice vectors.
    """

    path: Path
    version: str | None
    input_text: str
    n_steps: int | None
    residue: float | None
    energy_change_ha: float | None
    total_energy_ha: float | None
    band_energy_ha: float | None
    constraint_energy_ha: float | None
    chemical_potential_ha: float | None
    charges: NDArray[np.float64] | None
    moments: NDArray[np.float64] | None
    forces_ha_per_bohr: NDArray[np.float64] | None
    grid: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class StdFile:
    """Last SCF step of a redirected standard output."""

    path: Path
    version: str | None
    n_steps: int
    band_energy_ha: float
    energy_change_ha: float
    residue: float
    criterion_ha: float
    achieved: bool | None
    """What the code said; None for releases that say nothing (3.8)."""


@dataclass(frozen=True, slots=True, eq=False)
class BandFile:
    """Eigenvalues along paths, Hartree, absolute. k_frac (n_k, 3), energies_ha (n_k, n_channel, n_states).

    `corners` are (index of k, name) of both ends of each path; `dropped_paths` counts paths of a single point, for
    which the code writes NaN.
    """

    path: Path
    chemical_potential_ha: float
    k_frac: NDArray[np.float64]
    energies_ha: NDArray[np.float64]
    corners: tuple[tuple[int, str], ...]
    dropped_paths: int


def _fault(path: Path, data: bytes, at: int, found: str, expected: str) -> ReaderError:
    line = data.count(b"\n", 0, max(at, 0)) + 1
    return ReaderError(
        found, expected=expected, remedy="copy the file again from the run", path=path, place=f"line {line}"
    )


def _numbers(path: Path, data: bytes, at: int, words: list[bytes], expected: str) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise _fault(path, data, at, b" ".join(words).decode("utf-8", "replace"), expected) from error


def _number_behind(path: Path, data: bytes, label: bytes, start: int) -> float | None:
    """The number behind the first occurrence of the label at the start of a line."""
    at = data.find(b"\n" + label, start)
    if at < 0:
        return None
    words = data[at + 1 + len(label) : at + 1 + len(label) + 80].split(None, 1)[:1]
    (value,) = _numbers(path, data, at + 1, words or [b""], f"a number behind {label.decode().strip()!r}")
    return value


def system_name(path: Path) -> str | None:
    """``System.Name`` of an input file or of the input that a ``.out`` repeats; None if it has none."""
    match = _SYSTEM_NAME.search(bytes(read_buffer(path)))
    return match.group(1).decode("utf-8", "replace") if match else None


def read_out(path: Path, n_atoms: int, spin_switch: int) -> OutFile:
    """Parse a ``.out`` file, plain or compressed, of a run with this many atoms and this SpinP."""
    data = bytes(read_buffer(path))
    version = _VERSION.search(data, 0, 4096)
    first = data.find(b"SCF history at MD=")
    echo = data[: first if first >= 0 else len(data)]
    # What follows the last history is of the last geometry, the one in the binary file.
    last = max(data.rfind(b"SCF history at MD="), 0)
    steps = _scf_steps(path, data, last) if first >= 0 else []
    charges, moments = _mulliken(path, data, last, n_atoms, spin_switch)
    return OutFile(
        path=path,
        version=version.group(1).decode() if version else None,
        input_text=echo.decode("utf-8", "replace"),
        n_steps=int(steps[-1][0]) if steps else None,
        residue=steps[-1][1] if steps else None,
        energy_change_ha=abs(steps[-1][2] - steps[-2][2]) if len(steps) > 1 else None,
        total_energy_ha=_number_behind(path, data, b"  Utot.", last),
        band_energy_ha=_number_behind(path, data, b"  Uele.", last),
        constraint_energy_ha=_number_behind(path, data, b"  Ucs.", last),
        chemical_potential_ha=_number_behind(path, data, b"  Chemical potential (Hartree)", last),
        charges=charges,
        moments=moments,
        forces_ha_per_bohr=_forces(path, data, n_atoms),
        grid=_grid(data),
    )


def _grid(data: bytes) -> tuple[int, int, int] | None:
    match = _GRID.search(data)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _scf_steps(path: Path, data: bytes, start: int) -> list[list[float]]:
    below_heading = data.find(b"\n\n", start)  # the rule under the heading ends with an empty line
    end = data.find(_RULE, below_heading)
    return [
        _numbers(path, data, match.start(), list(match.groups()), "step, NormRD and Uele")
        for match in _STEP.finditer(data, start, end if end >= 0 else len(data))
    ]


def _section_rows(data: bytes, heading: bytes, first_row: re.Pattern[bytes], start: int) -> tuple[int, list[bytes]]:
    """Place and lines of the first section with this heading, from its first row to the next empty line."""
    section = data.find(heading, start)
    match = first_row.search(data, section) if section >= 0 else None
    if match is None:
        return -1, []
    end = data.find(b"\n\n", match.start())
    return match.start(), data[match.start() : end if end >= 0 else len(data)].splitlines()


def _mulliken(
    path: Path, data: bytes, start: int, n_atoms: int, spin_switch: int
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    n_numbers = 6 if spin_switch == 3 else 4
    at, rows = _section_rows(data, b"Mulliken populations    ", _FIRST_ATOM, start)
    if at < 0:
        return None, None
    # From the right, because the atom number and the label may touch.
    words = [word for row in rows for word in row.rsplit(None, n_numbers)[1:]]
    expected = f"{n_atoms} rows of {n_numbers} Mulliken numbers"
    if len(rows) != n_atoms or len(words) != n_atoms * n_numbers:
        raise _fault(path, data, at, f"{len(rows)} rows with {len(words)} numbers", expected)
    table = np.array(_numbers(path, data, at, words, expected)).reshape(n_atoms, n_numbers)
    charges, size = table[:, 2], table[:, 3]
    if spin_switch == 0:
        return charges, None
    if spin_switch == 1:
        return charges, size[:, None] * np.array([0.0, 0.0, 1.0])
    theta, phi = np.deg2rad(table[:, 4:]).T
    direction = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=1)
    return charges, size[:, None] * direction


def _forces(path: Path, data: bytes, n_atoms: int) -> NDArray[np.float64] | None:
    start = data.rfind(b"\n<coordinates.forces")
    if start < 0:
        return None
    end = data.find(b"\ncoordinates.forces>", start)
    rows = data[start : end if end >= 0 else len(data)].splitlines()[3:]
    words = [row.split() for row in rows]
    expected = f"{n_atoms} rows of index, species, x, y, z and three forces"
    if len(words) != n_atoms or any(len(row) != 8 for row in words):
        raise _fault(path, data, start + 1, f"{len(words)} rows of forces", expected)
    values = _numbers(path, data, start + 1, [word for row in words for word in row[5:]], expected)
    return np.array(values).reshape(n_atoms, 3)


def read_std(path: Path) -> StdFile | None:
    """Parse a redirected standard output; None if it is not one of OpenMX or has no SCF step."""
    data = bytes(read_buffer(path))
    start = data.rfind(b"<DFT>  Uele")
    match = _STD_UELE.match(data, start) if start >= 0 else None
    if match is None:
        return None
    energy, change, residue, criterion = _numbers(path, data, start, list(match.groups()), "Uele, dUele, NormRD")
    step = re.search(rb"SCF=\s*(\d+)\s*\*", data[data.rfind(b"SCF=", 0, start) :])
    version = _VERSION.search(data)
    said_no, said_yes = (data.rfind(words) for words in (b"The SCF was not achieved", b"The SCF was achieved"))
    return StdFile(
        path=path,
        version=version.group(1).decode() if version else None,
        n_steps=int(step.group(1)) if step else 0,
        band_energy_ha=energy,
        energy_change_ha=abs(change),
        residue=residue,
        criterion_ha=criterion,
        achieved=None if max(said_no, said_yes) < start else said_yes > said_no,
    )


def read_band(path: Path, dimension: int, n_channels: int) -> BandFile:
    """Parse a ``.Band`` file whose matrices have `dimension` states in each of `n_channels` spin channels."""
    data = bytes(read_buffer(path))
    lines = data.split(b"\n", 3)
    if len(lines) < 4 or len(first := lines[0].split()) != 3:
        raise _fault(path, data, 0, f"first line {lines[0][:80]!r}", "states, SpinP and chemical potential")
    n_states, _, chemical_potential = _numbers(path, data, 0, first, "states, SpinP and chemical potential")
    if n_states != dimension:
        raise _fault(path, data, 0, f"{n_states:g} states", f"{dimension}, as the Hamiltonian has")
    at = len(data) - len(lines[3])
    (n_paths,) = _numbers(path, data, at - 1, lines[2].split()[:1] or [b""], "the number of paths")
    if not 1 <= n_paths <= len(lines[3]) // 7:
        raise _fault(path, data, at - 1, f"{n_paths:g} paths", "a number of paths that fits the file")
    *heads, rest = lines[3].split(b"\n", int(n_paths))
    points = np.array(
        [_numbers(path, data, at, head.split()[:1] or [b""], "points and ends of a path")[0] for head in heads]
    )
    if not (np.isfinite(points) & (points >= 1) & (points <= len(rest)) & (points == np.rint(points))).all():
        raise _fault(path, data, at, f"paths of {points.tolist()} points", "a whole number >= 1 that fits the file")
    n_k, width = int(points.sum()), 4 + dimension
    words = rest.split()
    expected = f"{n_k} k-points × {n_channels} spin channels × {width} numbers"
    if len(words) != n_k * n_channels * width:
        raise _fault(path, data, len(data) - len(rest), f"{len(words)} numbers", expected)
    try:
        table = np.array(words, dtype=np.float64).reshape(n_k, n_channels, width)
    except ValueError as error:
        raise _fault(path, data, len(data) - len(rest), str(error), expected) from error
    single = np.repeat(points == 1, points.astype(int))
    table = table[~single]
    if not np.isfinite(table).all() or (table[..., 0] != dimension).any():
        raise _fault(path, data, len(data) - len(rest), "numbers out of step, or not finite", expected)
    corners: list[tuple[int, str]] = []
    last = np.cumsum(points[points > 1]).astype(int) - 1
    for end, n, head in zip(
        last, points[points > 1], [h for h, p in zip(heads, points, strict=True) if p > 1], strict=True
    ):
        names = [word.decode("latin-1") for word in head.split()[7:9]]
        corners += zip((int(end - n + 1), int(end)), names, strict=False)
    dropped = int((points == 1).sum())
    return BandFile(path, chemical_potential, table[:, 0, 1:4], table[..., 4:], tuple(corners), dropped)
