"""MKL PARDISO for complex Hermitian indefinite matrices (mtype −4), through ctypes: nothing is compiled.

L D L† with Bunch–Kaufman pivots of size 1 and 2 inside supernodes (Schenk and Gärtner, Electron. Trans. Numer. Anal.
23, 158 (2006)). PARDISO reports the inertia of real matrices only. Here it is read from D itself, which phase 332
applies the inverse of: D x = 1 and D y = r agree, y/r = x, where a pivot stands alone; all other rows form 2×2 pivots,
and a Bunch–Kaufman pivot of size 2 has one negative and one positive eigenvalue.
"""

from __future__ import annotations

import ctypes
import sys
import time
import weakref
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hamnet.errors import SolverError

from .factor import FactorStats, SingularFactorError, require_numbers
from .pencil import SparsePencil

__all__ = ["Pardiso", "PardisoFactor", "mkl_library"]

ComplexArray = NDArray[np.complex128]

_HERMITIAN_INDEFINITE = -4
_ANALYSE, _FACTORISE, _SOLVE, _SOLVE_D, _RELEASE = 11, 22, 33, 332, -1
# A larger factor could hold more entries than a 32-bit count.
_LARGEST_NARROW_DIM = 100_000
# Two numbers that are equal if a pivot stands alone agree to rounding; others differ by 1e-4 and more.
_ALONE = 1e-9

_ERRORS = {
    -1: "inconsistent input",
    -2: "not enough memory",
    -3: "a failed reordering",
    -4: "a pivot of zero",
    -7: "a singular diagonal matrix",
    -8: "more than 2³¹ entries",
    -9: "not enough memory for out-of-core data",
}


@cache
def mkl_library() -> Path | None:
    """Where the runtime library of MKL lies: of the installed distribution ``mkl``, else in the environment's folder of
    libraries (conda). None if there is none."""
    try:
        files = [Path(str(file.locate())) for file in metadata.files("mkl") or []]
    except metadata.PackageNotFoundError:
        files = []
    for folder in ("lib", "Library/bin"):
        files += sorted(Path(sys.prefix, folder).glob("*mkl_rt.*"))
    named = (file.resolve() for file in files if file.name.startswith(("libmkl_rt.", "mkl_rt.")))
    return next((file for file in named if file.suffix not in (".lib", ".a") and file.is_file()), None)


@cache
def _library() -> ctypes.CDLL:
    path = mkl_library()
    if path is None:
        raise SolverError(
            "no MKL library",
            expected="the package mkl beside hamnet",
            remedy="install the extra, pip install 'hamnet[mkl]', or take another back-end",
        )
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise SolverError(f"an MKL library that does not load: {error}", expected="one for this machine") from error


class Pardiso:
    """Symbolic factorisation of the pattern of a pencil: an :class:`.factor.Analysis`.

    wide : integers of 64 bits; by default where the pattern or the factor needs them.

    All memory that MKL holds is released when the analysis and its factors are gone.
    """

    name = "mkl"

    def __init__(self, pencil: SparsePencil, *, wide: bool | None = None) -> None:
        self.dim = pencil.dim
        if wide is None:
            wide = pencil.indices.dtype == np.int64 or pencil.dim > _LARGEST_NARROW_DIM
        rows = np.repeat(np.arange(pencil.dim), np.diff(pencil.indptr))
        upper = pencil.indices >= rows
        self._upper = np.flatnonzero(upper)
        integer = np.int64 if wide else np.int32
        counts = np.bincount(rows[upper], minlength=pencil.dim)
        self._indptr = np.concatenate([[0], np.cumsum(counts)]).astype(integer)
        self._indices = pencil.indices[self._upper].astype(integer)
        handle = self._analysed()
        self.flops = 1e6 * float(handle.iparm[18])
        # Of the numbers on the pattern, the permanent part, and the factor (kilobytes).
        self.memory_bytes = 1024.0 * float(max(handle.iparm[14], handle.iparm[15] + handle.iparm[16]))
        self.memory_bytes += 16.0 * len(self._upper)
        self._spare: list[_Handle] = [handle]

    def factor(self, data: ComplexArray) -> PardisoFactor:
        start = time.perf_counter()
        require_numbers(data)
        # A handle holds one factor. A factor that is gone leaves its handle, and the memory in it, to the next one.
        handle = self._spare.pop() if self._spare else self._analysed()
        try:
            return PardisoFactor(handle, self._spare, np.ascontiguousarray(data[self._upper], np.complex128), start)
        except SolverError:
            _give_back(handle, self._spare)
            raise

    def _analysed(self) -> _Handle:
        handle = _Handle(self._indptr, self._indices)
        handle.call(_ANALYSE, np.zeros(len(self._indices), np.complex128))
        return handle


class PardisoFactor:
    """A = L D L†: a :class:`.factor.Factor`."""

    def __init__(self, handle: _Handle, spare: list[_Handle], values: ComplexArray, start: float) -> None:
        self._handle, self._values = handle, values
        handle.call(_FACTORISE, values)
        perturbed = int(handle.iparm[13])
        if perturbed:
            # Solutions after this overwrite memory that is not theirs in some releases of MKL.
            raise SingularFactorError(f"{perturbed} pivots of zero (a shift on an eigenvalue)")
        self.negative = _negative(handle, values)
        entries = int(handle.iparm[17])
        self.stats = FactorStats(entries, 1024 * int(handle.iparm[16]), time.perf_counter() - start)
        weakref.finalize(self, _give_back, handle, spare)

    def solve(self, b: ComplexArray) -> ComplexArray:
        if b.shape[0] != self._handle.dim:
            raise ValueError(f"right-hand side of {b.shape[0]} rows, expected {self._handle.dim}")
        x = self._handle.solve(_SOLVE, self._values, np.ascontiguousarray(b.reshape(len(b), -1).T, np.complex128))
        return np.ascontiguousarray(x.T).reshape(b.shape)


