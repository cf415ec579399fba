"""Solutions, memory and choice of the back-ends on H − σS of real superlattices."""

import gc
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse

from hamnet.errors import SolverError
from postprocess.solvers import backends, pardiso
from postprocess.solvers.backends import BACKENDS, analyse, choose, estimates
from postprocess.solvers.dissection import elimination_tree, fill_of_order, minimum_degree, nested_dissection
from postprocess.solvers.factor import CertifiedFactor, certified_factor
from postprocess.solvers.multifrontal import PIVOT_ROWS, Multifrontal
from postprocess.solvers.superlu import SuperLU

GENERIC, GAMMA = (0.13, 0.21, 0.0), (0.0, 0.0, 0.0)
SIGMA_EV = -5.8


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(5)


@pytest.fixture(scope="module")
def right(superlattice, rng):
    """Right-hand sides for a strip of 2 × 16 cells without spin: long enough to be cut by separators."""
    dim = superlattice(2, 16, 0.0, name="nibr2_unpolarised").dim
    return rng.normal(size=(dim, 8)) + 1j * rng.normal(size=(dim, 8))


@pytest.fixture
def at(superlattice):
    return superlattice(2, 16, 0.0, name="nibr2_unpolarised").at(GENERIC)


def _matrix(at, sigma_ev: float) -> scipy.sparse.csr_matrix:
    pencil = at.pencil
    return scipy.sparse.csr_matrix((at.shifted(sigma_ev), pencil.indices, pencil.indptr), shape=(at.dim, at.dim))


def _hash(pencil) -> str:
    arrays = [pencil.indptr, pencil.indices, *(a for a in pencil.arrays() if isinstance(a, np.ndarray))]
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def test_solutions_solve_to_rounding(at, right, backend):
    matrix = _matrix(at, SIGMA_EV)
    factor = certified_factor(backend(at.pencil), at, SIGMA_EV)
    scale = scipy.sparse.linalg.norm(matrix) * np.linalg.norm(factor.solve(right))
    assert np.linalg.norm(matrix @ factor.factor.solve(right) - right) < 1e-11 * scale
    x = factor.solve(right)
    assert np.linalg.norm(matrix @ x - right) < 1e-12 * scale
    assert np.allclose(factor.residual(x, right), right - matrix @ x, atol=1e-11)


def test_one_refinement_repairs_a_factorisation_with_an_error(at, right):
    matrix, sigma = _matrix(at, SIGMA_EV), SIGMA_EV
    good = certified_factor(Multifrontal(at.pencil), at, sigma)
    off = Multifrontal(at.pencil).factor(at.shifted(sigma + 1e-7))
    refined = CertifiedFactor(at, sigma, off, replace(good.inertia, backward_error_ev=1e-7))
    errors = [np.linalg.norm(matrix @ x - right) for x in (off.solve(right), refined.solve(right))]
    assert errors[1] < 1e-4 * errors[0]


def test_a_singular_leading_block_does_not_spoil_the_multifrontal_factorisation(at, right):
    """Pivots are not exchanged: where the first block of a front is singular, it takes in the next rows."""
    analysis = Multifrontal(at.pencil)
    front = next(front for front in analysis.fronts if front.n_own > 2 * PIVOT_ROWS and not front.children)
    rows = front.rows[:PIVOT_ROWS].numpy()
    h, s = (m[np.ix_(rows, rows)] for m in at.dense())
    for level in scipy.linalg.eigvalsh(h, s)[[10, 20, 30]]:
        factor = certified_factor(analysis, at, float(level))
        assert factor.inertia.certified
        assert factor.inertia.backward_error_ev < 1e-9
        residual = _matrix(at, float(level)) @ factor.solve(right) - right
        assert np.linalg.norm(residual) < 1e-9 * np.linalg.norm(right)


