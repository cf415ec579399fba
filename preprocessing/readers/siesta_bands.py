"""Eigenvalues that SIESTA printed, with exact k points and an honest precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import ReaderError

from .protocol import BandReference
from .siesta_fdf import Fdf
from .siesta_tables import Eigenvalues, read_bands, read_kpoints
from .siesta_units import SiestaUnits

__all__ = ["SINGLE_PRECISION_EV", "WINDOW_EV", "band_reference", "eig_reference", "mesh_points"]

WINDOW_EV = 15.0
"""Levels are compared up to this above E_F. Where orbitals are nearly dependent, empty states far up magnify what is
missing in S: 3 meV from single precision, 6e-6 eV from the 1e-8 by which S as stored is not symmetric (SIESTA takes one
triangle, we the mean)."""
SINGLE_PRECISION_EV = 2e-5
"""What H and S in float32 leave below that."""

_BANDS_ROUNDING_EV = 5e-5
_KP_ROUNDING = 5e-7
_KP_ENERGY_EV = 3e-5


def mesh_points(
    k_per_bohr: NDArray, cell_bohr: NDArray, meshes: list[tuple[str, NDArray]]
) -> tuple[NDArray[np.float64], str]:
    """Fractions of the k points of ``.KP``: (n_k, 3), and the name of the mesh that gave them ("" if none did).

    The file has six digits, which costs 2e-5 eV. All points of a Monkhorst–Pack mesh obey k = (n + d) M⁻ᵀ with whole
    n for the supercell matrix M and displacement d, so a mesh that agrees with the digits gives them exactly.

    Parameters
    ----------
    k_per_bohr : (n_k, 3) 1/Bohr, Cartesian. cell_bohr : (3, 3), rows are vectors.
    meshes : candidates, name and (3, 4) rows of M with d behind.
    """
    rounded = k_per_bohr @ cell_bohr.T / (2 * np.pi)
    # E format: six digits of a number below 1 (0.297604E+00), fewer decimals above.
    digit = _KP_ROUNDING * 10.0 ** np.maximum(0, np.ceil(np.log10(np.maximum(np.abs(k_per_bohr), 1e-9))))
    tolerance = 1.5 * digit @ np.abs(cell_bohr).T / (2 * np.pi) + 1e-9
    for name, mesh in meshes:
        matrix, displacement = mesh[:, :3], mesh[:, 3]
        if abs(np.linalg.det(matrix)) < 0.5:
            continue
        steps = np.rint(rounded @ matrix.T - displacement)
        exact = (steps + displacement) @ np.linalg.inv(matrix).T
        if (np.abs(exact - rounded) <= tolerance).all():
            return exact, name
    return rounded, ""


def _fdf_mesh(fdf: Fdf) -> NDArray | None:
    block = fdf.block("kgrid.MonkhorstPack")
    if block is None or len(block) < 3:
        return None
    try:
        rows = [[float(word) for word in line.split()[:4]] for line in block[:3]]
    except ValueError as error:
        raise ReaderError(
            f"kgrid_Monkhorst_Pack: {' / '.join(block[:3])}", expected="3 rows of 3 integers and a shift", path=fdf.path
        ) from error
    rows = [row + [0.0] * (4 - len(row)) for row in rows]
    return np.array(rows) if all(len(row) == 4 for row in rows) else None


def _digits_ev(energies: NDArray) -> float:
    """Half of the last of nine digits of the largest energy, and a little."""
    largest = max(1e-3, float(np.abs(energies).max()))
    return 0.6e-9 * 10.0 ** np.ceil(np.log10(largest))


def eig_reference(
    name: str,
    levels: Eigenvalues,
    kp: Path,
    cell_bohr: NDArray,
    fdf: Fdf,
    printed_mesh: NDArray | None,
    *,
    axes: NDArray,
    single: bool,
) -> tuple[BandReference, str]:
    """``.EIG`` at the k points of ``.KP``, and how their fractions were found.

    Parameters
    ----------
    cell_bohr : (3, 3) in SIESTA's order. axes : order of the vectors in the structure.
    single : H and S come from a file in single precision.
    """
    k = read_kpoints(kp)
    if len(k) != len(levels.energies_ev):
        raise ReaderError(f"{len(k)} k points", expected=f"{len(levels.energies_ev)}, as many as in {name}", path=kp)
    meshes = [("the mesh of the fdf", _fdf_mesh(fdf)), ("the mesh of the main output", printed_mesh)]
    k_frac, mesh = mesh_points(k, cell_bohr, [(name, m) for name, m in meshes if m is not None])
    precision = _digits_ev(levels.energies_ev) + (0.0 if mesh else _KP_ENERGY_EV)
    reference = BandReference(
        source=name,
        k_frac=k_frac[:, axes],
        energies_ev=levels.energies_ev,
        precision_ev=precision + (SINGLE_PRECISION_EV if single else 0.0),
        highest_ev=levels.fermi_ev + WINDOW_EV,
    )
    return reference, mesh or f"six digits of {kp.name}"


def _scale(fdf: Fdf, cell_bohr: NDArray, units: SiestaUnits) -> NDArray:
    """(3, 3) rows: what one unit of each number in BandLines is, in fractions of the reciprocal vectors."""
    scale = (fdf.text("BandLinesScale") or "pi/a").split()[0].lower()
    if scale == "reciprocallatticevectors":
        return np.eye(3)
    lattice = fdf.length_bohr("LatticeConstant", units.bohr_ang)
    if scale != "pi/a" or not lattice:
        raise ReaderError(
            f"BandLinesScale {scale} and LatticeConstant {fdf.text('LatticeConstant') or 'missing'}",
            expected="ReciprocalLatticeVectors, or pi/a with a lattice constant",
            path=fdf.path,
        )
    return np.pi / lattice * cell_bohr.T / (2 * np.pi)


def _block_points(fdf: Fdf) -> tuple[NDArray, bool] | None:
    """k points in the unit of the input, and whether they are lines; None if there are no bands in the input."""
    single = fdf.block("BandPoints")
    lines = fdf.block("BandLines")
    try:
        if single is not None:
            return np.array([[float(w) for w in line.split()[:3]] for line in single]).reshape(-1, 3), False
        if lines is None:
            return None
        points: list[NDArray] = []
        for line in lines:
            words = line.split()
            n, end = int(words[0]), np.array([float(w) for w in words[1:4]])
            start = points[-1] if points else end
            points += [start + (end - start) * (step / n) for step in range(1, n + 1)]
        return np.array(points).reshape(-1, 3), True
    except (ValueError, IndexError) as error:
        raise ReaderError(
            f"unreadable block {'BandPoints' if single is not None else 'BandLines'}",
            expected="number of points, three coordinates and a label in each line",
            path=fdf.path,
        ) from error


def band_reference(
    bands: Path, cell_bohr: NDArray, fdf: Fdf, units: SiestaUnits, *, axes: NDArray, single: bool
) -> BandReference | None:
    """``.bands`` at the k points that the fdf asked for; None if the fdf asks for none.

    Raises :class:`ReaderError` if number or path length of the k points are not those of the file.
    """
    block = _block_points(fdf)
    if block is None:
        return None
    points, lines = block
    found = read_bands(bands, lines=lines)
    k_frac = points @ _scale(fdf, cell_bohr, units)
    if len(k_frac) != len(found.energies_ev):
        raise ReaderError(
            f"{len(found.energies_ev)} k points", expected=f"{len(k_frac)} as the input asks for", path=bands
        )
    if found.path is not None:
        k = k_frac @ (2 * np.pi * np.linalg.inv(cell_bohr).T)
        path = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(k, axis=0), axis=1))])
        if np.abs(path - found.path).max() > 2e-5 * max(1.0, path[-1]):
            raise ReaderError(
                f"a path of {found.path[-1]:.6f}/Bohr",
                expected=f"{path[-1]:.6f}/Bohr as the input asks for",
                remedy="input and .bands are of different runs",
                path=bands,
            )
    return BandReference(
        source=bands.name,
        k_frac=k_frac[:, axes],
        energies_ev=found.energies_ev,
        precision_ev=_BANDS_ROUNDING_EV + 1e-7 + (SINGLE_PRECISION_EV if single else 0.0),
        highest_ev=found.fermi_ev + WINDOW_EV,
        corners=_corners(fdf) if lines else (),
    )


def _corners(fdf: Fdf) -> tuple[tuple[int, str], ...]:
    """(index of k, name) of the ends of the lines that the input names."""
    words = [line.split() for line in fdf.block("BandLines") or []]
    last = np.cumsum([int(w[0]) for w in words]) - 1
    return tuple((int(end), w[4]) for end, w in zip(last, words, strict=True) if len(w) > 4)