def _give_back(handle: _Handle, spare: list[_Handle]) -> None:
    # One handle is kept for the next factor; those of further factors beside it are released.
    if handle.reusable and not spare:
        spare.append(handle)


def _negative(handle: _Handle, values: ComplexArray) -> int:
    """Negative eigenvalues of D."""
    # Phase 332 with two right-hand sides at once returns something else.
    phase = np.exp(2j * np.pi * np.random.default_rng(0).random(handle.dim))
    x, y = (handle.solve_d(values, b) for b in (np.ones_like(phase), phase))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SingularFactorError("pivots that are not finite")
    alone = np.abs(y / phase - x) < _ALONE * np.abs(x)
    in_pairs = handle.dim - int(alone.sum())
    if in_pairs % 2 or (np.abs(x[alone].imag) > 1e-6 * np.abs(x[alone].real)).any():
        raise SingularFactorError(f"{in_pairs} rows in pivots of size 2, or pivots that are not real")
    return int((x[alone].real < 0).sum()) + in_pairs // 2


@dataclass(eq=False)
class _Handle:
    """Memory of PARDISO for one factor, on the upper triangle (`indptr`, `indices`, from 0).

    reusable : whether another matrix may be factorised in it.
    """

    indptr: NDArray
    indices: NDArray
    reusable: bool = True

    def __post_init__(self) -> None:
        self.dim = len(self.indptr) - 1
        self._integer = self.indptr.dtype
        self._pt = np.zeros(64, np.int64)
        self._routine = getattr(_library(), "pardiso_64" if self._integer == np.int64 else "pardiso")
        self.iparm = np.zeros(64, self._integer)
        settings = {
            0: 1,  # all of these settings hold
            1: 2,  # nested dissection (METIS)
            9: 13,  # pivots below 1e-13 of the matrix count as zero; 8, the default, meets shifts next to eigenvalues
            17: -1,  # count the entries
            18: -1,  # count the operations
            20: 1,  # Bunch–Kaufman pivots
            34: 1,  # indices from 0
        }
        self.iparm[list(settings)] = list(settings.values())
        weakref.finalize(self, _release, self._routine, self._pt, self.iparm, self.dim)

    def call(self, phase: int, values: ComplexArray) -> None:
        nothing = np.zeros(1, np.complex128)
        _call(
            self._routine, self._pt, self.iparm, self.dim, phase, values, self.indptr, self.indices, 1, nothing, nothing
        )

    def solve(self, phase: int, values: ComplexArray, b: ComplexArray) -> ComplexArray:
        """Solutions for right-hand sides b (m, dim), one in each row."""
        x = np.empty_like(b)
        self._do(phase, values, b, x)
        return x

    def solve_d(self, values: ComplexArray, b: ComplexArray) -> ComplexArray:
        """D⁻¹ b for one right-hand side (dim,), on one thread: several leave rows unwritten (seen in MKL 2026.2)."""
        before = _library().MKL_Set_Num_Threads_Local(1)
        try:
            return self.solve(_SOLVE_D, values, b[None])[0]
        finally:
            _library().MKL_Set_Num_Threads_Local(before)
            # The next factorisation on several threads would write outside its memory.
            self.reusable = _library().MKL_Get_Max_Threads() == 1

    def _do(self, phase: int, values: ComplexArray, b: ComplexArray, x: ComplexArray) -> None:
        pattern = self.indptr, self.indices
        _call(self._routine, self._pt, self.iparm, self.dim, phase, values, *pattern, len(b), b, x)


def _call(
    routine: Any, pt: NDArray, iparm: NDArray, dim: int, phase: int, values: NDArray, indptr: NDArray, indices: NDArray,
    n_rhs: int, b: NDArray, x: NDArray,
) -> None:  # fmt: skip
    integer = ctypes.c_int64 if iparm.dtype == np.int64 else ctypes.c_int32
    error, no_order = integer(0), np.zeros(1, iparm.dtype)

    def number(value: int):
        return ctypes.byref(integer(value))

    def array(values: NDArray) -> ctypes.c_void_p:
        return values.ctypes.data_as(ctypes.c_void_p)

    routine(
        array(pt), number(1), number(1), number(_HERMITIAN_INDEFINITE), number(phase), number(dim), array(values),
        array(indptr), array(indices), array(no_order), number(n_rhs), array(iparm), number(0), array(b), array(x),
        ctypes.byref(error),
    )  # fmt: skip
    if error.value == 0:
        return
    text = f"{_ERRORS.get(error.value, 'an internal error')} (PARDISO error {error.value}, phase {phase})"
    if error.value in (-4, -7):
        raise SingularFactorError(text)
    raise SolverError(text, remedy="take another back-end" + (" or a smaller cell" if error.value == -2 else ""))


def _release(routine: Any, pt: NDArray, iparm: NDArray, dim: int) -> None:
    nothing, none = np.zeros(1, np.complex128), np.zeros(1, iparm.dtype)
    _call(routine, pt, iparm, dim, _RELEASE, nothing, none, none, 1, nothing, nothing)
