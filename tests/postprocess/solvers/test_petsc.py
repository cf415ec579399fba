"""Export to PETSc and import of what SLEPc finds: the files as their manual says, and nothing believed unseen."""

import os
import shlex
import struct
import subprocess

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse

from hamnet.errors import SolverError, StoreError
from postprocess.solvers.multifrontal import Multifrontal
from postprocess.solvers.petsc import export_pencil, import_window

K = (0.13, 0.21, 0.0)


@pytest.fixture
def at(superlattice):
    return superlattice(2, 2).at(K)


@pytest.fixture
def solved(at, tmp_path):
    """The folder of an export, with vectors as PETSc writes them: 20 states with an error of 1e-9."""
    export_pencil(at, tmp_path, -6.0, 20)
    energies, vectors = scipy.linalg.eigh(*at.dense())
    chosen = np.arange(110, 130)

    def write(numbers=chosen, error=1e-9):
        noise = np.random.default_rng(0).normal(size=(len(energies), len(numbers)))
        with (tmp_path / "vectors.petsc").open("wb") as file:
            for vector in (vectors[:, numbers] + error * noise).T:
                file.write(struct.pack(">ii", 1211214, at.dim))
                for value in vector:
                    file.write(struct.pack(">dd", value.real, value.imag))
        return energies[numbers]

    return tmp_path, write


def _matrix(path, dim):
    content = path.read_bytes()
    assert struct.unpack(">iii", content[:12]) == (1211216, dim, dim)
    (n,) = struct.unpack(">i", content[12:16])
    lengths = np.frombuffer(content, ">i4", dim, 16)
    columns = np.frombuffer(content, ">i4", n, 16 + 4 * dim)
    values = np.frombuffer(content, ">c16", n, 16 + 4 * dim + 4 * n)
    assert len(content) == 16 + 4 * dim + 20 * n
    return scipy.sparse.csr_matrix((values, columns, np.r_[0, np.cumsum(lengths)]), shape=(dim, dim)).toarray()


def test_exported_matrices_are_those_of_the_pencil(at, tmp_path):
    export_pencil(at, tmp_path, -6.0, 20)
    h, s = at.dense()
    np.testing.assert_array_equal(_matrix(tmp_path / "hamiltonian.petsc", at.dim), h)
    np.testing.assert_allclose(_matrix(tmp_path / "overlap.petsc", at.dim), s, atol=1e-14)
    compile((tmp_path / "solve.py").read_text(), "solve.py", "exec")


def test_imported_states_are_refined_and_counted(at, solved):
    folder, write = solved
    expected = write()
    window = import_window(Multifrontal(at.pencil), at, folder)
    np.testing.assert_allclose(window.energies_ev, expected, atol=1e-12)
    assert window.first == 110
    assert import_window(None, at, folder).first == -1


def test_slepc_finds_the_states_with_the_script_of_the_export(at, tmp_path):
    command = os.environ.get("SLEPC_PYTHON")
    if command is None:
        pytest.skip("needs SLEPc: set SLEPC_PYTHON to a command that runs a Python with slepc4py, complex, and MUMPS")
    export_pencil(at, tmp_path, -6.0, 20)
    subprocess.run([*shlex.split(command), "solve.py"], cwd=tmp_path, check=True, timeout=300)
    window = import_window(Multifrontal(at.pencil), at, tmp_path)
    assert len(window.energies_ev) >= 20
    expected = scipy.linalg.eigh(*at.dense(), eigvals_only=True)
    found = slice(window.first, window.first + len(window.energies_ev))
    np.testing.assert_allclose(window.energies_ev, expected[found], atol=1e-9)
    assert set(np.argsort(abs(expected + 6.0))[:20]) <= set(range(found.start, found.stop))


def test_a_missing_state_is_found_out(at, solved):
    folder, write = solved
    write(np.r_[110:118, 119:130])
    with pytest.raises(SolverError, match="19 states where the counts say 20"):
        import_window(Multifrontal(at.pencil), at, folder)


def test_vectors_that_are_no_states_are_refused(at, solved):
    folder, write = solved
    write(error=1e-2)
    with pytest.raises(SolverError, match="residual"):
        import_window(None, at, folder)


def test_states_of_another_cell_or_a_damaged_file_are_refused(at, superlattice, solved):
    folder, write = solved
    write()
    with pytest.raises(StoreError, match="states of dimension 232"):
        import_window(None, superlattice(3, 2).at(K), folder)
    content = (folder / "vectors.petsc").read_bytes()
    (folder / "vectors.petsc").write_bytes(content[:-8])
    with pytest.raises(StoreError, match="complex scalars"):
        import_window(None, at, folder)