def test_one_right_hand_side_and_many_give_the_same_solutions(at, right, backend):
    factor = backend(at.pencil).factor(at.shifted(SIGMA_EV))
    together = factor.solve(right)
    assert together.shape == right.shape
    assert np.abs(factor.solve(right[:, :1]) - together[:, :1]).max() < 1e-8 * np.abs(together).max()
    alone = factor.solve(right[:, 3])
    assert alone.shape == (at.dim,)
    assert np.abs(alone - together[:, 3]).max() < 1e-8 * np.abs(together).max()
    with pytest.raises(ValueError, match="rows, expected"):
        factor.solve(right[:-1])


def test_factors_of_one_analysis_live_beside_each_other(superlattice, right, backend):
    pencil = superlattice(2, 16, 0.0, name="nibr2_unpolarised")
    analysis = backend(pencil)
    places = [(pencil.at(GENERIC), -5.8), (pencil.at(GAMMA), -5.3), (pencil.at(GENERIC), -20.0)]
    factors = [analysis.factor(at.shifted(sigma)) for at, sigma in places]
    del factors[1]
    factors.insert(1, analysis.factor(places[1][0].shifted(places[1][1])))
    for (at, sigma), factor in zip(places, factors, strict=True):
        x = factor.solve(right)
        assert np.linalg.norm(_matrix(at, sigma) @ x - right) < 1e-7 * np.linalg.norm(right)


def test_analysis_and_factors_leave_the_shared_arrays_alone(superlattice, right, backend):
    pencil = superlattice(2, 16, 0.0, name="nibr2_unpolarised")
    at, before = pencil.at(GENERIC), _hash(pencil)
    data = at.shifted(SIGMA_EV)
    kept = data.copy(), right.copy()
    factor = backend(pencil).factor(data)
    factor.solve(right)
    del factor
    gc.collect()
    assert _hash(pencil) == before
    assert np.array_equal(data, kept[0])
    assert np.array_equal(right, kept[1])
    assert not pencil.indices.flags.writeable


def test_solutions_of_a_spinor_and_of_a_collinear_pencil(superlattice, backend, rng):
    for pencil, channel in ((superlattice(2, 2), 0), (superlattice(3, 3, 0.0, name="nibr2_v40_collinear"), 1)):
        at = pencil.at(GENERIC, channel)
        h, s = at.dense()
        b = rng.normal(size=(at.dim, 3)) + 0j
        x = certified_factor(backend(pencil), at, SIGMA_EV).solve(b)
        assert np.allclose(x, scipy.linalg.solve(h - SIGMA_EV * s, b), atol=1e-9)


def test_numbers_that_are_none_are_refused(at, backend):
    data = at.shifted(SIGMA_EV)
    data[17] = np.nan
    with pytest.raises(SolverError, match="not finite"):
        backend(at.pencil).factor(data)


# -- order of elimination ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [nested_dissection, elimination_tree])
def test_branches_of_the_tree_share_no_bond(superlattice, cut):
    pencil = superlattice(2, 16, 0.0, name="nibr2_unpolarised")
    tree = cut(pencil.atom_graph, np.diff(pencil.atom_offsets))
    assert np.array_equal(np.sort(np.concatenate(tree.vertices)), np.arange(pencil.n_atoms))
    assert len(tree) > 4
    node_of = np.empty(pencil.n_atoms, int)
    for node, vertices in enumerate(tree.vertices):
        node_of[vertices] = node
    above = {node: {node} for node in range(len(tree))}
    for node in reversed(range(len(tree))):
        if tree.parent[node] >= 0:
            assert tree.parent[node] > node
            above[node] |= above[int(tree.parent[node])]
    rows, columns = pencil.atom_graph.nonzero()
    for i, j in zip(node_of[rows], node_of[columns], strict=True):
        assert j in above[i] or i in above[j]


def test_counted_fill_is_that_of_superlu_and_close_to_its_own_ordering(superlattice):
    pencil = superlattice(2, 16, 0.0, name="nibr2_unpolarised")
    at = pencil.at(GENERIC)
    analysis = SuperLU(pencil)
    own = analysis.factor(at.shifted(SIGMA_EV)).stats.entries
    assert own <= analysis.entries * 1.001
    assert own > 0.95 * analysis.entries
    theirs = scipy.sparse.linalg.splu(
        _matrix(at, SIGMA_EV).tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    ).nnz  # fmt: skip
    assert own < 1.1 * theirs


