"""The moments that a SIESTA run prescribed (``DM.InitSpin``), and whether they are the ones that its H belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import ReaderError

from .siesta_fdf import Fdf
from .siesta_ions import Ion
from .siesta_output import MainOutput

__all__ = ["initial_moments", "is_single_diagonalisation"]


def is_single_diagonalisation(output: MainOutput) -> bool:
    """Whether H is that of the prescribed density: one step from superposed atoms, and H kept as it was diagonalised.

    With Hamiltonian mixing an unconverged run leaves the H of the output density instead.
    """
    kept = output.mixed == "density" or output.converged
    return output.steps == 1 and output.start in ("given", "atomic") and kept


def initial_moments(fdf: Fdf, ions: Sequence[Ion], n_spin: int) -> tuple[NDArray[np.float64], str]:
    """(n_atoms, 3) μ_B of the first density, and a sentence on how they were prescribed.

    Follows SIESTA's ``init_dm``: sizes are limited by what the populations of the free atom allow, atoms that the
    block does not list have none, ``+`` and ``-`` mean the largest moment, angles θ, φ (degrees) are used in
    non-collinear runs only. Without the block all atoms have their largest moment along z, with alternating sign
    after ``DM.InitSpin.AF``.

    Parameters
    ----------
    ions : species of each atom, (n_atoms,).
    """
    largest = np.array([ion.largest_moment for ion in ions])
    moments = np.zeros((len(ions), 3))
    block = fdf.block("DM.InitSpin")
    if block is None:
        moments[:, 2] = largest
        if n_spin == 2 and fdf.logical("DM.InitSpin.AF", "DM.InitSpinAF", default=False):
            moments[1::2, 2] *= -1
            return moments, "DM.InitSpin.AF: largest moments along z, alternating"
        return moments, "no block DM.InitSpin: largest moments along z"
    cut = 0
    for line in block:
        atom, size, theta, phi = _parse(line, len(ions), fdf)
        limited = float(np.clip(size, -largest[atom], largest[atom]))
        cut += abs(size) != np.inf and limited != size
        if n_spin == 2:
            theta = phi = 0.0
        direction = [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)]
        moments[atom] = limited * np.array(direction)
    limits = f"; {cut} sizes limited to the largest moment of the free atom" if cut else ""
    return moments, f"block DM.InitSpin, {len(block)} of {len(ions)} atoms{limits}"


def _parse(line: str, n_atoms: int, fdf: Fdf) -> tuple[int, float, float, float]:
    """Atom from 0, size in μ_B (± inf for ``+`` and ``-``), θ and φ in radians."""
    words = line.split()
    error = ReaderError(
        f"DM.InitSpin: {line}",
        expected="atom, size or + or -, and θ and φ in degrees for non-collinear spin",
        path=fdf.path,
        place="block DM.InitSpin",
    )
    if len(words) not in (2, 4):
        raise error
    try:
        atom = int(words[0])
        size = {"+": np.inf, "-": -np.inf}.get(words[1])
        size = float(words[1]) if size is None else size
        theta, phi = (np.deg2rad(float(w)) for w in (words[2:] or ("0", "0")))
    except ValueError as cause:
        raise error from cause
    atom = atom + n_atoms if atom < 0 else atom - 1
    if not 0 <= atom < n_atoms:
        raise error
    return atom, size, float(theta), float(phi)
