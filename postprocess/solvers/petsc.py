"""Windows that are solved elsewhere: H(k) and S(k) for PETSc, a SLEPc script beside them, and the eigenpairs back.

Where no factor fits into one machine, SLEPc spreads it over many (MUMPS or SuperLU_DIST below it). The files are
PETSc's own binary format (manual page of MatView: class id, rows, columns, entries, entries of each row, columns,
values; all big-endian, 32-bit integers), for PETSc built with complex scalars. What comes back is not believed: it is
refined, and counted where a factor fits.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import SolverError, StoreError

from ..files import replacing
from .factor import Analysis
from .lanczos import rayleigh_ritz
from .pencil import BlochPencil
from .window import Window, checked_residual_ev, factor_off_states

__all__ = ["export_pencil", "import_window"]

_MATRIX, _VECTOR = 1211216, 1211214

_SCRIPT = '''"""The {count} states next to {energy_ev:.9f} eV of the pencil in this folder, by SLEPc.

    mpiexec -n N python solve.py [-st_pc_factor_mat_solver_type mumps] [any option of SLEPc]

PETSc and SLEPc with complex scalars. Writes values.npy and vectors.petsc, which `hamnet solve --from` reads.
"""

import sys

import slepc4py

slepc4py.init(sys.argv)
import numpy as np
from petsc4py import PETSc
from slepc4py import SLEPc


def load(name):
    viewer = PETSc.Viewer().createBinary(name, "r")
    return PETSc.Mat().load(viewer)


solver = SLEPc.EPS().create()
solver.setOperators(load("hamiltonian.petsc"), load("overlap.petsc"))
solver.setProblemType(SLEPc.EPS.ProblemType.GHEP)
solver.setDimensions({count})
solver.setTarget({energy_ev!r})
solver.setWhichEigenpairs(SLEPc.EPS.Which.TARGET_REAL)
solver.setTolerances(1e-10, 500)
transform = solver.getST()
transform.setType(SLEPc.ST.Type.SINVERT)
transform.getKSP().setType("preonly")
transform.getKSP().getPC().setType("lu")
transform.getKSP().getPC().setFactorSolverType("mumps")
solver.setFromOptions()
solver.solve()
n = solver.getConverged()
x = solver.getOperators()[0].createVecRight()
viewer = PETSc.Viewer().createBinary("vectors.petsc", "w")
values = []
for i in range(n):
    values.append(solver.getEigenpair(i, x).real)
    x.view(viewer)
if PETSc.COMM_WORLD.rank == 0:
    np.save("values.npy", np.array(values))
    print(n, "states")
'''


def export_pencil(at: BlochPencil, folder: str | Path, energy_ev: float, count: int) -> None:
    """Write H(k) and S(k), S with spin, and a script that finds the `count` states next to an energy."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_matrix(folder / "hamiltonian.petsc", at, at.h_data)
    # S on the pattern of H: what is subtracted for a shift of 1 eV.
    _write_matrix(folder / "overlap.petsc", at, at.shifted(0.0) - at.shifted(1.0))
    about = {"k_frac": at.k_frac.tolist(), "channel": at.channel, "dim": at.dim, "energy_eV": energy_ev}
    for name, text in (
        ("solve.py", _SCRIPT.format(count=count, energy_ev=energy_ev)),
        ("pencil.json", json.dumps(about, indent=1)),
    ):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def import_window(analysis: Analysis | None, at: BlochPencil, folder: str | Path) -> Window:
    """The states that the script found, as a window whose edges lie in gaps just outside them.

    Energies and vectors are refined with H and S themselves. With `analysis` the states are counted; without it (no
    factor fits) ``first`` is −1, and nobody has proved that none is missing.

    Raises :class:`StoreError` for files of another pencil, and :class:`SolverError` for vectors that are no states or
    are not all.
    """
    folder = Path(folder)
    about = json.loads(_bytes(folder / "pencil.json").decode())
    if about["dim"] != at.dim or about["channel"] != at.channel or not np.allclose(about["k_frac"], at.k_frac):
        raise StoreError(
            f"states of dimension {about['dim']} at k = {about['k_frac']}",
            expected=f"dimension {at.dim} at k = {at.k_frac.tolist()}", path=folder,
        )  # fmt: skip
    x = _read_vectors(folder / "vectors.petsc", at.dim)
    energies, vectors = rayleigh_ritz(at, x, at.apply_s(x))
    missed = checked_residual_ev(at, energies, vectors)
    margin = 1e-6
    low, high = float(energies[0]) - margin, float(energies[-1]) + margin
    if analysis is None:
        return Window(at.k_frac, at.channel, low, high, energies, vectors, -1, missed, 0, 0)
    lower, n_low = factor_off_states(analysis, at, low, direction=-1)
    low, below = lower.sigma_ev, lower.inertia.negative
    del lower
    upper, n_high = factor_off_states(analysis, at, high)
    if upper.inertia.negative - below != len(energies):
        raise SolverError(
            f"{len(energies)} states where the counts say {upper.inertia.negative - below}", expected="all of them",
            remedy="solve again for more states, or with another shift", path=folder,
        )  # fmt: skip
    return Window(at.k_frac, at.channel, low, upper.sigma_ev, energies, vectors, below, missed, n_low + n_high, 0)


def _write_matrix(path: Path, at: BlochPencil, data: NDArray[np.complex128]) -> None:
    indptr, indices = at.pencil.indptr, at.pencil.indices
    if len(indices) >= 2**31:
        raise SolverError(
            f"{len(indices)} elements", expected="fewer than 2³¹: PETSc's files have 32-bit integers by default"
        )
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.array([_MATRIX, at.dim, at.dim, len(indices)], ">i4").tofile(file)
        np.diff(indptr).astype(">i4").tofile(file)
        indices.astype(">i4").tofile(file)
        data.astype(">c16").tofile(file)


def _read_vectors(path: Path, dim: int) -> NDArray[np.complex128]:
    """(dim, n) vectors, one after the other in a file."""
    record = np.dtype([("id", ">i4"), ("n", ">i4"), ("values", ">c16", (dim,))])
    content = _bytes(path)
    if not content or len(content) % record.itemsize:
        raise StoreError(
            f"{len(content)} bytes", expected=f"a multiple of {record.itemsize}: vectors of {dim} complex numbers",
            remedy="check that PETSc was built with complex scalars and 32-bit integers", path=path,
        )  # fmt: skip
    records = np.frombuffer(content, record)
    if (records["id"] != _VECTOR).any() or (records["n"] != dim).any():
        raise StoreError("no vectors of PETSc", expected=f"class id {_VECTOR} and length {dim}", path=path)
    return np.ascontiguousarray(records["values"].T.astype(np.complex128))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot be read ({error})", expected="the folder of an export, solved", path=path) from error