def test_fill_of_a_chain_and_of_a_star():
    chain = scipy.sparse.diags([np.ones(4), np.ones(5), np.ones(4)], [-1, 0, 1]).tocsr()
    weights = np.ones(5, np.int64)
    assert fill_of_order(chain, weights, np.arange(5))[0] == 9
    star = scipy.sparse.csr_matrix(np.eye(5) + np.outer(np.eye(5)[0], np.ones(5)) + np.outer(np.ones(5), np.eye(5)[0]))
    assert fill_of_order(star, weights, np.arange(5))[0] == 15  # the centre first: all are joined
    assert fill_of_order(star, weights, minimum_degree(star))[0] == 9


# -- choice ------------------------------------------------------------------------------------------------------------


def test_small_cells_are_dense_and_large_ones_sparse(superlattice, monkeypatch):
    monkeypatch.setattr(backends, "_DENSE_DIM", 900)
    assert choose(superlattice(2, 2)).backend == "dense"
    large = superlattice(2, 16, 0.0, name="nibr2_unpolarised")
    monkeypatch.setattr(backends, "mkl_library", lambda: None)
    chosen = choose(large)
    assert chosen.backend == "multifrontal"
    assert "MKL is not installed" in chosen.reason
    assert analyse(large).name == "multifrontal"
    monkeypatch.setattr(backends, "mkl_library", lambda: "somewhere")
    assert choose(large).backend == "mkl"


def test_estimates_are_close_to_what_factors_take(superlattice, backend):
    pencil = superlattice(2, 16, 0.0, name="nibr2_unpolarised")
    analysis = backend(pencil)
    stats = analysis.factor(pencil.at(GENERIC).shifted(SIGMA_EV)).stats
    estimate = estimates(pencil, flops_per_s=1e10)[analysis.name]
    # dense, and this small: the tree is one of few large fronts, which the estimate does not see
    assert 0.4 < analysis.flops / estimate.flops < 2.5
    assert stats.memory_bytes < estimate.memory_bytes < 40 * stats.memory_bytes
    assert analysis.memory_bytes < estimate.memory_bytes
    assert f"{pencil.dim} orbitals" in str(estimate)


def test_too_little_memory_is_named_with_numbers_and_what_would_fit(superlattice):
    pencil = superlattice(2, 16, 0.0, name="nibr2_unpolarised")
    needs = {name: e.memory_bytes for name, e in estimates(pencil, flops_per_s=1e10).items()}
    limit = (needs["multifrontal"] + needs["superlu"]) / 2
    with pytest.raises(SolverError, match=r"928 orbitals need about .* GB with superlu; expected at most") as raised:
        choose(pencil, "superlu", memory_limit_bytes=limit)
    assert "multifrontal" in raised.value.remedy
    with pytest.raises(SolverError, match=r"[Tt]ake a smaller cell"):
        choose(pencil, memory_limit_bytes=1e6)
    assert choose(pencil, memory_limit_bytes=limit).backend in ("mkl", "multifrontal")


def test_unknown_and_missing_backends_are_named(superlattice, monkeypatch):
    pencil = superlattice(2, 2)
    with pytest.raises(SolverError, match="back-end 'mumps'; expected auto, dense, mkl, multifrontal, superlu"):
        choose(pencil, "mumps")
    monkeypatch.setattr(backends, "mkl_library", lambda: None)
    with pytest.raises(SolverError, match=r"without the package mkl.*hamnet\[mkl\]"):
        analyse(pencil, "mkl")
    monkeypatch.setattr(pardiso, "mkl_library", lambda: None)
    pardiso._library.cache_clear()
    with pytest.raises(SolverError, match="no MKL library"):
        BACKENDS["mkl"](pencil)
    pardiso._library.cache_clear()
