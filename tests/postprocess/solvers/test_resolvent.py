"""The resolvent at complex energies against the inverse of the dense matrix."""

import numpy as np
import pytest

from hamnet.errors import SolverError
from postprocess.solvers.resolvent import ResolventAnalysis

K = np.array([0.13, 0.21, 0.0])


@pytest.fixture(scope="module", params=[(3, 3, 0.1, "nibr2_1x1_nc"), (2, 2, 0.0, "nibr2_v40_collinear")])
def pencil(request, superlattice):
    return superlattice(*request.param)


@pytest.mark.parametrize("energy", [-8.0 + 0.1j, -8.0 - 0.1j, -6.61 + 1e-3j, -40.0 + 10j])
def test_solutions_and_elements_are_those_of_the_dense_inverse(pencil, energy):
    at = pencil.at(K, pencil.n_channels - 1)
    resolvent = ResolventAnalysis(pencil).factor(at, energy)
    h, s = at.dense()
    exact = np.linalg.inv(energy * s - h)
    scale = np.abs(exact).max()
    rng = np.random.default_rng(0)
    b = rng.normal(size=(pencil.dim, 3)) + 1j * rng.normal(size=(pencil.dim, 3))
    assert np.abs(resolvent.solve(b) - exact @ b).max() < 1e-10 * np.abs(exact @ b).max()
    rows = np.repeat(np.arange(pencil.dim), np.diff(pencil.indptr))
    assert np.abs(resolvent.elements() - exact[rows, pencil.indices]).max() < 1e-11 * scale


def test_resolvents_of_conjugate_energies_are_adjoints(pencil):
    at, analysis = pencil.at(K), ResolventAnalysis(pencil)
    one, other = (analysis.factor(at, z) for z in (-7.0 + 0.05j, -7.0 - 0.05j))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, pencil.dim, 1)) + 1j * rng.normal(size=(2, pencil.dim, 1))
    left, right = np.vdot(x, one.solve(y)), np.vdot(other.solve(x), y)
    assert abs(left - right) < 1e-11 * abs(left)


def test_memory_and_operations_are_told_before(pencil):
    analysis = ResolventAnalysis(pencil)
    found = analysis.factor(pencil.at(K), -3 + 0.1j).stats
    assert found.memory_bytes < analysis.memory_bytes * 1.2
    assert analysis.flops > 0


@pytest.mark.parametrize("energy", [complex(-3.0), complex("nan")])
def test_real_energies_are_refused(pencil, energy):
    with pytest.raises(SolverError, match="imaginary part"):
        ResolventAnalysis(pencil).factor(pencil.at(K), energy)
