"""MKL PARDISO: what its documentation does not say about complex Hermitian matrices, and its memory."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg

from hamnet.errors import SolverError
from postprocess.solvers import pardiso
from postprocess.solvers.factor import SingularFactorError
from postprocess.solvers.pardiso import Pardiso, mkl_library
from postprocess.solvers.window import factor_off_states

pytestmark = pytest.mark.skipif(mkl_library() is None, reason="needs the package mkl: pip install 'hamnet[mkl]'")

GENERIC = (0.13, 0.21, 0.0)


@pytest.fixture(scope="module")
def at(superlattice):
    return superlattice(3, 3).at(GENERIC)


@pytest.fixture(scope="module")
def levels(at):
    return scipy.linalg.eigvalsh(*at.dense())


def test_counts_of_a_complex_matrix_are_exact_where_those_of_the_library_are_not(at, levels):
    analysis = Pardiso(at.pencil)
    shifts = np.linspace(levels[0] - 1, levels[-1] + 1, 24)
    reported = []
    for shift in shifts:
        factor = analysis.factor(at.shifted(shift))
        assert factor.negative == (levels < shift).sum()
        reported.append(int(factor._handle.iparm[22]))
    # iparm(23), "number of negative eigenvalues": for real matrices only.
    assert reported != [int((levels < shift).sum()) for shift in shifts]


def test_the_inverse_of_d_is_asked_for_one_column_at_a_time(at):
    factor = Pardiso(at.pencil).factor(at.shifted(-5.8))
    b = np.stack([np.ones(at.dim, complex), np.exp(1j * np.arange(at.dim))])
    apart = np.stack([factor._handle.solve(332, factor._values, column[None])[0] for column in b])
    again = np.stack([factor._handle.solve(332, factor._values, column[None])[0] for column in b])
    assert np.array_equal(apart, again)
    together = factor._handle.solve(332, factor._values, b)
    assert np.abs(together - apart).max() > 1e-3 * np.abs(apart).max()


_NEXT_TO_A_LEVEL = """
import sys
import numpy as np
from pathlib import Path
from postprocess.solvers.factor import SingularFactorError, certified_factor
from postprocess.solvers.pardiso import Pardiso
from postprocess.solvers.pencil import SparsePencil

folder = Path(sys.argv[1])
pencil, levels = SparsePencil.load(folder), np.load(folder / "levels.npy")
at, analysis, n = pencil.at((0.13, 0.21, 0.0)), Pardiso(pencil), 0
for level in levels[:: len(levels) // 12]:
    for distance in (1e-12, -1e-12, 0.0):
        try:
            inertia = certified_factor(analysis, at, level + distance).inertia
        except SingularFactorError:
            continue
        assert not inertia.certified or inertia.negative == (levels < level + distance).sum()
        n += 1
print(n, "factorisations")
"""


def test_shifts_on_levels_do_not_damage_memory(at, levels, tmp_path):
    """With the default threshold of pivots, solutions next to a level write outside their arrays: the process dies."""
    at.pencil.save(tmp_path)
    np.save(tmp_path / "levels.npy", levels)
    done = subprocess.run(
        [sys.executable, "-c", _NEXT_TO_A_LEVEL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 20


_ON_TWO_THREADS = """
import sys
import numpy as np
from pathlib import Path
from postprocess.solvers.multifrontal import Multifrontal
from postprocess.solvers.pardiso import Pardiso
from postprocess.solvers.pencil import SparsePencil

pencil = SparsePencil.load(Path(sys.argv[1]))
at, mkl, own = pencil.at((0.13, 0.21, 0.0)), Pardiso(pencil), Multifrontal(pencil)
b = np.random.default_rng(0).normal(size=(pencil.dim, 8)) + 0j
for shift in (-5.8, -6.3, -6.8):
    data = at.shifted(shift)
    factor, truth = mkl.factor(data), own.factor(data)
    assert factor.negative == truth.negative
    assert np.abs(factor.solve(b) - truth.solve(b)).max() < 1e-6 * np.abs(truth.solve(b)).max()
"""


def test_two_threads_count_and_solve_like_one(superlattice, tmp_path):
    """On two threads, phase 332 leaves rows unwritten, and a handle that saw one thread must not be used again."""
    superlattice(7, 6).save(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _ON_TWO_THREADS, str(tmp_path)], capture_output=True, text=True, check=False,
        env=os.environ | {"MKL_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "MKL_DYNAMIC": "FALSE"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_perturbed_pivot_is_refused_before_anything_is_solved(at, monkeypatch):
    analysis = Pardiso(at.pencil)
    solved = []
    real = pardiso._Handle.call

    def perturbed(self, phase, values):
        real(self, phase, values)
        self.iparm[13] = 2 if phase == 22 else 0

    monkeypatch.setattr(pardiso._Handle, "call", perturbed)
    monkeypatch.setattr(pardiso._Handle, "solve", lambda *args: solved.append(args))
    with pytest.raises(SingularFactorError, match="2 pivots of zero"):
        analysis.factor(at.shifted(-5.8))
    assert not solved
    # Moved shifts meet the same here, and the caller is told.
    with pytest.raises(SolverError, match=r"a singular matrix at -5\.8"):
        factor_off_states(analysis, at, -5.8)
    monkeypatch.undo()
    assert analysis.factor(at.shifted(-5.8)).negative > 0


def test_integers_of_32_and_of_64_bits_give_the_same_factor(at):
    b = np.random.default_rng(1).normal(size=(at.dim, 3)) + 0j
    narrow, wide = (Pardiso(at.pencil, wide=wide).factor(at.shifted(-5.8)) for wide in (False, True))
    assert (narrow._handle.iparm.dtype, wide._handle.iparm.dtype) == (np.int32, np.int64)
    assert narrow.negative == wide.negative
    assert narrow.stats.entries == wide.stats.entries
    assert np.allclose(narrow.solve(b), wide.solve(b), atol=1e-9)


@pytest.fixture
def one_thread():
    before = pardiso._library().MKL_Set_Num_Threads_Local(1)
    yield
    pardiso._library().MKL_Set_Num_Threads_Local(before)


@pytest.mark.usefixtures("one_thread")
def test_memory_is_given_back_with_the_last_factor(at):
    """On one thread the memory serves the next factor; on several it may not."""
    analysis = Pardiso(at.pencil)
    first, second = (analysis.factor(at.shifted(sigma)) for sigma in (-5.8, -5.0))
    handles = [first._handle, second._handle]
    assert handles[0] is not handles[1]
    inside = [handle._pt for handle in handles]
    assert all(pt.any() for pt in inside)
    del first
    gc.collect()
    assert analysis._spare == [handles[0]]  # kept for the next factor, with its memory
    third = analysis.factor(at.shifted(-5.3))
    assert third._handle is handles[0]
    del second, third, handles
    gc.collect()
    assert sum(pt.any() for pt in inside) == 1
    del analysis
    gc.collect()
    assert not any(pt.any() for pt in inside)
